// Shared by the tuned chunk GLA kernels: which rows a block works on, where
// what is kept of chunks and segments lies, and the gated operands of a chunk.
//
// Operands (of all but the gradient kernel, chunk_gla_sm90_grad_shared.cuh).
// With b_t the cumulative log gate of a channel in its chunk and B = b_last, a
// channel is *mild* when B >= -kMaxLog2Decay (in powers of two):
//   q~ = scale q e^b,   k^ = k e^-b,    S_end = e^B (S_start + k^^T v),
// and its score terms are q~ k^. Otherwise it is *steep*: k^ would leave the
// range where float32 sums are safe, so
//   q~ = scale q e^b,   k^ = k e^(B-b), S_end = e^B S_start + k^^T v,
// every factor <= 1, and its score terms are formed one by one (AddSteepTerms).
// `edge` and `mid` hold e^B and 1 of a mild channel, 1 and e^B of a steep one:
// the state is scaled by `mid` before a chunk's update and by `edge` after it.
// Where scores come ready (HasOperands), the state's keys are k' = k e^(B-b) in
// all channels, so `mid` is e^B and there is no `edge`.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_CUH_

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/device/async_sm90.cuh"
#include "kernels/device/wgmma_sm90.cuh"
#include "kernels/gla/chunk_gla_sm90.h"

namespace gla::internal {

inline constexpr float kMaxLog2Decay = 86;  // 59.6 nats
inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kMinLogGate = -120;  // e^-120 is 0 in float32

// Factors of a slab's 64 channels, in the order of accumulator columns: channel
// 8 j + 2 i + e is [i][2 j + e]. A head's channel is so in its slab's.
using SlabFactors = float[4][20];
__device__ inline int FactorRow(int channel) { return channel % 8 / 2; }
__device__ inline int FactorColumn(int channel) {
  return channel % 64 / 8 * 2 + channel % 2;
}

// Masked scores, rows queries, columns keys (kScoreBytes): the half slab of the
// chunk's first 32 keys and, behind it, rows 32 to 63 of the other keys' half:
// earlier queries have none of these.
inline constexpr int kEarlyScoreBytes = kHalfSlabBytes;
inline constexpr int kLateScoreBytes = kHalfSlabBytes / 2;
static_assert(kEarlyScoreBytes + kLateScoreBytes == kScoreBytes);

// Copied as a whole.
struct alignas(16) SlabMid {
  SlabFactors mid;
};
struct SlabDecay : SlabMid {
  SlabFactors edge;
  int32_t any_steep;
  int32_t unused[3];
};

// What the state pass needs of a chunk of a head, as slabs in the form in which
// they lie in shared memory.
template <int K>
struct alignas(128) ChunkOperands {
  uint8_t q[K / 64][kSlabBytes];  // q~; rows are tokens, columns 64 channels
  uint8_t k[K / 64][kSlabBytes];  // k'
  uint8_t scores[kScoreBytes];    // masked
  SlabMid decay[K / 64];
  float own_rest[kChunk];  // what rounding left out of the diagonal of `scores`
};

// Rows of one sequence: [first, first + length) of the B T rows.
struct SequenceRows {
  int64_t first;
  int length;

  __device__ int chunks() const { return (length + kChunk - 1) / kChunk; }
};

__device__ inline SequenceRows FindSequence(const int32_t* cu_seqlens,
                                            int64_t T, int n) {
  if (cu_seqlens == nullptr) return {n * T, static_cast<int>(T)};
  return {cu_seqlens[n], cu_seqlens[n + 1] - cu_seqlens[n]};
}

// Where a sequence's first part of kTokens tokens is among all slots for such
// parts. Sequences leave gaps, so that no prefix sum over lengths is needed.
template <int kTokens>
__device__ int64_t FirstSlot(const int32_t* cu_seqlens, int64_t T, int n) {
  if (cu_seqlens == nullptr) {
    return int64_t{n} * ((static_cast<int>(T) + kTokens - 1) / kTokens);
  }
  return cu_seqlens[n] / kTokens + n;
}

// Which sequence such a slot belongs to: the last one whose first slot is not
// after it. The slot may be one that no sequence uses.
template <int kTokens>
__device__ int FindSequenceOfSlot(const int32_t* cu_seqlens, int64_t T,
                                  int64_t N, int64_t slot) {
  if (cu_seqlens == nullptr) {
    const int slots = max(FirstSlot<kTokens>(nullptr, T, 1), int64_t{1});
    return min(static_cast<int>(slot) / slots, static_cast<int>(N) - 1);
  }
  int low = 0, high = N - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (FirstSlot<kTokens>(cu_seqlens, T, middle) <= slot) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// Where a chunk's are (ScanArgs::own_scores).
template <typename T>
__device__ inline T* OwnScores(T* own_scores, const ChunkGlaShape& shape,
                               int64_t chunk_slot, int h) {
  return own_scores + (chunk_slot * shape.H + h) * kChunk;
}

// Where the parts of a chunk's are (ScanArgs::scores).
__device__ inline auto Scores(const ScanArgs& args, int64_t chunk_slot, int h) {
  return args.scores[chunk_slot * args.shape.H + h];
}

// A row of a 64-column accumulator, rounded, to a slab in global memory: a
// thread's word m is columns 8 (first + m) + 2 (lane % 4) + {0, 1}.
__device__ inline void StoreRowWords(uint8_t* slab, int row, int first,
                                     uint32_t (&words)[4]) {
  TransposeQuad(words);
  *reinterpret_cast<uint4*>(
      slab + SlabOffset(row, first + static_cast<int>(threadIdx.x % 4))) =
      make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline void StoreShared32(uint32_t address, uint32_t value) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
__device__ inline uint4 LoadShared128(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_CUH_
