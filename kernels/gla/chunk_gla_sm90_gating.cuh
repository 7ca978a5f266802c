// Gating of 64 channels by whole warps, for the tuned chunk kernels: a lane has
// kChannels neighbouring channels, 4 or 8, and the lanes of a warp that many
// rows. Gates are logs, in powers of two.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GATING_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GATING_CUH_

#include "kernels/gla/chunk_gla_sm90.cuh"

namespace gla::internal {

// Neighbouring channels of a row as they lie in memory.
template <int kChannels>
struct alignas(2 * kChannels) Bf16Piece {
  uint32_t pairs[kChannels / 2];
};
template <typename Gate, int kChannels>
struct RawGates;
template <int kChannels>
struct RawGates<__nv_bfloat16, kChannels> : Bf16Piece<kChannels> {};
template <int kChannels>
struct alignas(16) RawGates<float, kChannels> {
  float gates[kChannels];
};

// Adds a row's gates.
template <int kChannels>
__device__ inline void AddGates(const RawGates<__nv_bfloat16, kChannels>& g,
                                float (&sum)[kChannels]) {
  const __nv_bfloat162 least = __float2bfloat162_rn(kMinLogGate);
#pragma unroll
  for (int i = 0; i < kChannels / 2; ++i) {
    const __nv_bfloat162 kept =
        __hmax2(reinterpret_cast<const __nv_bfloat162&>(g.pairs[i]), least);
    const uint32_t pair = reinterpret_cast<const uint32_t&>(kept);
    sum[2 * i] = fmaf(LowFloat(pair), kLog2E, sum[2 * i]);
    sum[2 * i + 1] = fmaf(HighFloat(pair), kLog2E, sum[2 * i + 1]);
  }
}
template <int kChannels>
__device__ inline void AddGates(const RawGates<float, kChannels>& g,
                                float (&sum)[kChannels]) {
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
    sum[i] = fmaf(fmaxf(g.gates[i], kMinLogGate), kLog2E, sum[i]);
  }
}

// Over the groups of rows that a warp's lanes have: what the earlier groups'
// `own` add up to, and all groups'.
template <int kChannels>
__device__ inline void SumRowGroups(const float (&own)[kChannels],
                                    float (&before)[kChannels],
                                    float (&all)[kChannels]) {
  constexpr int kLanes = 64 / kChannels;  // of a row
  constexpr int kGroups = 32 / kLanes;
  const int lane = threadIdx.x % 32, group = lane / kLanes;
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
    float sum = own[i];
#pragma unroll
    for (int distance = 1; distance < kGroups; distance *= 2) {
      const float x = __shfl_up_sync(0xffffffff, sum, kLanes * distance);
      if (group >= distance) sum += x;
    }
    // Not sum - own[i]: a row's gate must not depend on later rows, in no bit.
    const float x = __shfl_up_sync(0xffffffff, sum, kLanes);
    before[i] = group > 0 ? x : 0;
    all[i] =
        __shfl_sync(0xffffffff, sum, (kGroups - 1) * kLanes + lane % kLanes);
  }
}

// Sums of neighbouring channels, at a 16-byte address.
template <int kChannels>
__device__ inline void StoreSums(const float (&from)[kChannels], float* to) {
#pragma unroll
  for (int i = 0; i < kChannels; i += 4) {
    *reinterpret_cast<float4*>(to + i) = {from[i], from[i + 1], from[i + 2],
                                          from[i + 3]};
  }
}
template <int kChannels>
__device__ inline void LoadSums(const float* from, float (&to)[kChannels]) {
#pragma unroll
  for (int i = 0; i < kChannels; i += 4) {
    const float4 x = *reinterpret_cast<const float4*>(from + i);
    to[i] = x.x, to[i + 1] = x.y, to[i + 2] = x.z, to[i + 3] = x.w;
  }
}

// Where the sums of 64 channels of a chunk are (ScanArgs::log_decays).
template <typename T>
__device__ inline T* LogDecays(T* log_decays, const ChunkGlaShape& shape,
                               int64_t chunk_slot, int h, int slab) {
  const int64_t slabs = shape.K / 64;
  return log_decays +
         ((chunk_slot * shape.H + h) * slabs + slab) * (kChunkParts * 64);
}

