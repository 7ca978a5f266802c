// What the roles of the state pass share: configuration, shared memory, work.
// chunk_gla_sm90_scan.cuh says how they work together.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_SHARED_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_SHARED_CUH_

#include <type_traits>

#include "kernels/device/tensor_map_sm90.h"
#include "kernels/gla/chunk_gla_sm90.cuh"
#include "kernels/gla/chunk_gla_sm90_steep.cuh"

namespace gla::internal {

// GateT is the type of the gates; void if the operands come gated.
template <int kK, int kV, bool kReverseTime, bool kWithOutput, typename GateT,
          bool kKeepsScores = false>
struct ScanConfig {
  static constexpr int K = kK;
  static constexpr int V = kV;
  static constexpr bool kReverse = kReverseTime;
  static constexpr bool kOutput = kWithOutput;  // or only the states
  static constexpr bool kBeforeGradients = kReverse && kOutput;
  static constexpr bool kGates = !std::is_void_v<GateT>;
  // Whether gates are added up and scores formed here. If not, but operands are
  // gated here, the forward pass has left both.
  static constexpr bool kSums = kGates && !kReverse;
  static constexpr bool kFormsScores = kSums && kOutput;
  static constexpr bool kLoadsScores = kGates && kOutput && !kFormsScores;
  static constexpr bool kKeeps = kKeepsScores;  // for the reverse pass
  using Gate = std::conditional_t<kGates, GateT, float>;

