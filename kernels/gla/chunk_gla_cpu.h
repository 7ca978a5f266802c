// Internal to chunk_gla: the implementation on the CPU. chunk_gla.cc has
// checked all shapes.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_CPU_H_
#define GLA_KERNELS_GLA_CHUNK_GLA_CPU_H_

#include <array>
#include <cstdint>

#include "absl/types/span.h"
#include "kernels/base/execution_context.h"
#include "kernels/gla/chunk_gla.h"

namespace gla::internal {

int64_t ChunkGlaSavedFloatsCpu(const std::array<int64_t, 4>& k_shape,
                               const std::array<int64_t, 4>& v_shape,
                               absl::Span<const int32_t> cu_seqlens);
void ChunkGlaFwdCpu(const ExecutionContext& ctx, const ChunkGlaFwdArgs& args);
void ChunkGlaBwdCpu(const ExecutionContext& ctx, const ChunkGlaBwdArgs& args);

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_CPU_H_
