// What the roles of the state pass share: configuration, shared memory, work.
// chunk_gla_sm90_scan.cuh says how they work together.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_SHARED_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_SHARED_CUH_

#include <type_traits>

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
  // Blocks of a cluster, which share gated operands. With 32-bit gates a block
  // has no room for half of 256 channels, and all of a head's blocks must be
  // one cluster: fewer of four than of two fit on a GPU.
  static constexpr int kCluster = V == 512 && sizeof(GateT) == 2 ? 2 : V / 128;
  static constexpr int kOwn = kSlabs / kCluster;  // slabs a block gates
  static constexpr int kStages = K == 256 || kOwn == 2 ? 2 : 3;
  // Whether k is loaded ahead of its stage, as q and g are; where there is no
  // room for that, it lands in the place of k^.
  static constexpr bool kAllAhead = K < 256;
  // Buffers of q (and k); of gates there are two.
  static constexpr int kRaws =
      K == 256 || (sizeof(GateT) == 4 && kOwn == 2) ? 1 : 2;
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
  };
  struct RawQuery {  // of one slab's channels, rows of 64
    __nv_bfloat16 q[kChunk][64];
  };
  struct RawAll : RawQuery {
    __nv_bfloat16 k[kChunk][64];
  };
  using Raw = std::conditional_t<C::kAllAhead, RawAll, RawQuery>;
  Stage stage[C::kStages];
  uint8_t scores[kSlabBytes];
  Raw raw[C::kRaws][C::kOwn];
  typename C::Gate g[2][C::kOwn][kChunk][64];
  SlabDecay decay[C::kStages][C::kSlabs];
  float totals[C::kOwn][4 / C::kOwn][64];  // gates that each warp has added up
  SteepChannels steep;
  uint64_t full[C::kStages];
  uint64_t empty[C::kStages];
  uint64_t x_full[C::kStages];
  uint64_t scored, scores_empty;
  uint64_t g_full[2];
  uint64_t raw_full[C::kRaws];  // q, perhaps k
  uint64_t k_full;
};

// Named barriers.
inline constexpr int kGateBarrier = 1;
inline constexpr int kSteepBarrier = 2;  // both state warpgroups
inline constexpr int kSteepLoadBarrier = 3;
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
  int first_value;  // of the block's 128
  int first_chunk;  // of the piece, in time
  int chunks;       // in the piece
  int64_t first_segment;
};

template <typename C>
__device__ ScanWork FindWork(const ScanArgs& args) {
  ScanWork w;
  constexpr int kBlocks = C::V / 128;  // a head
  w.first_value = blockIdx.x % kBlocks * 128;
  const int head = blockIdx.x / kBlocks;
  const int H = args.shape.H;
  w.piece = head % args.pieces;
  w.h = head / args.pieces % H;
  w.n = head / args.pieces / H;
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