  static constexpr int kSlabs = K / 64;
  static constexpr int kStateChunks = StateChunks(V);
  // Blocks of a cluster, which share gated operands.
  static constexpr int kCluster = V >= 256 ? 2 : 1;
  static constexpr int kOwn = kSlabs / kCluster;  // slabs a block provides
  // Where operands come gated, a stage without output holds half as much.
  static constexpr int kStages = !kGates && !kOutput        ? 4
                                 : kSlabs == 4 || kOwn == 2 ? 2
                                                            : 3;
  // Whether the keys of a sequence's last kRestTokens tokens have a second bf16
  // part, what rounding left of them, in the final state.
  static constexpr bool kKeyRests = kSums;
  static constexpr int kRestTokens = 16;
  static constexpr int kRestBytes = kRestTokens * 128;  // of a slab
  // The first keys of a chunk whose scores have a second part in y. (Forward,
  // heads of 256 values have the time for half of them, which has three
  // quarters of the scores.)
  static constexpr int kScoreRests = !kGates || !kOutput    ? 0
                                     : V == 128 || kReverse ? kChunk
                                                            : kChunk / 2;
  static constexpr int kScoreParts = kScoreRests > 0 ? 2 : 1;
  // Scores in shared memory: forward with zeros before the late half.
  static constexpr int kScoreTileBytes = kReverse ? kScoreBytes : kSlabBytes;
  // Whether what the state adds to y has second parts: of the state and of A,
  // for a chunk's last kARests rows.
  static constexpr bool kStateRests = kLoadsScores;
  static constexpr int kARests = kStateRests ? 16 : 0;
  // A chunk's first rows of which B has a second part.
  static constexpr int kBRests = kGates && kReverse && V == 256 ? 16 : 0;
  static constexpr int kRowRests = kARests + kBRests;
  static constexpr int kRowRestBuffers = 2;
  // After how many steps the first of what a step works on is written over:
  // its rests, or its stage. (A step waits for the next one's stage, so one
  // buffer of rests would not do.)
  static constexpr int kReuse = kRowRests > 0 ? kRowRestBuffers : kStages;
  // Buffers of q and k before gating: two, where there is room. Of gates there
  // are two.
  static constexpr int kRaws =
      sizeof(Gate) == 4 && (kOwn == 2 || (kScoreRests > 0 && V == 256)) ? 1 : 2;
  static constexpr int kGateWarps = 8;
  static constexpr int kThreads = 256 + (kGates ? 32 * kGateWarps : 128);
  // The thread that starts loads.
  static constexpr int kLoader = kGates ? kThreads - 32 : 256;
  // Whether what rounding left out of a token's score with itself is added.
  static constexpr bool kOwnRest = !kGates && kOutput && kReverse;
  // Whether x is an operand of the update as it lies in shared memory: products
  // from registers hold up their warp. y leaves from a place of its own then.
  static constexpr bool kUpdatesFromSlabs = !kGates;
  // Registers of a thread; the warpgroups share 512, or 504 if they are three.
  static constexpr int kStateRegisters = kGates ? 168 : 232;
  static constexpr int kOtherRegisters = kGates ? 88 : 40;
  // Arrivals on `full`: of the thread that loads or copies; and, of a slab that
  // is gated here, of the 16 lanes that store decays and, if they are formed,
  // of the 64 that store own scores. 4 kOwn lanes do both.
  static constexpr int kFullArrivals =
      1 + (kFormsScores ? kOwn * (80 - 4 * kOwn)
           : kGates     ? kOwn * 16
                        : 0);
  // Arrivals on `empty`: of the block's state threads, and of those that
  // multiply up decays; where operands are gated here also of the other block's
  // state warps.
  static constexpr int kEmptyArrivals = 256 + (kGates    ? 8 * (kCluster - 1)
                                               : kOutput ? 0
                                                         : 64);
  static_assert(kOwn >= 1 && kOwn * kCluster == kSlabs);
};

// Of the gate warps.
template <typename C>
struct GateBuffers {
  using Tile = __nv_bfloat16[kChunk][64];
  struct UpdateOnly {  // of one slab's channels
    Tile b;
  };
  struct WithOutput : UpdateOnly {
    Tile a;
  };
  using Raw = std::conditional_t<C::kOutput, WithOutput, UpdateOnly>;
  alignas(1024) Raw raw[C::kRaws][C::kOwn];
  typename C::Gate g[2][C::kOwn][kChunk][64];
  struct WarpSums {  // gates that each warp has added up
    float sums[C::kOwn][C::kGateWarps / C::kOwn][64];
  };
  struct PartSums {  // or, with each g, those of LogDecays
    float sums[2][C::kOwn][kChunkParts][64];
  };
  alignas(16) std::conditional_t<C::kSums, WarpSums, PartSums> sums;
};
struct NoGateBuffers {};

struct DecayAndScores : SlabDecay {
  float own_score[kChunk];  // q k^T of each token with itself, of the slab
};
// What comes with each slab of a stage.
template <typename C>
using StageDecay =
    std::conditional_t<C::kFormsScores, DecayAndScores,
                       std::conditional_t<C::kGates, SlabDecay, SlabMid>>;

// Second parts of a chunk's operands, rows of slabs: of B's first kBRests rows,
// then of A's last kARests.
template <typename C>
struct RowRests {
  alignas(1024) uint8_t slab[C::kRowRestBuffers][C::kSlabs][C::kRowRests * 128];
};
struct NoRowRests {};

// What rounding left out of tokens' scores with themselves, of a stage.
template <typename C>
struct OwnRests {
  alignas(16) float stage[C::kStages][kChunk];
};
struct NoOwnRests {};

// Second parts of a sequence's last keys (FirstRestRow), times `edge`, so that
// they can be added to the state behind the chunk: rows of slabs.
template <typename C>
struct KeyRests {
  alignas(1024) uint8_t slab[C::kSlabs][C::kRestBytes];
};
struct NoKeyRests {};

template <typename C>
struct ScanShared {
  struct UpdateStage {
    uint8_t b[C::kSlabs][kSlabBytes];
    uint8_t x[2][kSlabBytes];  // a slab a state warpgroup
  };
  struct OutputStage : UpdateStage {
    uint8_t a[C::kSlabs][kSlabBytes];
  };
  struct ApartStage : OutputStage {
    uint8_t y[2][kSlabBytes];
  };
  using Stage = std::conditional_t<
      !C::kOutput, UpdateStage,
      std::conditional_t<C::kUpdatesFromSlabs, ApartStage, OutputStage>>;
  Stage stage[C::kStages];
  union {
    // Of a stage if they come with it, else of the step's at work.
    uint8_t scores[C::kGates || !C::kOutput ? 1 : C::kStages][C::kScoreParts]
                  [C::kScoreTileBytes];
    SteepChannels steep;  // before scores are stored
  };
  std::conditional_t<C::kGates, GateBuffers<C>, NoGateBuffers> gates;
  std::conditional_t<(C::kRowRests > 0), RowRests<C>, NoRowRests> row_rests;
  StageDecay<C> decay[C::kStages][C::kSlabs];
  std::conditional_t<C::kOwnRest, OwnRests<C>, NoOwnRests> own_rest;
  uint64_t full[C::kStages];
  uint64_t empty[C::kStages];
  // Where operands come gated. `other_`: the other block's, as its loader
  // tells.
  uint64_t a_empty[C::kGates ? 1 : C::kStages];
  uint64_t other_empty[C::kGates ? 1 : C::kStages];
  uint64_t other_a_empty[C::kGates ? 1 : C::kStages];
  uint64_t x_full[C::kStages];
  uint64_t scored, scores_empty;
  uint64_t g_full[2];
  uint64_t raw_full[C::kRaws];
  uint64_t rests_full;
  std::conditional_t<C::kFormsScores, SteepMeetings, NoSteepMeetings> meetings;
  std::conditional_t<C::kKeyRests, KeyRests<C>, NoKeyRests> key_rests;
};

// Where scores of the later keys are in such a tile, behind zeros.
inline constexpr int kLateScores = kSlabBytes - kLateScoreBytes;

// Named barriers.
inline constexpr int kGateBarrier = 1;
inline constexpr int kStoreBarrier = 2;  // and 3: one a state warpgroup
inline constexpr int kMaskBarrier = 4;   // and 5: the same

// The parity of the phase in which use number i of a ring is complete.
template <int kSize>
__device__ uint32_t Parity(int i) {
  return i / kSize & 1;
}

// The kernel's parameters. The tensors as [B T, H K] and [B T, H V] matrices;
// boxes are 64 x 64.
struct ScanParams {
  ScanArgs args;
  CUtensorMap a, b, g, x, y;  // a and b before gating
};

// What a block works on.
struct ScanWork {
  SequenceRows rows;
  int n, h, piece;
  int first_value;  // of the block's 128
  int first_chunk;  // of the piece, in time
  int chunks;       // in the piece
  int silent;       // of these, in the order of the pass: only for the state
  // Of the sequence's first chunk, and first stored state, among all.
  int64_t chunk_slot, state_slot;
};

template <typename C>
__device__ ScanWork FindWork(const ScanArgs& args) {
  ScanWork w;
  constexpr int kBlocks = C::V / 128;  // a head
  w.first_value = blockIdx.x % kBlocks * 128;
  const int head = blockIdx.x / kBlocks;
  const int H = args.shape.H;
  // Nothing starts from the end of the pass's last piece.
  const int pieces = args.pieces - !C::kOutput;
  w.piece = head % pieces + (C::kReverse && !C::kOutput);
  w.h = head / pieces % H;
  w.n = head / pieces / H;
  // Back, first what the forward pass was at last: the L2 cache has some of it.
  if (C::kReverse) w.n = args.shape.N - 1 - w.n;
  w.rows = FindSequence(args.cu_seqlens, args.shape.T, w.n);
  w.chunk_slot = FirstSlot<kChunk>(args.cu_seqlens, args.shape.T, w.n);
  w.state_slot =
      FirstSlot<C::kStateChunks * kChunk>(args.cu_seqlens, args.shape.T, w.n);
  const int all = w.rows.chunks();
  w.silent = 0;
  if (args.pieces == 2) {
    // A chunk only for the state takes about half the time; less, back, or if
    // scores are stored.
    const bool less = C::kReverse || args.scores != nullptr;
    const int early = (2 * all + (less ? 0 : 2)) / 3;
    const bool catches_up = w.piece == (C::kReverse ? 0 : 1);
    w.chunks = catches_up ? all : early;
    w.silent = catches_up ? early : 0;
    w.first_chunk = C::kReverse ? all - w.chunks : 0;
    return w;
  }
  int per_piece = (all + args.pieces - 1) / args.pieces;
  if (args.pieces > 1) {
    per_piece = (per_piece + kPieceChunks - 1) / kPieceChunks * kPieceChunks;
  }
  w.first_chunk = min(w.piece * per_piece, all);
  w.chunks = min(per_piece, all - w.first_chunk);
  return w;
}

// Whether the pass ends in a state behind the sequence's last chunk that is
// used: then KeyRests are added to it.
template <typename C>
__device__ bool EndsInState(const ScanArgs& args, const ScanWork& w) {
  if (w.chunks == 0 || w.first_chunk + w.chunks < w.rows.chunks()) return false;
  return !C::kOutput ||
         (args.final_state != nullptr && w.piece == args.pieces - 1);
}
// The first row of that chunk that has a rest.
template <typename C>
__device__ int FirstRestRow(const ScanWork& w) {
  const int rows = w.rows.length - (w.rows.chunks() - 1) * kChunk;
  return max(rows - C::kRestTokens, 0);
}

// The chunk that step i of the pass works on.
template <typename C>
__device__ int ChunkAt(const ScanWork& w, int i) {
  return w.first_chunk + (C::kReverse ? w.chunks - 1 - i : i);
}

// Leaves out of a piece of which only the state at its end is wanted the chunks
// that this state does not remember: the decays behind them, multiplied up in
// float32, are 0 in every channel. (As ChainPieces multiplies what is before
// the piece by such a product.) By all threads of a block, where operands come
// gated.
template <typename C>
__device__ void LeaveOutForgotten(const ScanArgs& args, ScanWork& w) {
  static_assert(!C::kOutput && !C::kGates);
  constexpr int kBatch = 16;  // loads under way together
  // Where pieces are short looking costs more than it can save.
  if (w.chunks < 2 * kBatch) return;
  __shared__ int remembered;
  if (threadIdx.x == 0) remembered = 0;
  const int channel = threadIdx.x % C::K, slab = channel / 64;
  const int row = FactorRow(channel), column = FactorColumn(channel);
  const auto* const operands =
      static_cast<const ChunkOperands<C::K>*>(args.operands);
  float product = 1;
  int own = 0;  // chunks that this channel's state remembers
#pragma unroll 1
  for (int first = 0; first < w.chunks; first += kBatch) {
    float decay[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int chunk = ChunkAt<C>(w, max(w.chunks - 1 - first - j, 0));
      decay[j] = operands[(w.chunk_slot + chunk) * args.shape.H + w.h]
                     .decay[slab]
                     .mid[row][column];
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      own += product != 0;
      product *= decay[j];
    }
    if (!__syncthreads_or(product != 0)) break;
  }
  own = __reduce_max_sync(0xffffffff, own);
  if (threadIdx.x % 32 == 0) atomicMax(&remembered, own);
  __syncthreads();
  const int forgotten = max(w.chunks - remembered, 0);
  if (!C::kReverse) w.first_chunk += forgotten;
  w.chunks -= forgotten;
}

// Where a piece's decay goes, from the first channel of a slab on.
template <typename C>
__device__ float* PieceDecay(const ScanArgs& args, const ScanWork& w,
                             int slab) {
  const int64_t head = w.n * args.shape.H + w.h;
  return args.piece_decays + (head * args.pieces + w.piece) * C::K + slab * 64;
}

// Starts the load of step i's x; with B, x_full has been told what to expect.
template <typename C>
__device__ void LoadX(const ScanParams& params, const ScanWork& work,
                      ScanShared<C>& shared, int i) {
  const int stage = i % C::kStages;
  const uint32_t full = SharedAddress(&shared.x_full[stage]);
  if constexpr (C::kGates) BarrierArriveExpect(full, 2 * kSlabBytes);
  for (int group = 0; group < 2; ++group) {
    TensorLoad(SharedAddress(shared.stage[stage].x[group]), &params.x,
               work.h * C::V + work.first_value + group * 64,
               work.rows.first + ChunkAt<C>(work, i) * kChunk, full);
  }
}

// Whether the key of a score is no later than its query.
template <typename C>
__device__ bool IsCausal(int row, int column) {
  return C::kReverse ? row <= column : column <= row;
}

// Zeros for the earlier queries in scores of later keys, where scores are
// loaded forward. By all threads of the block.
template <typename C>
__device__ void ZeroBeforeLateScores(ScanShared<C>& shared) {
  for (auto& parts : shared.scores) {
    auto* const zeros =
        reinterpret_cast<uint4*>(&parts[0][kLateScores - kLateScoreBytes]);
    if (threadIdx.x < kLateScoreBytes / 16) zeros[threadIdx.x] = {};
  }
  FenceAsyncProxy();
}

// Whether any channel of a chunk is steep.
template <typename C>
__device__ bool HasSteep(const StageDecay<C> (&decay)[C::kSlabs]) {
  bool any = false;
#pragma unroll
  for (int s = 0; s < C::kSlabs; ++s) any |= decay[s].any_steep != 0;
  return any;
}

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_SHARED_CUH_
