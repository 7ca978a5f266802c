// Device code: the last step of a sum over the rows of a matrix, whose blocks
// have each left a partial sum per column.
#ifndef GLA_KERNELS_DEVICE_PARTIAL_SUMS_CUH_
#define GLA_KERNELS_DEVICE_PARTIAL_SUMS_CUH_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace gla {
namespace partial_sums_internal {

inline constexpr int kColumns = 32;  // per block
inline constexpr int kLanes = 16;    // rows added side by side

static __global__ void __launch_bounds__(kColumns* kLanes)
    AddKernel(const float* partials, int64_t P, int64_t D, float* sum) {
  __shared__ float lanes[kLanes][kColumns];
  const int column = threadIdx.x % kColumns, lane = threadIdx.x / kColumns;
  const int64_t d = static_cast<int64_t>(blockIdx.x) * kColumns + column;
  float total = 0;
  if (d < D) {
#pragma unroll 8
    for (int64_t i = lane; i < P; i += kLanes) total += partials[i * D + d];
  }
  lanes[lane][column] = total;
  for (int half = kLanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane < half) lanes[lane][column] += lanes[lane + half][column];
  }
  if (lane == 0 && d < D) sum[d] += lanes[0][column];
}

}  // namespace partial_sums_internal

// sum[d] += partials[0][d] + ... + partials[P - 1][d] for d < D, in an order
// that depends on P alone.
inline cudaError_t AddPartialSums(const float* partials, int64_t P, int64_t D,
                                  float* sum, cudaStream_t stream) {
  namespace internal = partial_sums_internal;
  const int64_t blocks = (D + internal::kColumns - 1) / internal::kColumns;
  internal::
      AddKernel<<<blocks, internal::kColumns * internal::kLanes, 0, stream>>>(
          partials, P, D, sum);
  return cudaGetLastError();
}

}  // namespace gla

#endif  // GLA_KERNELS_DEVICE_PARTIAL_SUMS_CUH_
