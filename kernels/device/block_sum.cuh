// Device code: the sum of one value per thread over a block.
#ifndef GLA_KERNELS_DEVICE_BLOCK_SUM_CUH_
#define GLA_KERNELS_DEVICE_BLOCK_SUM_CUH_

namespace gla {

inline constexpr int kWarpThreads = 32;

// The sum over the warp, in every lane.
__device__ inline float WarpSum(float x) {
#pragma unroll
  for (int offset = kWarpThreads / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(0xffffffff, x, offset);
  }
  return x;
}

// The sum over the block, in every thread. All threads must call it, once per
// kernel; the block is one-dimensional and a whole number of warps. Fixed
// order: a tree in each warp, then the warps by number.
__device__ inline float BlockSum(float x) {
  __shared__ float warp_sums[32];
  x = WarpSum(x);
  const int num_warps = blockDim.x / kWarpThreads;
  if (num_warps == 1) return x;
  if (threadIdx.x % kWarpThreads == 0)
    warp_sums[threadIdx.x / kWarpThreads] = x;
  __syncthreads();
  float sum = 0;
  for (int warp = 0; warp < num_warps; ++warp) sum += warp_sums[warp];
  return sum;
}

}  // namespace gla

#endif  // GLA_KERNELS_DEVICE_BLOCK_SUM_CUH_
