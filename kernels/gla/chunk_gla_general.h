// Internal to chunk_gla_cuda: the path for every head shape up to 512 x 512 in
// bf16 and fp16. Chunks in parallel with their boundary states in the
// workspace; every gated factor is <= 1, so any gates are exact and fp16 is
// safe. Arguments and guarantees as in chunk_gla_cuda.h; saves nothing.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_GENERAL_H_
#define GLA_KERNELS_GLA_CHUNK_GLA_GENERAL_H_

#include "kernels/gla/chunk_gla_cuda.h"

namespace gla::internal {

int64_t GeneralFwdWorkspaceBytes(const ChunkGlaShape& shape);
int64_t GeneralBwdWorkspaceBytes(const ChunkGlaShape& shape);
cudaError_t GeneralFwd(const ChunkGlaFwdCudaArgs& args, cudaStream_t stream);
cudaError_t GeneralBwd(const ChunkGlaBwdCudaArgs& args, cudaStream_t stream);

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_GENERAL_H_
