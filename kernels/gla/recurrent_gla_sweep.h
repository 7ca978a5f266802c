// Internal to recurrent_gla_cuda: the recurrence over the tokens of all heads,
// forward for o, backward in time for dv.
#ifndef GLA_KERNELS_GLA_RECURRENT_GLA_SWEEP_H_
#define GLA_KERNELS_GLA_RECURRENT_GLA_SWEEP_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/gla/recurrent_gla_cuda.h"

namespace gla::internal {

// Forward: state = exp(g_t) state + (key_scale key_t) value_t^T, then
// out_t = state^T (query_scale query_t). Backward in time, the gate applied at
// token t is that of token t + 1, and none at the last.
struct SweepParams {
  RecurrentGlaShape shape;
  bool backward;
  const void *query, *key, *value, *g;
  float query_scale, key_scale;
  const int32_t *cu_seqlens, *slots;
  const float* first_state;  // null: zero
  void* out;
  float* last_state;  // null: not wanted
};
cudaError_t Sweep(const SweepParams& params, cudaStream_t stream);

// So many blocks cover the GPU about twice.
inline constexpr int64_t kEnoughBlocks = 256;

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_RECURRENT_GLA_SWEEP_H_