// Stores a chunk's sums there, by the lanes with the first of a part's rows:
// what is added up `before` this row, or for the chunk's first row `all`. A
// lane has kRows rows from `row` on.
template <int kRows, int kChannels>
__device__ inline void StoreLogDecays(const float (&before)[kChannels],
                                      const float (&all)[kChannels], int row,
                                      int channel, float* to) {
  static_assert(kPartTokens % kRows == 0);
  if (row == 0) {
    StoreSums(all, to + (kChunkParts - 1) * 64 + channel);
  } else if (row % kPartTokens == 0) {
    StoreSums(before, to + (row / kPartTokens - 1) * 64 + channel);
  }
}

// Over kWarps warps that have a slab's rows, this one the rows of `part`: what
// the gates before this lane's `own` add up to, and all of them. Barrier number
// `barrier` is for the `threads` that call this together; `totals` are theirs
// again once all of them have returned.
template <int kWarps, int kChannels>
__device__ inline void SumSlab(const float (&own)[kChannels],
                               float (&totals)[kWarps][64], int part,
                               int barrier, int threads,
                               float (&before)[kChannels],
                               float (&all)[kChannels]) {
  constexpr int kLanes = 64 / kChannels, kGroups = 32 / kLanes;
  static_assert(kGroups == 2 && kWarps % 2 == 0);
  const int lane = threadIdx.x % 32, channel = lane % kLanes * kChannels;
  SumRowGroups(own, before, all);
  if (lane < kLanes) StoreSums(all, &totals[part][channel]);
  NamedBarrier(barrier, threads);
  // Half of the warps' totals each group of lanes.
  float earlier[kChannels] = {};
#pragma unroll
  for (int c = 0; c < kChannels; ++c) all[c] = 0;
  const int first = lane / kLanes * (kWarps / 2);
#pragma unroll
  for (int w = 0; w < kWarps / 2; ++w) {
    float total[kChannels];
    LoadSums(&totals[first + w][channel], total);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      if (first + w < part) earlier[c] += total[c];
      all[c] += total[c];
    }
  }
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    before[c] += earlier[c] + __shfl_xor_sync(0xffffffff, earlier[c], kLanes);
    all[c] += __shfl_xor_sync(0xffffffff, all[c], kLanes);
  }
}

__device__ inline bool IsSteep(float log_decay) {
  return log_decay < -kMaxLog2Decay;
}

// Stores the factors of kChannels channels from `channel` on of a slab, by the
// first 64 / kChannels lanes of a warp.
template <int kChannels>
__device__ inline void StoreFactors(const float (&factor)[kChannels],
                                    int channel, SlabFactors& to) {
  static_assert(kChannels == 4, "lanes 0 to 3 pad the four rows");
#pragma unroll
  for (int c = 0; c < kChannels; c += 2) {
    const int row = (channel + c) % 8 / 2, column = (channel + c) / 8 * 2;
    *reinterpret_cast<float2*>(&to[row][column]) = {factor[c], factor[c + 1]};
  }
  // What is copied is written, all of it.
  if (channel < 16) *reinterpret_cast<float4*>(&to[channel / 4][16]) = {};
}

// The same of a chunk's decays.
template <int kChannels>
__device__ inline void StoreDecay(const float (&log_decay)[kChannels],
                                  int channel, SlabDecay& decay) {
  float edge[kChannels], mid[kChannels];
  bool any = false;
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    const bool steep = IsSteep(log_decay[c]);
    const float all = Exp2(log_decay[c]);
    edge[c] = steep ? 1 : all;
    mid[c] = steep ? all : 1;
    any |= steep;
  }
  StoreFactors(edge, channel, decay.edge);
  StoreFactors(mid, channel, decay.mid);
  any = __any_sync((1u << (64 / kChannels)) - 1, any);
  if (channel == 0) {
    *reinterpret_cast<int4*>(&decay.any_steep) = {any, 0, 0, 0};
  }
}

