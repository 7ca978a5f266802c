// Steep channels (chunk_gla_sm90.cuh), eight at a time, from global memory:
// what their terms are formed from, one by one and in float32.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_STEEP_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_STEEP_CUH_

#include "kernels/gla/chunk_gla_sm90.cuh"

namespace gla::internal {

struct alignas(16) SteepChannels {
  float b[8][kChunk];  // cumulative gates in powers of two
  __nv_bfloat16 q[8][kChunk];
  __nv_bfloat16 k[8][kChunk];
};

// Where two warpgroups meet while they add terms of steep channels: all 256
// threads, and the 128 that load the channels. (Not named barriers: where some
// warps meet at one and others at another, racecheck sees races.)
struct SteepMeetings {
  uint64_t all, loaders;

  __device__ void Init() {
    BarrierInit(SharedAddress(&all), 256);
    BarrierInit(SharedAddress(&loaders), 128);
  }
};

struct NoSteepMeetings {};

// Fills `channels`, by the 128 threads of a warpgroup, but with gates that are
// not cumulative yet. Thread 2 t + i has token t and channels 4 i .. 4 i + 3;
// `offset` is where the first of the eight channels of its token is, in a
// [B, T, H, K] tensor. Tokens past the sequence are not `valid` and become
// zeros.
template <typename Gate, typename Args>
__device__ inline void LoadSteepChannels(const Args& args, int thread,
                                         bool valid, int64_t offset,
                                         SteepChannels& channels) {
  const int t = thread / 2;
  const __nv_bfloat16 zero = __ushort_as_bfloat16(0);
#pragma unroll 1
  for (int c = thread % 2 * 4; c < thread % 2 * 4 + 4; ++c) {
    const float g =
        static_cast<float>(static_cast<const Gate*>(args.g)[offset + c]);
    channels.b[c][t] = valid ? fmaxf(g, kMinLogGate) * kLog2E : 0;
    channels.q[c][t] = valid ? args.q[offset + c] : zero;
    channels.k[c][t] = valid ? args.k[offset + c] : zero;
  }
}

// Gates to cumulative gates: 16 lanes a channel, four tokens a lane.
__device__ inline void AccumulateGates(int thread, SteepChannels& channels) {
  float4& b =
      *reinterpret_cast<float4*>(&channels.b[thread / 16][thread % 16 * 4]);
  float4 sum = b;
  sum.y += sum.x;
  sum.z += sum.y;
  sum.w += sum.z;
  float before = sum.w;
#pragma unroll
  for (int offset = 1; offset < 16; offset *= 2) {
    const float other = __shfl_up_sync(0xffffffff, before, offset, 16);
    if (thread % 16 >= offset) before += other;
  }
  before -= sum.w;
  b = {sum.x + before, sum.y + before, sum.z + before, sum.w + before};
}

// Adds the terms q k e^(b_t - b_u) of channel `c` to a thread's elements of a
// chunk's scores, in wgmma's order from (row, column) on. Rows are queries and
// columns keys, or the other way round if kReverse.
template <bool kReverse, int kSize>
__device__ inline void AddSteepTerms(const SteepChannels& channels, int c,
                                     float scale, int row, int column,
                                     float (&p)[kSize]) {
  const float* const b = channels.b[c];
  const __nv_bfloat16* const row_value =
      kReverse ? channels.k[c] : channels.q[c];
  const __nv_bfloat16* const column_value =
      kReverse ? channels.q[c] : channels.k[c];
#pragma unroll
  for (int e = 0; e < kSize; ++e) {
    const int i = row + e / 2 % 2 * 8, j = column + e / 4 * 8 + e % 2;
    if (kReverse ? j < i : i < j) continue;
    const float difference = kReverse ? b[j] - b[i] : b[i] - b[j];
    p[e] += scale * __bfloat162float(row_value[i]) *
            __bfloat162float(column_value[j]) * Exp2(difference);
  }
}

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_STEEP_CUH_
