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
  // So who has loaded an item's last step knows that all have begun with it
  // (`known`, `told`).
  static_assert(kSteps > kStages);
  static constexpr int kThreads = 128 * (kSegmentChunks + 2);
  // Registers of a thread; the warpgroups share 480, and the main ones keep the
  // 96 that all start with.
  static constexpr int kScoreRegisters = 128;
  static constexpr int kKeyRegisters = 64;
};

struct GradParams {
  GradArgs args;
  int items;           // of all clusters: two slices side by side each
  int rehearsing;      // clusters that begin with an item without rows
  CUtensorMap d_o, v;  // [B T, H V]; boxes kSegment x kValues
  CUtensorMap q, k, g, dq, dk, d_g;  // [B T, H K]; boxes 64 x 64
  CUtensorMap states, d_states;      // [., 64]; boxes of kValues rows
};

// Operands are fp16, which has not the range of their decays. So each has a
// reference, the token before its part, 16 tokens, or that before its chunk if
// the chunk is *gentle*, no channel below 2^-kMaxGentleDecay; and the operands
// of a channel and reference are scaled so that the largest could be 2^15. What
// is decayed by 2^-28 is 2^-13 then, and fp16 keeps all its bits down to 2^-14:
// numbers that are far below the channel's largest lose some where decays are
// near the limit.
inline constexpr int kMaxGentleDecay = 20;
inline constexpr int kMaxPartDecay = 28;
// Scales are powers of two, and no larger than these: what is smaller still
// may be lost, but accumulators, scaled like both, stay in range (if two scales
// in a row are not further apart than kMaxFactor).
inline constexpr int kMaxOperandExponent = 30;
inline constexpr int kMaxScoreExponent = 60;
inline constexpr float kMaxFactor = 126;

__device__ inline bool IsSteepPart(float log_decay) {
  return log_decay < -kMaxPartDecay;
}

// Of a part and a channel, in powers of two.
struct alignas(8) PartGates {
  float decay;         // from this reference to the next one
  uint32_t exponents;  // of q~ and k^, plus kExponentBias, 16 bits each

  static constexpr int kExponentBias = 127;

  __device__ float QueryExponent() const { return Exponent(0x7610); }
  __device__ float KeyExponent() const { return Exponent(0x7632); }
  __device__ bool IsSteep() const { return IsSteepPart(decay); }
  // What of the decay is applied after and before the part's own terms, as
  // `edge` and `mid` of a chunk (chunk_gla_sm90.cuh).
  __device__ float Edge() const { return IsSteep() ? 0 : decay; }
  __device__ float Mid() const { return IsSteep() ? decay : 0; }

 private:
  // One of them, which a byte_perm finds.
  __device__ float Exponent(int half) const {
    constexpr uint32_t kIntegers = 0x4b000000;  // 2^23: bits below are integers
    return __uint_as_float(__byte_perm(exponents, kIntegers, half)) -
           ((1 << 23) + kExponentBias);
  }
};

// The Scaling of GradFinish and GradSteep.
struct ScaledParts {
  static constexpr bool kScaled = true;
  static constexpr bool kOwnApart = false;
  static constexpr bool kHasRest = false;
  static constexpr int kTokens = kPartTokens;
  static constexpr int kLogUnits = 2048;

  const PartGates (&gates)[kChunkParts][64];  // of the chunk
  const GradThread& thread;
  const float& score_exponent;  // of the chunk's dA, once it is there

  static __device__ float2 Unpack(uint32_t pair) {
    return __half22float2(reinterpret_cast<const __half2&>(pair));
  }
  static __device__ float Unpack(uint16_t x) {
    return __half2float(__ushort_as_half(x));
  }
  __device__ float ScoreScale() const { return Exp2(-score_exponent); }
  __device__ PartScale Part(int part, int row) const {
    const PartGates own = gates[part][thread.Channel(row)];
    const float q = own.QueryExponent(), k = own.KeyExponent();
    return {.dq = k + score_exponent,
            .dk = q + score_exponent,
            .term = Exp2(-(q + k + score_exponent)),
            .steep = own.IsSteep()};
  }
};

// A block's slice, 64 channels, of a segment of a head.
struct GradWork {
  int64_t row;  // the segment's first of the B T
  // 1 .. kSegment; 0: a rehearsal, or a slot that no segment uses; -1: there is
  // no such item
  int rows;
  // Of the segment, and of its first chunk, among all.
  int64_t slot, chunk_slot;
  int h, slice;
  bool is_first, is_last;  // of the sequence

  __device__ int RowsOf(int chunk) const { return rows - chunk * kChunk; }

  // Offset of a chunk's first channel in a [B, T, H, K] tensor.
  template <typename C>
  __device__ int64_t KeyOffset(int64_t H, int chunk) const {
    return ((row + chunk * kChunk) * H + h) * C::K + slice * 64;
  }
};

