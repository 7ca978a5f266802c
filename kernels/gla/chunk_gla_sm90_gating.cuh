// Gating of 64 channels by whole warps, for the tuned chunk kernels: a lane has
// eight neighbouring channels, 16 bytes of bf16, and lanes 8 r .. 8 r + 7 a
// row. Gates are logs, in powers of two.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GATING_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GATING_CUH_

#include "kernels/gla/chunk_gla_sm90.cuh"

namespace gla::internal {

using Gates = float[8];

// Eight log gates as they lie in memory, at a 16-byte address.
template <typename Gate>
struct RawGates;
template <>
struct RawGates<__nv_bfloat16> {
  uint4 pairs;
};
template <>
struct RawGates<float> {
  float4 low, high;
};

// Adds a row's gates.
__device__ inline void AddGates(const RawGates<__nv_bfloat16>& g, Gates& sum) {
  const uint32_t pairs[4] = {g.pairs.x, g.pairs.y, g.pairs.z, g.pairs.w};
  const __nv_bfloat162 least = __float2bfloat162_rn(kMinLogGate);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __nv_bfloat162 kept =
        __hmax2(reinterpret_cast<const __nv_bfloat162&>(pairs[i]), least);
    const uint32_t pair = reinterpret_cast<const uint32_t&>(kept);
    sum[2 * i] = fmaf(LowFloat(pair), kLog2E, sum[2 * i]);
    sum[2 * i + 1] = fmaf(HighFloat(pair), kLog2E, sum[2 * i + 1]);
  }
}
__device__ inline void AddGates(const RawGates<float>& g, Gates& sum) {
  const float x[8] = {g.low.x,  g.low.y,  g.low.z,  g.low.w,
                      g.high.x, g.high.y, g.high.z, g.high.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    sum[i] = fmaf(fmaxf(x[i], kMinLogGate), kLog2E, sum[i]);
  }
}

// Over a warp's four groups of rows: what the earlier groups' `own` add up to,
// and all groups'.
__device__ inline void SumRowGroups(const Gates& own, Gates& before,
                                    Gates& all) {
  const int group = threadIdx.x % 32 / 8;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float sum = own[i];
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2) {
      const float x = __shfl_up_sync(0xffffffff, sum, 8 * distance);
      if (group >= distance) sum += x;
    }
    // Not sum - own[i]: a row's gate must not depend on later rows, in no bit.
    const float x = __shfl_up_sync(0xffffffff, sum, 8);
    before[i] = group > 0 ? x : 0;
    all[i] = __shfl_sync(0xffffffff, sum, 24 + threadIdx.x % 8);
  }
}

__device__ inline void StoreSums(const Gates& from, float* to) {
  auto* const halves = reinterpret_cast<float4*>(to);
  halves[0] = {from[0], from[1], from[2], from[3]};
  halves[1] = {from[4], from[5], from[6], from[7]};
}
__device__ inline void LoadSums(const float* from, Gates& to) {
  const float4 low = reinterpret_cast<const float4*>(from)[0];
  const float4 high = reinterpret_cast<const float4*>(from)[1];
  to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
  to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}

__device__ inline bool IsSteep(float log_decay) {
  return log_decay < -kMaxLog2Decay;
}

// factor x e^b of eight channels.
__device__ inline uint4 GateQuery(uint4 x, const Gates& b, float factor) {
  return {PackBf16(LowFloat(x.x) * factor * Exp2(b[0]),
                   HighFloat(x.x) * factor * Exp2(b[1])),
          PackBf16(LowFloat(x.y) * factor * Exp2(b[2]),
                   HighFloat(x.y) * factor * Exp2(b[3])),
          PackBf16(LowFloat(x.z) * factor * Exp2(b[4]),
                   HighFloat(x.z) * factor * Exp2(b[5])),
          PackBf16(LowFloat(x.w) * factor * Exp2(b[6]),
                   HighFloat(x.w) * factor * Exp2(b[7]))};
}

// The shift of a channel's keys, from its decay in the chunk.
__device__ inline float KeyShift(float log_decay) {
  return IsSteep(log_decay) ? log_decay : 0;
}

// x e^(shift - b).
__device__ inline uint4 GateKey(uint4 x, const Gates& b, const Gates& shift) {
  const auto factor = [&b, &shift](int i) { return Exp2(shift[i] - b[i]); };
  return {PackBf16(LowFloat(x.x) * factor(0), HighFloat(x.x) * factor(1)),
          PackBf16(LowFloat(x.y) * factor(2), HighFloat(x.y) * factor(3)),
          PackBf16(LowFloat(x.z) * factor(4), HighFloat(x.z) * factor(5)),
          PackBf16(LowFloat(x.w) * factor(6), HighFloat(x.w) * factor(7))};
}

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GATING_CUH_
