// What the roles of the gradient kernel share: configuration, shared memory,
// work. chunk_gla_sm90_grad.cuh says how they work together.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_SHARED_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_SHARED_CUH_

#include "kernels/device/tensor_map_sm90.h"
#include "kernels/gla/chunk_gla_sm90.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_finish.cuh"

namespace gla::internal {

static_assert(kSegmentChunks == 3, "the gradient kernel's products");
static_assert(kMultiprocessors % 2 == 0, "its clusters of two blocks");

template <int kK, int kV, typename GateT>
struct GradConfig {
  static constexpr int K = kK;
  static constexpr int V = kV;
  using Gate = GateT;
  static constexpr int kSlices = K / 64;
  static constexpr int kCluster = 2;  // blocks, which share d_o, v and dA
  static constexpr int kValues = 32;  // of a step
  static constexpr int kSteps = V / kValues;
  // Whether the stored dS has been scaled by its chunk's edge.
  static constexpr bool kHasEdge = !HasOperands(K);
  static constexpr int kStages = 3;
  static constexpr int kThreads = 128 * (kSegmentChunks + 2);
  // Registers of a thread; the warpgroups share 480, and the main ones keep the
  // 96 that all start with.
  static constexpr int kScoreRegisters = 136;
  static constexpr int kGateRegisters = 56;
};

struct GradParams {
  GradArgs args;
  int items;           // of all clusters: two slices side by side each
  CUtensorMap d_o, v;  // [B T, H V]; boxes kSegment x kValues
  CUtensorMap q, k, g, dq, dk, d_g;  // [B T, H K]; boxes 64 x 64
  CUtensorMap states, d_states;      // [., 64]; boxes of kValues rows
};

// A block's slice, 64 channels, of a segment of a head.
struct GradWork {
  int64_t row;  // the segment's first of the B T
  int rows;     // 1 .. kSegment
  // Of the segment, and of its first chunk, among all.
  int64_t slot, chunk_slot;
  int h, slice;

  __device__ int RowsOf(int chunk) const { return rows - chunk * kChunk; }

  // Offset of a chunk's first channel in a [B, T, H, K] tensor.
  template <typename C>
  __device__ int64_t KeyOffset(int64_t H, int chunk) const {
    return ((row + chunk * kChunk) * H + h) * C::K + slice * 64;
  }
};

// This block's slices of its cluster's items, one after the other.
template <typename C>
class GradItems {
 public:
  __device__ GradItems() : item_(blockIdx.x / C::kCluster) {}

  __device__ bool Next(const GradParams& params, GradWork* work) {
    while (item_ < params.items) {
      const int item = item_;
      item_ += gridDim.x / C::kCluster;
      if (Find(params.args, item, work)) return true;
    }
    return false;
  }

 private:
  // False for slots that no segment uses.
  static __device__ bool Find(const GradArgs& args, int item, GradWork* w) {
    constexpr int kGroups = C::kSlices / C::kCluster;
    const int H = args.shape.H;
    const int64_t T = args.shape.T;
    w->slice = item % kGroups * C::kCluster + ClusterRank();
    w->h = item / kGroups % H;
    w->slot = item / kGroups / H;
    const int n =
        FindSequenceOfSlot<kSegment>(args.cu_seqlens, T, args.shape.N, w->slot);
    const SequenceRows rows = FindSequence(args.cu_seqlens, T, n);
    const int64_t before =
        (w->slot - FirstSlot<kSegment>(args.cu_seqlens, T, n)) * kSegment;
    w->chunk_slot = FirstSlot<kChunk>(args.cu_seqlens, T, n) + before / kChunk;
    w->row = rows.first + before;
    w->rows = min(int64_t{kSegment}, rows.length - before);
    return w->rows > 0;
  }

  int item_;
};

// Which of GradShared::d_a has the block of queries of chunk `c` and keys of
// chunk `key`.
__device__ inline int ScoreBlock(int c, int key) {
  return c * (c + 1) / 2 + key;
}

template <typename C>
struct GradShared {
  struct Gated {            // of a chunk
    uint8_t q[kSlabBytes];  // q~, then dq
    uint8_t k[kSlabBytes];  // k^, then dk
    uint8_t b[kSlabBytes];  // kLogUnits, then dg
  };
  // A step of kValues values. States are rows of their slabs.
  struct Stage {
    uint8_t d_o[kSegmentChunks][kSlabBytes / 2];  // half slabs
    uint8_t v[kSegmentChunks][kSlabBytes / 2];
    uint8_t state[kSlabBytes / 2];
    uint8_t d_state[kSlabBytes / 2];
  };
  static constexpr int kScoreBlocks = kSegmentChunks * (kSegmentChunks + 1) / 2;

  Gated gated[kSegmentChunks];
  // dA, rows are queries. A main warpgroup has the steep channels at work in
  // the place of one between two different chunks.
  uint8_t d_a[kScoreBlocks][kSlabBytes];
  Stage stage[C::kStages];
  float log_decay[kSegmentChunks][64];  // B
  float flow[4][64];                    // <S, D>, in four parts
  // Of each chunk: what its keys add to the flow out of the segment, and the
  // sum of its terms of dg.
  float key_flow[kSegmentChunks][64];
  float terms[kSegmentChunks][64];
  GradWork work;  // the item that is gated
  bool has_next;  // whether the block has another
  int32_t any_steep[kSegmentChunks];
  uint64_t full[C::kStages];
  uint64_t empty[C::kStages];
  uint64_t raw_full[kSegmentChunks];
  uint64_t keys_finished[kSegmentChunks], finished[kSegmentChunks];
  uint64_t gated_full, scored, can_score, sent;

  // Of a chunk's main warpgroup.
  __device__ SteepChannels& steep(int chunk) {
    const int block = chunk == 0 ? ScoreBlock(1, 0) : ScoreBlock(2, chunk - 1);
    return *reinterpret_cast<SteepChannels*>(d_a[block]);
  }
};
static_assert(sizeof(SteepChannels) <= kSlabBytes);

// A number that the compiler does not know. What it derives from one that it
// knows it finds ahead, for all items, and keeps in local memory, which has
// long left the cache when it is needed.
__device__ inline int Opaque(int i) {
  asm volatile("" : "+r"(i));
  return i;
}

// Named barriers.
inline constexpr int kGradScoreBarrier = 1;
inline constexpr int kGradMainBarrier = 2;
inline constexpr int kGradSteepBarrier = 3;  // to 5: one a main warpgroup
inline constexpr int kGradLastStepBarrier = 6;

// Steps are counted over all items.
template <typename C>
__device__ uint32_t StepParity(int step) {
  return step / C::kStages & 1;
}

// A warp is done with a step's stage: tells the loaders of the cluster.
template <typename C>
__device__ void ReleaseStep(GradShared<C>& shared, int step) {
  __syncwarp();
  const int lane = threadIdx.x % 32;
  if (lane < C::kCluster) {
    ClusterBarrierArrive(
        ClusterAddress(SharedAddress(&shared.empty[step % C::kStages]), lane));
  }
}

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_SHARED_CUH_