// What the block has to do of an item.
template <typename C>
__device__ GradWork FindGradWork(const GradParams& params, int item) {
  GradWork w;
  w.rows = -1;
  if (item >= params.items) return w;
  const GradArgs& args = params.args;
  constexpr int kGroups = C::kSlices / C::kCluster;
  const int H = args.shape.H;
  const int64_t T = args.shape.T;
  w.slice = item % kGroups * C::kCluster + ClusterRank();
  w.h = item / kGroups % H;
  w.slot = item / kGroups / H;
  const int n =
      FindSequenceOfSlot<kSegment>(args.cu_seqlens, T, args.shape.N, w.slot);
  const SequenceRows rows = FindSequence(args.cu_seqlens, T, n);
  const int64_t before =
      (w.slot - FirstSlot<kSegment>(args.cu_seqlens, T, n)) * kSegment;
  w.chunk_slot = FirstSlot<kChunk>(args.cu_seqlens, T, n) + before / kChunk;
  w.row = rows.first + before;
  w.rows = min(int64_t{kSegment}, max(rows.length - before, int64_t{0}));
  w.is_first = before == 0;
  w.is_last = before + kSegment >= rows.length;
  return w;
}

// Which of GradShared::d_a has the block of queries of chunk `c` and keys of
// chunk `key`.
__device__ inline int ScoreBlock(int c, int key) {
  return c + (c == 2) + key;  // c (c + 1) / 2 + key
}

template <typename C>
struct GradShared {
  struct Keys {             // of a chunk
    uint8_t q[kSlabBytes];  // q~, then dq
    uint8_t k[kSlabBytes];  // k^, then dk
  };
  // A step of kValues values. States are rows of their slabs.
  struct Stage {
    uint8_t d_o[kSegmentChunks][kSlabBytes / 2];  // half slabs
    uint8_t v[kSegmentChunks][kSlabBytes / 2];
    uint8_t state[kSlabBytes / 2];
    uint8_t d_state[kSlabBytes / 2];
  };
  static constexpr int kScoreBlocks = kSegmentChunks * (kSegmentChunks + 1) / 2;

  // An item's operands have one half, dA the other; once nobody needs dA, the
  // next item's q and k are loaded in its place. (dA's rows are queries. A main
  // warpgroup has the steep channels at work in the place of a block between
  // two different chunks.)
  union Half {
    Keys keys[kSegmentChunks];
    uint8_t d_a[kScoreBlocks][kSlabBytes];
  };
  Half half[2];
  uint8_t gates[kSegmentChunks][kSlabBytes];  // LogUnits, then dg
  Stage stage[C::kStages];
  // What dA is scaled by, in powers of two: [0] of a block. (16 bytes each, to
  // be copied like it.)
  alignas(16) float score_exponent[kScoreBlocks][4];
  alignas(16) float most_score[3][4];  // of the blocks that are formed here, by
                                       // warps
  alignas(16) PartGates parts[kSegmentChunks][kChunkParts][64];
  float log_decay[kSegmentChunks][64];  // B, as the forward pass left it
  float flow[4][64];                    // <S, D>, in four parts
  // Of each chunk: what its keys add to the flow out of the segment, and the
  // sum of its terms of dg.
  float key_flow[kSegmentChunks][64];
  float terms[kSegmentChunks][64];
  // The last items' and the next one's: three, and one more for the mask.
  GradWork works[4];
  // [0]: the cluster's next item. (16 bytes, to be copied.)
  alignas(16) int next_item[4];
  int32_t any_steep[kSegmentChunks];
  int32_t is_gentle[kSegmentChunks];
  uint64_t full[C::kStages];
  uint64_t empty[C::kStages];
  uint64_t keys_full[kSegmentChunks], gates_full[kSegmentChunks];
  uint64_t keys_finished[kSegmentChunks], gates_finished[kSegmentChunks];
  uint64_t gated_full, scored, can_score, sent, keys_free;
  uint64_t steep_meeting[kSegmentChunks];  // of a main warpgroup
  uint64_t known[2], told;

  // Of item n.
  __device__ GradWork& work(int n) { return works[n & 3]; }
  // Waits until it is known; whether there is one.
  __device__ bool HasItem(int n) {
    BarrierWait(SharedAddress(&known[n & 1]), n / 2 & 1);
    return work(n).rows >= 0;
  }
  __device__ Keys& keys(int n, int chunk) { return half[n & 1].keys[chunk]; }
  // Where g is loaded: in the place of the last item's dq.
  __device__ uint8_t (&raw_gates(int n, int chunk))[kSlabBytes] {
    return half[~n & 1].keys[chunk].q;
  }
  __device__ uint8_t (&d_a(int n, int block))[kSlabBytes] {
    return half[~n & 1].d_a[block];
  }
  // Of a chunk's main warpgroup.
  __device__ SteepChannels& steep(int n, int chunk) {
    const int block = chunk == 0 ? ScoreBlock(1, 0) : ScoreBlock(2, chunk - 1);
    return *reinterpret_cast<SteepChannels*>(d_a(n, block));
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
inline constexpr int kGradLastStepBarrier = 3;

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
