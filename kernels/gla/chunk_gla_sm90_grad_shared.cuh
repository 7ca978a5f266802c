// What the roles of the gradient kernel share: configuration, shared memory,
// work. chunk_gla_sm90_grad.cuh says how they work together.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_SHARED_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_SHARED_CUH_

#include "kernels/device/tensor_map_sm90.h"
#include "kernels/gla/chunk_gla_sm90.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_finish.cuh"

namespace gla::internal {

static_assert(kSegmentChunks == 2, "the gradient kernel's products");

template <int kK, int kV, typename GateT>
struct GradConfig {
  static constexpr int K = kK;
  static constexpr int V = kV;
  using Gate = GateT;
  static constexpr int kMains = 2;  // main warpgroups
  static constexpr int kSlices = K / (64 * kMains);
  static constexpr int kValues = 32;  // of a step
  static constexpr int kSteps = V / kValues;
  // Whether the stored dS has been scaled by its chunk's edge.
  static constexpr bool kHasEdge = !HasOperands(K);
  static constexpr int kStages = 3;
  static constexpr int kThreads = 128 * (kMains + 2);
  // Registers of a thread; the warpgroups share 504.
  static constexpr int kMainRegisters = 160;
  static constexpr int kScoreRegisters = 128;
  static constexpr int kGateRegisters = 56;
};

struct GradParams {
  GradArgs args;
  int items;
  CUtensorMap d_o, v;                // [B T, H V]; boxes 128 x kValues
  CUtensorMap q, k, g, dq, dk, d_g;  // [B T, H K]; boxes 64 x 64
  CUtensorMap states, d_states;      // [., 64]; boxes of kValues rows
};

// A slice of 64 kMains channels of a segment of a head.
struct GradWork {
  int64_t row;  // the segment's first of the B T
  int rows;     // 1 .. kSegment
  int64_t slot;
  int h, slice;

  __device__ int RowsOf(int chunk) const { return rows - chunk * kChunk; }

  // Offset of a chunk's first channel of the slice's slab `slab` in a
  // [B, T, H, K] tensor.
  template <typename C>
  __device__ int64_t KeyOffset(int64_t H, int slab, int chunk) const {
    return ((row + chunk * kChunk) * H + h) * C::K +
           (slice * C::kMains + slab) * 64;
  }
};

// A block's items, one after the other.
template <typename C>
class GradItems {
 public:
  __device__ GradItems() : item_(blockIdx.x) {}

  __device__ bool Next(const GradParams& params, GradWork* work) {
    while (item_ < params.items) {
      const int item = item_;
      item_ += gridDim.x;
      if (Find(params.args, item, work)) return true;
    }
    return false;
  }

 private:
  // False for slots that no segment uses.
  static __device__ bool Find(const GradArgs& args, int item, GradWork* w) {
    const int H = args.shape.H;
    const int64_t T = args.shape.T;
    w->slice = item % C::kSlices;
    w->h = item / C::kSlices % H;
    w->slot = item / C::kSlices / H;
    const int n =
        FindSequenceOfSegment(args.cu_seqlens, T, args.shape.N, w->slot);
    const SequenceRows rows = FindSequence(args.cu_seqlens, T, n);
    const int64_t before =
        (w->slot - FirstSegment(args.cu_seqlens, T, n)) * kSegment;
    w->row = rows.first + before;
    w->rows = min(int64_t{kSegment}, rows.length - before);
    return w->rows > 0;
  }

  int item_;
};

// A step (GradShared::Stage) of a block's items. The next item is looked for
// half way through an item.
template <typename C>
struct GradCursor {
  GradItems<C> items;
  GradWork work, next;
  bool has_next;
  int step = C::kSteps - 1;  // of the item's kSteps

  __device__ explicit GradCursor(const GradParams& params)
      : has_next(items.Next(params, &next)) {}

  __device__ bool Next(const GradParams& params) {
    if (step + 1 < C::kSteps) {
      ++step;
      if (step == C::kSteps / 2) has_next = items.Next(params, &next);
      return true;
    }
    if (!has_next) return false;
    work = next;
    step = 0;
    return true;
  }
};

template <typename C>
struct GradShared {
  struct Gated {                            // 64 channels; [chunk]
    uint8_t q[kSegmentChunks][kSlabBytes];  // q~, then dq
    uint8_t k[kSegmentChunks][kSlabBytes];  // k^, then dk
    uint8_t b[kSegmentChunks][kSlabBytes];  // kLogUnits, then dg
  };
  // A step of kValues values. States are rows of their slabs.
  struct Stage {
    uint8_t d_o[kSegmentChunks][kSlabBytes / 2];  // half slabs
    uint8_t v[kSegmentChunks][kSlabBytes / 2];
    uint8_t state[C::kMains][kSlabBytes / 2];
    uint8_t d_state[C::kMains][kSlabBytes / 2];
  };
  Gated gated[C::kMains];
  // dA of chunks (0, 0), (1, 0), (1, 1), rows are queries.
  uint8_t d_a[3][kSlabBytes];
  Stage stage[C::kStages];
  float log_decay[kSegmentChunks][C::kMains * 64];  // B
  float flow[C::kMains * 64];                       // <S, D>
  GradWork work;                                    // the item that is gated
  bool has_next;  // whether the block has another
  int32_t any_steep[C::kMains][kSegmentChunks];
  SteepChannels steep[C::kMains];
  uint64_t full[C::kStages];
  uint64_t empty[C::kStages];
  uint64_t raw_full[kSegmentChunks], finished[kSegmentChunks];
  uint64_t gated_full, scored;
  GradCursor<C> loads;  // of the thread that loads stages
};

// A number that the compiler does not know. What it derives from one that it
// knows it finds ahead, for all items, and keeps in local memory, which has
// long left the cache when it is needed.
__device__ inline int Opaque(int i) {
  asm volatile("" : "+r"(i));
  return i;
}

// Named barriers.
inline constexpr int kGradGateBarrier = 1;
inline constexpr int kGradMainBarrier = 2;  // and 3: one a main warpgroup

// Steps are counted over all items.
template <typename C>
__device__ uint32_t StepParity(int step) {
  return step / C::kStages & 1;
}

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_SHARED_CUH_
