// What the roles of the gradient kernel share: configuration, shared memory,
// work. chunk_gla_sm90_grad.cuh says how they work together.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_SHARED_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_SHARED_CUH_

#include "kernels/device/tensor_map_sm90.h"
#include "kernels/gla/chunk_gla_sm90.cuh"
#include "kernels/gla/chunk_gla_sm90_steep.cuh"

namespace gla::internal {

template <int kK, int kV, typename GateT>
struct GradConfig {
  static constexpr int K = kK;
  static constexpr int V = kV;
  using Gate = GateT;
  static constexpr int kSlices = K / 64;   // blocks a head
  static constexpr int kBlocks = V / 128;  // steps of 64 values a warpgroup
  static constexpr int kStages = 4;  // at least kSegmentChunks, see LoadRaw
  static constexpr int kThreads = 384;
  static constexpr int kMainRegisters = 216;
  static constexpr int kLoadRegisters = 72;
};

struct GradParams {
  GradArgs args;
  CUtensorMap d_o, v;   // [B T, H V]; boxes 64 x 64
  CUtensorMap q, k, g;  // [B T, H K]; boxes 64 x 64
};

// Cumulative gates of mild channels as 16-bit integers, -512 b.
inline constexpr float kLogUnits = 512;

// What a block works on.
struct GradWork {
  SequenceRows rows;
  int h, slice;
  int64_t slot;
  int first_chunk, chunks;
};

template <typename C>
struct GradShared {
  uint8_t q[kSegmentChunks][kSlabBytes];    // q~
  uint8_t k[kSegmentChunks][kSlabBytes];    // k^
  uint8_t b[kSegmentChunks][kSlabBytes];    // kLogUnits
  uint8_t d_a[kSegmentChunks][kSlabBytes];  // dA, rows are queries
  struct Step {
    uint8_t d_o[kSlabBytes];
    uint8_t v[kSlabBytes];
  };
  Step step[C::kStages];
  uint8_t exchange[2][kSlabBytes];  // to warpgroup; then where it transposes
  float totals[kSegmentChunks][2][64];  // gates added up, halves of a chunk
  float decay[kSegmentChunks][64];      // e^B
  uint8_t steep[kSegmentChunks][64];
  int32_t any_steep[kSegmentChunks];
  float flow[2][64];         // by warpgroup: halves of <S_T, dS_T>
  float sums[2][64];         // by warpgroup: of a half chunk's dg terms
  SteepChannels channel[2];  // [warpgroup] (AddSteep)
  uint64_t full[C::kStages];
  uint64_t empty[C::kStages];
  uint64_t raw_full[kSegmentChunks];
  uint64_t scored[kSegmentChunks];
  GradWork work;
};

// The segment of a slot: the last sequence whose first segment is not after it.
// False for slots that no segment uses.
template <typename C>
__device__ bool FindSegment(const GradArgs& args, GradWork* w) {
  const int H = args.shape.H;
  w->slice = blockIdx.x % C::kSlices;
  w->h = blockIdx.x / C::kSlices % H;
  w->slot = blockIdx.x / C::kSlices / H;
  int low = 0, high = args.shape.N - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (FirstSegment(args.cu_seqlens, args.shape.T, middle) <= w->slot) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  w->rows = FindSequence(args.cu_seqlens, args.shape.T, low);
  const int64_t first = FirstSegment(args.cu_seqlens, args.shape.T, low);
  w->first_chunk = (w->slot - first) * kSegmentChunks;
  w->chunks = min(kSegmentChunks, w->rows.chunks() - w->first_chunk);
  return w->chunks > 0;
}

inline constexpr int kMainBarrier = 1;   // both main warpgroups
inline constexpr int kGroupBarrier = 2;  // and 3: one a main warpgroup
inline constexpr int kAllBarrier = 4;

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_SHARED_CUH_
