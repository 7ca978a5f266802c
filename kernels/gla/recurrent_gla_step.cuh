// Device code internal to recurrent_gla_cuda: one token on the part of a state
// that a thread owns, and the sum over K of an output.
//
// That is made of kParts partial sums, part p over rows p, p + 32, ..., added
// as one binary tree (parts p and p^1, then p and p^2, ...): the same for all
// kernels, so is every bit of the result.
#ifndef GLA_KERNELS_GLA_RECURRENT_GLA_STEP_CUH_
#define GLA_KERNELS_GLA_RECURRENT_GLA_STEP_CUH_

#include "kernels/device/block_sum.cuh"
#include "kernels/device/elements.cuh"

namespace gla::internal {

inline constexpr int kParts = 32;

// Past the L1 cache, where nothing is used again.
__device__ inline Lanes<4> LoadState(const float* p, Lanes<4>) {
  const float4 x = __ldcg(reinterpret_cast<const float4*>(p));
  return {x.x, x.y, x.z, x.w};
}
__device__ inline Lanes<1> LoadState(const float* p, Lanes<1>) {
  return {__ldcg(p)};
}
__device__ inline void StoreState(const Lanes<4>& x, float* p) {
  __stcg(reinterpret_cast<float4*>(p),
         make_float4(x.lane[0], x.lane[1], x.lane[2], x.lane[3]));
}
__device__ inline void StoreState(const Lanes<1>& x, float* p) {
  __stcg(p, x.lane[0]);
}

// One token on this thread's part: updates `state`, returns the partial sum.
template <int kRows, int kWidth>
__device__ Lanes<kWidth> SweepStep(const float* query, const float* key,
                                   const float* decay,
                                   const Lanes<kWidth>& value,
                                   Lanes<kWidth> (&state)[kRows]) {
  Lanes<kWidth> sum = {};
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float q = query[r * kParts], k = key[r * kParts];
    const float a = decay[r * kParts];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      float& s = state[r].lane[i];
      s = fmaf(a, s, k * value.lane[i]);
      sum.lane[i] = fmaf(q, s, sum.lane[i]);
    }
  }
  return sum;
}

// The lower levels of the tree, over the parts that share a warp:
// kColumnThreads of its lanes are side by side.
template <int kWidth, int kColumnThreads>
__device__ void AddPartsOfWarp(Lanes<kWidth>* sum) {
#pragma unroll
  for (int offset = kColumnThreads; offset < kWarpThreads; offset *= 2) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      sum->lane[i] += __shfl_xor_sync(0xffffffff, sum->lane[i], offset);
    }
  }
}

// The upper levels, over the warps' sums of a column, kStride apart.
template <int kWarps, int kStride>
__device__ float AddWarps(const float* sums) {
  float x[kWarps];
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) x[warp] = sums[warp * kStride];
#pragma unroll
  for (int half = 1; half < kWarps; half *= 2) {
#pragma unroll
    for (int warp = 0; warp < kWarps; warp += 2 * half) {
      x[warp] += x[warp + half];
    }
  }
  return x[0];
}

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_RECURRENT_GLA_STEP_CUH_