// factor x e^b.
template <int kChannels>
__device__ inline void GateQuery(const Bf16Piece<kChannels>& x,
                                 const float (&b)[kChannels], float factor,
                                 float (&y)[kChannels]) {
#pragma unroll
  for (int i = 0; i < kChannels / 2; ++i) {
    y[2 * i] = LowFloat(x.pairs[i]) * factor * Exp2(b[2 * i]);
    y[2 * i + 1] = HighFloat(x.pairs[i]) * factor * Exp2(b[2 * i + 1]);
  }
}

// The shift of a channel's keys, from its decay in the chunk.
__device__ inline float KeyShift(float log_decay) {
  return IsSteep(log_decay) ? log_decay : 0;
}

// x e^(shift - b).
template <int kChannels>
__device__ inline void GateKey(const Bf16Piece<kChannels>& x,
                               const float (&b)[kChannels],
                               const float (&shift)[kChannels],
                               float (&y)[kChannels]) {
#pragma unroll
  for (int i = 0; i < kChannels / 2; ++i) {
    y[2 * i] = LowFloat(x.pairs[i]) * Exp2(shift[2 * i] - b[2 * i]);
    y[2 * i + 1] =
        HighFloat(x.pairs[i]) * Exp2(shift[2 * i + 1] - b[2 * i + 1]);
  }
}

// Adds the products of x and y.
template <int kChannels>
__device__ inline float Dot(const Bf16Piece<kChannels>& x,
                            const Bf16Piece<kChannels>& y) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kChannels / 2; ++i) {
    sum = fmaf(LowFloat(x.pairs[i]), LowFloat(y.pairs[i]), sum);
    sum = fmaf(HighFloat(x.pairs[i]), HighFloat(y.pairs[i]), sum);
  }
  return sum;
}

// Whether a lane is one of the kRows of kLanes that store in StoreRowSums.
template <int kLanes, int kRows>
__device__ inline bool HasRowSum() {
  return threadIdx.x % (kLanes / kRows) == 0;
}

// Adds up each of a lane's kRows rows over the kLanes lanes that have the same
// rows, and stores the sums at to[row].
template <int kLanes, int kRows>
__device__ inline void StoreRowSums(float (&sums)[kRows], float* to) {
  static_assert(kRows <= kLanes);
  const int lane = threadIdx.x % kLanes;
  int row = 0, distance = kLanes;
  // Each step halves the lanes that have a row, and the rows of a lane.
#pragma unroll
  for (int rows = kRows / 2; rows >= 1; rows /= 2) {
    distance /= 2;
    const bool upper = lane & distance;
#pragma unroll
    for (int i = 0; i < rows; ++i) {
      const float kept = upper ? sums[i + rows] : sums[i];
      const float sent = upper ? sums[i] : sums[i + rows];
      sums[i] = kept + __shfl_xor_sync(0xffffffff, sent, distance);
    }
    if (upper) row += rows;
  }
#pragma unroll
  for (distance /= 2; distance >= 1; distance /= 2) {
    sums[0] += __shfl_xor_sync(0xffffffff, sums[0], distance);
  }
  if (HasRowSum<kLanes, kRows>()) to[row] = sums[0];
}

template <int kChannels>
__device__ inline Bf16Piece<kChannels> Round(const float (&x)[kChannels]) {
  Bf16Piece<kChannels> y;
#pragma unroll
  for (int i = 0; i < kChannels / 2; ++i) {
    y.pairs[i] = PackBf16(x[2 * i], x[2 * i + 1]);
  }
  return y;
}
// What rounding left out, itself rounded.
template <int kChannels>
__device__ inline Bf16Piece<kChannels> RoundRest(
    const float (&x)[kChannels], const Bf16Piece<kChannels>& rounded) {
  float rest[kChannels];
#pragma unroll
  for (int i = 0; i < kChannels / 2; ++i) {
    rest[2 * i] = x[2 * i] - LowFloat(rounded.pairs[i]);
    rest[2 * i + 1] = x[2 * i + 1] - HighFloat(rounded.pairs[i]);
  }
  return Round(rest);
}

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GATING_CUH_
