// What the roles of the state pass share: configuration, shared memory, work.
// chunk_gla_sm90_scan.cuh says how they work together.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_SHARED_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_SHARED_CUH_

#include "kernels/device/tensor_map_sm90.h"
#include "kernels/gla/chunk_gla_sm90.cuh"
#include "kernels/gla/chunk_gla_sm90_steep.cuh"

namespace gla::internal {

template <int kK, int kV, bool kReverseTime, bool kWithOutput, typename GateT>
struct ScanConfig {
  static constexpr int K = kK;
  static constexpr int V = kV;
  static constexpr bool kReverse = kReverseTime;
  static constexpr bool kOutput = kWithOutput;  // or only the states
  using Gate = GateT;

  static constexpr int kSlabs = K / 64;
  static constexpr int kCluster = V / 128;
  static constexpr int kOwn = kSlabs / kCluster;  // slabs a block gates
  static constexpr int kStages = K == 256 || kOwn == 2 ? 2 : 3;
  static constexpr int kThreads = 384;
  // Registers of a thread; the three warpgroups share 504.
  static constexpr int kStateRegisters = K == 256 ? 216 : 176;
  static constexpr int kGateRegisters = K == 256 ? 72 : 152;
  static_assert(kOwn >= 1 && kOwn * kCluster == kSlabs);
};

// e^B and 1, or 1 and e^B, of a slab's 64 channels, in the order of accumulator
// columns: channel 8 j + 2 i + e is [i][2 j + e]. Copied between blocks as a
// whole.
struct alignas(16) SlabDecay {
  float edge[4][20];
  float mid[4][20];
  int32_t any_steep;
  int32_t unused[3];
};

template <typename C>
struct ScanShared {
  struct Stage {
    uint8_t a[C::kSlabs][kSlabBytes];
    uint8_t b[C::kSlabs][kSlabBytes];
    uint8_t x[2][kSlabBytes];  // a slab a state warpgroup
    uint8_t scores[kSlabBytes];
  };
  struct Raw {  // of one slab's channels, rows of 64
    __nv_bfloat16 q[kChunk][64];
    __nv_bfloat16 k[kChunk][64];
    typename C::Gate g[kChunk][64];
  };
  Stage stage[C::kStages];
  Raw raw[C::kOwn];
  SlabDecay decay[C::kStages][C::kSlabs];
  float totals[C::kOwn][4][64];  // log gates added up by each gate warp
  SteepChannels steep[2];        // [warpgroup]
  uint64_t full[C::kStages];
  uint64_t empty[C::kStages];
  uint64_t x_full[C::kStages];
  uint64_t scored[C::kStages];
  uint64_t q_full, k_full, g_full;  // of raw
};

// Named barriers.
inline constexpr int kGateBarrier = 1;
inline constexpr int kSteepBarrier = 2;  // and 3: one a state warpgroup
inline constexpr int kStoreBarrier = 4;  // and 5: one a state warpgroup

// The parity of the phase in which use number i of a ring is complete.
template <int kSize>
__device__ uint32_t Parity(int i) {
  return i / kSize & 1;
}

// The kernel's parameters. The tensors as [B T, H K] and [B T, H V] matrices;
// boxes are 64 x 64.
struct ScanParams {
  ScanArgs args;
  CUtensorMap q, k, g, x, y;
};

// What a block works on.
struct ScanWork {
  SequenceRows rows;
  int n, h, piece;
  int first_chunk;  // of the piece, in time
  int chunks;       // in the piece
  int64_t first_segment;
};

template <typename C>
__device__ ScanWork FindWork(const ScanArgs& args) {
  ScanWork w;
  const int cluster = blockIdx.x / C::kCluster;
  const int H = args.shape.H;
  w.piece = cluster % args.pieces;
  w.h = cluster / args.pieces % H;
  w.n = cluster / args.pieces / H;
  w.rows = FindSequence(args.cu_seqlens, args.shape.T, w.n);
  w.first_segment = FirstSegment(args.cu_seqlens, args.shape.T, w.n);
  const int all = w.rows.chunks();
  int per_piece = (all + args.pieces - 1) / args.pieces;
  if (args.pieces > 1) {
    per_piece =
        (per_piece + kSegmentChunks - 1) / kSegmentChunks * kSegmentChunks;
  }
  w.first_chunk = min(w.piece * per_piece, all);
  w.chunks = min(per_piece, all - w.first_chunk);
  return w;
}

// The chunk that step i of the pass works on.
template <typename C>
__device__ int ChunkAt(const ScanWork& w, int i) {
  return w.first_chunk + (C::kReverse ? w.chunks - 1 - i : i);
}

// Whether the key of a score is no later than its query.
template <typename C>
__device__ bool IsCausal(int row, int column) {
  return C::kReverse ? row <= column : column <= row;
}

// Whether any channel of a chunk is steep.
template <typename C>
__device__ bool HasSteep(const SlabDecay (&decay)[C::kSlabs]) {
  bool any = false;
#pragma unroll
  for (int s = 0; s < C::kSlabs; ++s) any |= decay[s].any_steep != 0;
  return any;
}

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_SHARED_CUH_
