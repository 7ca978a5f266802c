// The tuned pass of the state over a sequence (ScanForward, ScanReverse).
//
// A cluster of V / 128 blocks works on one head of one piece; each block holds
// 128 values of the state in registers, all K channels, for the whole piece:
//
//   warpgroups 0, 1 (consumers)  64 values each. State transposed: accumulator
//       rows are values, columns channels, so that rounded to bf16 it is the A
//       operand of the output product as it lies. Each forms half of the
//       chunk's masked scores, which both read.
//   warpgroup 2 (producer)       loads q, k, g of the block's share of the
//       channels, gates them, and copies the gated slabs to the other blocks of
//       the cluster.
//
// Forward, per chunk, with A = q~, B = k^ (chunk_gla_sm90.cuh), x = v:
//   scores = mask(A B^T)
//   y^T = S^T A^T + x^T scores^T;   S^T = edge (mid S^T + x^T B)
// Reverse, chunks from the last to the first, A = k^, B = q~, x = d_o:
//   dS^T = edge dS^T;   y^T = dS^T A^T + x^T scores^T;
//   dS^T = mid dS^T + x^T B
//
// Two stages of {A, B, scores, edge, mid}. Barriers of a stage:
//   full    this block's producer has stored its slabs, and the other blocks'
//           copies have arrived
//   fixed   the producer has left the score terms of steep channels, if there
//           are any, where the scores go
//   empty   all consumer warps of the cluster are done with the stage
// The consumers meet at a named barrier once a chunk, when both halves of the
// scores are stored. x comes by cp.async, each warp its own 16 values, two
// chunks ahead; the slot of a chunk's x also transposes its y.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_CUH_

#include "kernels/gla/chunk_gla_sm90.cuh"

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
  static constexpr int kStages = 2;
  static constexpr int kConsumerThreads = 256;
  static constexpr int kThreads = kConsumerThreads + 128;
  // Of the 168 a thread that a block of 384 threads starts with.
  static constexpr int kConsumerRegisters = K == 256 ? 216 : 176;
  static constexpr int kProducerRegisters = 504 - 2 * kConsumerRegisters;
  static_assert(kOwn >= 1 && kOwn * kCluster == kSlabs);
};

// edge and mid of a slab's 64 channels; copied between blocks as a whole.
struct alignas(16) SlabDecay {
  float edge[64];
  float mid[64];
  int32_t any_steep;
  int32_t unused[3];
};

template <typename C>
struct ScanShared {
  struct Stage {
    uint8_t a[C::kSlabs][kSlabBytes];
    uint8_t b[C::kSlabs][kSlabBytes];
    uint8_t scores[kSlabBytes];
  };
  struct Raw {  // of one slab's channels, rows of 64
    __nv_bfloat16 q[kChunk][64];
    __nv_bfloat16 k[kChunk][64];
    typename C::Gate g[kChunk][64];
  };
  Stage stage[C::kStages];
  uint8_t x[2][2][kSlabBytes];  // [slot][warpgroup]
  Raw raw[C::kOwn];
  SlabDecay decay[C::kStages][C::kSlabs];
  float totals[C::kOwn][4][64];  // log gates added up by each producer warp
  float fix[3][8][kChunk];       // b, q, k of eight channels (FixScores)
  uint64_t full[C::kStages];
  uint64_t fixed[C::kStages];
  uint64_t empty[C::kStages];
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

// --- Consumers --------------------------------------------------------------

// Warpgroup `group` of the block; `rank` is the block's in its cluster.
template <typename C>
class ScanConsumer {
 public:
  __device__ ScanConsumer(const ScanArgs& args, const ScanWork& work,
                          ScanShared<C>& shared, int rank, int group)
      : args_(args),
        work_(work),
        shared_(shared),
        group_(group),
        warp_(__shfl_sync(0xffffffff, threadIdx.x / 32 % 4, 0)),
        lane_(threadIdx.x % 32),
        column_((rank * 2 + group) * 64),
        fragment_(SlabOffset((lane_ & 7) + ((lane_ >> 4) << 3),
                             2 * warp_ + ((lane_ >> 3) & 1))),
        piece_(SlabOffset(lane_ / 2, 2 * warp_ + lane_ % 2)),
        row_bytes_(args.shape.H * C::V * sizeof(__nv_bfloat16)),
        value_bytes_((work.rows.first * args.shape.H + work.h) * C::V * 2 +
                     lane_ / 2 * row_bytes_ +
                     (column_ + warp_ * 16 + lane_ % 2 * 8) * 2) {}

  __device__ void Run() {
    LoadX(0);
    LoadX(1);
    LoadState();
#pragma unroll 1
    for (int i = 0; i < work_.chunks; ++i) Step(i);
    CopyAsyncWait<0>();
    StoreState();
  }

 private:
  static constexpr int kScoresBarrier = 2;
  using Stage = typename ScanShared<C>::Stage;

  __device__ void Step(int i) {
    const int stage = i % C::kStages;
    const uint32_t parity = i / C::kStages & 1;
    const int chunk = ChunkAt<C>(work_, i);
    Stage& tiles = shared_.stage[stage];
    const auto& decay = shared_.decay[stage];
    BarrierWait(SharedAddress(&shared_.full[stage]), parity);

    if (AtSegmentEdge(chunk)) StoreSegmentState(chunk);
    if (C::kReverse) {
#pragma unroll
      for (int s = 0; s < C::kSlabs; ++s) Scale(s, decay[s].edge);
    }
    const bool steep = HasSteep<C>(decay);
    float y[32];
    if constexpr (C::kOutput) {
      if (steep) BarrierWait(SharedAddress(&shared_.fixed[stage]), parity);
      Scores(tiles, steep);
      StateOutput(tiles, y);
    }

    CopyAsyncWait<1>();
    __syncwarp();
    const uint32_t slot = SharedAddress(shared_.x[i % 2][group_]);
    uint32_t x[4][4];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      LoadMatrixTransposed(slot + fragment_ + 2048 * step, x[step]);
    }
    if constexpr (C::kOutput) {
      NamedBarrier(kScoresBarrier, C::kConsumerThreads);
      WgmmaFence();
      const uint64_t scores = SlabDescriptor(SharedAddress(tiles.scores));
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        Wgmma<Contract::kAlongColumns>(
            y, x[step], StepDescriptor<Contract::kAlongColumns>(scores, step),
            true);
      }
      WgmmaCommit();
    }
    if (steep) {
#pragma unroll
      for (int s = 0; s < C::kSlabs; ++s) Scale(s, decay[s].mid);
    }
    UpdateState(tiles, x);
    if constexpr (C::kOutput) {
      WgmmaWait<1>();
      Touch(y);
      StoreY(chunk, slot, y);
    }
    __syncwarp();
    LoadX(i + 2);
    WgmmaWait<0>();
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
      Touch(state_[s]);
      if (!C::kReverse) Scale(s, decay[s].edge);
    }
    Release(stage);
  }

  // This warpgroup's half of the masked scores A B^T: rows are A's tokens,
  // columns 32 of B's. Adds what the producer left for steep channels.
  __device__ void Scores(Stage& tiles, bool steep) {
    float p[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) p[i] = 0;
    WgmmaFence();
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
      const uint64_t a = SlabDescriptor(SharedAddress(tiles.a[s]));
      const uint64_t b =
          SlabDescriptor(SharedAddress(tiles.b[s]) + group_ * 32 * 128);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        Wgmma<Contract::kAlongColumns, Contract::kAlongColumns>(
            p, StepDescriptor<Contract::kAlongColumns>(a, step),
            StepDescriptor<Contract::kAlongColumns>(b, step), true);
      }
    }
    WgmmaCommit();
    WgmmaWait<0>();
    Touch(p);
    const int row = warp_ * 16 + lane_ / 4;
    const int column = 32 * group_ + lane_ % 4 * 2;
    const uint32_t element =
        SharedAddress(tiles.scores) + SlabElement(row, column);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        // Eight columns on, eight rows on.
        const uint32_t address = (element ^ (j << 4)) + i * 1024;
        float low = p[4 * j + 2 * i], high = p[4 * j + 2 * i + 1];
        if (steep) {
          const uint32_t extra = LoadShared32(address);
          low += LowFloat(extra);
          high += HighFloat(extra);
        }
        const int r = row + 8 * i, c = column + 8 * j;
        StoreShared32(address, PackBf16(IsCausal<C>(r, c) ? low : 0,
                                        IsCausal<C>(r, c + 1) ? high : 0));
      }
    }
    FenceAsyncProxy();
  }

  // y = state^T A^T.
  __device__ void StateOutput(const Stage& tiles, float (&y)[32]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) y[i] = 0;
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
      const uint64_t slab = SlabDescriptor(SharedAddress(tiles.a[s]));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t a[2][4];
        PackOperand(state_[s], 2 * half, a[0]);
        PackOperand(state_[s], 2 * half + 1, a[1]);
        WgmmaFence();
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          Wgmma<Contract::kAlongColumns>(
              y, a[i],
              StepDescriptor<Contract::kAlongColumns>(slab, 2 * half + i),
              true);
        }
        WgmmaCommit();
        WgmmaWait<1>();  // Frees the registers of the group before.
      }
    }
  }

  // state += x^T B.
  __device__ void UpdateState(const Stage& tiles, const uint32_t (&x)[4][4]) {
    WgmmaFence();
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
      const uint64_t slab = SlabDescriptor(SharedAddress(tiles.b[s]));
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        Wgmma<Contract::kAlongRows>(
            state_[s], x[step],
            StepDescriptor<Contract::kAlongRows>(slab, step), true);
      }
    }
    WgmmaCommit();
  }

  // Multiplies the channels of a slab by `factor`.
  __device__ void Scale(int s, const float* factor) {
    const float2* const pairs =
        reinterpret_cast<const float2*>(factor) + lane_ % 4;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 f = pairs[4 * j];
      state_[s][4 * j] *= f.x;
      state_[s][4 * j + 1] *= f.y;
      state_[s][4 * j + 2] *= f.x;
      state_[s][4 * j + 3] *= f.y;
    }
  }

  // The consumers of all blocks of the cluster tell all producers.
  __device__ void Release(int stage) {
    __syncwarp();
    const uint32_t empty = SharedAddress(&shared_.empty[stage]);
    if constexpr (C::kCluster == 1) {
      if (lane_ == 0) BarrierArrive(empty);
    } else if (lane_ < C::kCluster) {
      ClusterBarrierArrive(ClusterAddress(empty, lane_));
    }
  }

  // Starts the load of step i's x: this warp's 16 values of 64 rows. Rows past
  // the sequence become zeros.
  __device__ void LoadX(int i) {
    if (i < work_.chunks) {
      const int first = ChunkAt<C>(work_, i) * kChunk;
      const uint32_t to = SharedAddress(shared_.x[i % 2][group_]) + piece_;
      const char* from = reinterpret_cast<const char*>(args_.x) + value_bytes_ +
                         first * row_bytes_;
#pragma unroll
      for (int it = 0; it < 4; ++it) {
        CopyAsync16(to + 2048 * it, from,
                    first + 16 * it + lane_ / 2 < work_.rows.length);
        from += 16 * row_bytes_;
      }
    }
    CopyAsyncCommit();
  }

  // Writes a chunk's y through `slot`, which only this warp reads and writes in
  // the columns of its values.
  __device__ void StoreY(int chunk, uint32_t slot, const float (&y)[32]) {
    __syncwarp();
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      uint32_t a[4];
      PackOperand(y, pair, a);
      StoreMatrixTransposed(slot + fragment_ + 2048 * pair, a);
    }
    __syncwarp();
    const int first = chunk * kChunk;
    char* to =
        reinterpret_cast<char*>(args_.y) + value_bytes_ + first * row_bytes_;
#pragma unroll
    for (int it = 0; it < 4; ++it) {
      const uint4 data = LoadShared128(slot + piece_ + 2048 * it);
      if (first + 16 * it + lane_ / 2 < work_.rows.length) {
        *reinterpret_cast<uint4*>(to) = data;
      }
      to += 16 * row_bytes_;
    }
  }

  // fn(element of the accumulator, offset in a [K, V] state).
  template <typename Fn>
  __device__ void ForEachStateElement(Fn fn) {
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const int k = s * 64 + i / 4 * 8 + lane_ % 4 * 2 + i % 2;
        const int v = column_ + warp_ * 16 + lane_ / 4 + i / 2 % 2 * 8;
        fn(state_[s][i], k * C::V + v);
      }
    }
  }

  __device__ void LoadState() {
    constexpr int64_t kState = C::K * C::V;
    const int64_t head = work_.n * args_.shape.H + work_.h;
    const float* from = nullptr;
    if (args_.pieces > 1) {
      if constexpr (C::kOutput) {
        from =
            args_.piece_states + (head * args_.pieces + work_.piece) * kState;
      }
    } else if (args_.initial_state != nullptr) {
      from = args_.initial_state + head * kState;
    }
    if (from == nullptr) {
      ForEachStateElement([](float& element, int) { element = 0; });
    } else {
      ForEachStateElement(
          [from](float& element, int offset) { element = from[offset]; });
    }
  }

  __device__ void StoreState() {
    constexpr int64_t kState = C::K * C::V;
    const int64_t head = work_.n * args_.shape.H + work_.h;
    float* to = nullptr;
    if constexpr (!C::kOutput) {
      to = args_.piece_states + (head * args_.pieces + work_.piece) * kState;
    } else if (args_.final_state != nullptr &&
               work_.piece == (C::kReverse ? 0 : args_.pieces - 1)) {
      to = args_.final_state + head * kState;
    }
    if (to == nullptr) return;
    ForEachStateElement(
        [to](float& element, int offset) { to[offset] = element; });
  }

  // Whether the state before this chunk (in the direction of the pass) is one
  // to store.
  __device__ bool AtSegmentEdge(int chunk) const {
    if (args_.segment_states == nullptr) return false;
    return C::kReverse ? chunk % kSegmentChunks == kSegmentChunks - 1 ||
                             chunk == work_.rows.chunks() - 1
                       : chunk % kSegmentChunks == 0;
  }

  // In the order that chunk_gla_sm90.h gives.
  __device__ void StoreSegmentState(int chunk) {
    const int64_t slot = work_.first_segment + chunk / kSegmentChunks;
    uint4* to = reinterpret_cast<uint4*>(args_.segment_states +
                                         (slot * args_.shape.H + work_.h) *
                                             (C::K * C::V) +
                                         column_ / 64 * kStateTile);
    to += warp_ * 32 + lane_;
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        uint32_t part[4];
#pragma unroll
        for (int f = 0; f < 4; ++f) {
          const int j = 4 * (2 * w + f % 2) + f / 2 * 2;
          part[f] = TransposeFragment(PackBf16(state_[s][j], state_[s][j + 1]));
        }
        constexpr int kTile = kStateTile * 2 / sizeof(uint4);
        to[s * (C::V / 64) * kTile + w * 128] =
            make_uint4(part[0], part[1], part[2], part[3]);
      }
    }
  }

  const ScanArgs& args_;
  const ScanWork& work_;
  ScanShared<C>& shared_;
  const int group_, warp_, lane_;
  const int column_;  // this warpgroup's first value
  // This lane's place in a slab: for matrix fragments of 16 rows, and for
  // 16-byte pieces of this warp's values; 2048 bytes on to the next 16 rows.
  const uint32_t fragment_, piece_;
  const int64_t row_bytes_;    // from row to row of a [B, T, H, V] tensor
  const int64_t value_bytes_;  // offset of this lane's piece in row 0
  float state_[C::kSlabs][32];
};

// --- Producer ---------------------------------------------------------------

// Leaves the score terms q k e^(b_t - b_u) of a chunk's steep channels in the
// scores slab. (What their gated operands add to the products is below
// 2^-kMaxLog2Decay of that.) Works from global memory, eight channels at a
// time: any block needs any slab. A function of its own, off the hot path.
template <typename C>
class ScoreFix {
 public:
  __device__ ScoreFix(const ScanArgs& args, const ScanWork& work,
                      ScanShared<C>& shared, int thread, int barrier)
      : args_(args),
        work_(work),
        shared_(shared),
        thread_(thread),
        barrier_(barrier) {}

  __device__ void Run(int stage, int chunk) {
    float p[32] = {};
    for (int group = 0; group < C::K / 8; ++group) {
      const float* const mid =
          &shared_.decay[stage][group / 8].mid[group % 8 * 8];
      bool any = false;
      for (int c = 0; c < 8; ++c) any |= mid[c] != 1;
      if (!any) continue;
      NamedBarrier(barrier_, 128);
      LoadChannels(chunk, group * 8);
      NamedBarrier(barrier_, 128);
      AccumulateGates();
      NamedBarrier(barrier_, 128);
      for (int c = 0; c < 8; ++c) {
        if (mid[c] != 1) AddChannel(c, p);
      }
    }
    Store(SharedAddress(shared_.stage[stage].scores), p);
  }

 private:
  // q (scaled), k and gates of channels [first, first + 8) of a chunk.
  __device__ void LoadChannels(int chunk, int first) {
    using Gate = typename C::Gate;
    const int t = thread_ / 2;
    const int row = chunk * kChunk + t;
    const bool valid = row < work_.rows.length;
    const int64_t offset =
        ((work_.rows.first + (valid ? row : 0)) * args_.shape.H + work_.h) *
            C::K +
        first;
    for (int c = thread_ % 2 * 4; c < thread_ % 2 * 4 + 4; ++c) {
      const float g =
          static_cast<float>(static_cast<const Gate*>(args_.g)[offset + c]);
      shared_.fix[0][c][t] = valid ? fmaxf(g, kMinLogGate) * kLog2E : 0;
      shared_.fix[1][c][t] =
          valid ? __bfloat162float(args_.q[offset + c]) * args_.scale : 0;
      shared_.fix[2][c][t] = valid ? __bfloat162float(args_.k[offset + c]) : 0;
    }
  }

  // Gates to cumulative gates: 16 lanes a channel, four tokens a lane.
  __device__ void AccumulateGates() {
    float* const b = &shared_.fix[0][thread_ / 16][thread_ % 16 * 4];
    float sum[4];
    float running = 0;
    for (int i = 0; i < 4; ++i) sum[i] = running += b[i];
    float before = running;
    for (int offset = 1; offset < 16; offset *= 2) {
      const float other = __shfl_up_sync(0xffffffff, before, offset, 16);
      if (thread_ % 16 >= offset) before += other;
    }
    before -= running;
    for (int i = 0; i < 4; ++i) b[i] = sum[i] + before;
  }

  // p has the elements of a 64 x 64 accumulator.
  __device__ int Row(int i) const {
    return thread_ / 32 * 16 + thread_ % 32 / 4 + 8 * i;
  }
  __device__ int Column(int j) const { return 8 * j + thread_ % 4 * 2; }

  __device__ void AddChannel(int c, float (&p)[32]) {
    constexpr int kQuery = 1, kKey = 2;
    const float* const b = shared_.fix[0][c];
    const float* const row_value = shared_.fix[C::kReverse ? kKey : kQuery][c];
    const float* const column_value =
        shared_.fix[C::kReverse ? kQuery : kKey][c];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = Row(i);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = Column(j) + e;
          const float difference =
              C::kReverse ? b[column] - b[row] : b[row] - b[column];
          const float term =
              row_value[row] * column_value[column] * Exp2(difference);
          p[4 * j + 2 * i + e] += IsCausal<C>(row, column) ? term : 0;
        }
      }
    }
  }

  __device__ void Store(uint32_t slab, const float (&p)[32]) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        StoreShared32(slab + SlabElement(Row(i), Column(j)),
                      PackBf16(p[4 * j + 2 * i], p[4 * j + 2 * i + 1]));
      }
    }
  }

  const ScanArgs& args_;
  const ScanWork& work_;
  ScanShared<C>& shared_;
  const int thread_, barrier_;
};

template <typename C>
__device__ __noinline__ void FixScores(const ScanArgs& args,
                                       const ScanWork& work,
                                       ScanShared<C>& shared, int thread,
                                       int stage, int chunk) {
  constexpr int kFixBarrier = 3;
  ScoreFix<C>(args, work, shared, thread, kFixBarrier).Run(stage, chunk);
}

template <typename C>
class ScanProducer {
 public:
  __device__ ScanProducer(const ScanArgs& args, const ScanWork& work,
                          ScanShared<C>& shared, int rank)
      : args_(args),
        work_(work),
        shared_(shared),
        thread_(threadIdx.x - C::kConsumerThreads),
        warp_(__shfl_sync(0xffffffff, thread_ / 32, 0)),
        lane_(thread_ % 32),
        rank_(rank),
        row_elements_(args.shape.H * C::K),
        offset_((work.rows.first * args.shape.H + work.h) * C::K +
                OwnSlab(0) * 64 + warp_ * 16 * row_elements_) {}

  __device__ void Run() {
    float sums[C::kOwn][2] = {};
    LoadRaw(0);
#pragma unroll 1
    for (int i = 0; i < work_.chunks; ++i) {
      const int stage = i % C::kStages;
      BarrierWait(SharedAddress(&shared_.empty[stage]),
                  (i / C::kStages & 1) ^ 1);
      GateOperands(stage, sums);
      LoadRaw(i + 1);
      FenceAsyncProxy();
      NamedBarrier(kProducerBarrier, 128);
      if (thread_ == 0) Publish(stage);
      if (C::kOutput && i > 0) Fix(i - 1);
    }
    if (C::kOutput && work_.chunks > 0) Fix(work_.chunks - 1);
    CopyAsyncWait<0>();
    if (!C::kOutput && warp_ == 0) StorePieceDecay(sums);
  }

 private:
  static constexpr int kProducerBarrier = 1;
  using Gate = typename C::Gate;
  using Pair = typename GatePair<Gate>::Type;

  __device__ int OwnSlab(int j) const { return rank_ * C::kOwn + j; }

  // Starts the load of step i's q, k, g: each warp 16 rows.
  __device__ void LoadRaw(int i) {
    if (i < work_.chunks) {
      const int first = ChunkAt<C>(work_, i) * kChunk;
      const int64_t offset = offset_ + first * row_elements_;
      const int rows = work_.rows.length - first - warp_ * 16;
#pragma unroll
      for (int j = 0; j < C::kOwn; ++j) {
        auto& raw = shared_.raw[j];
        LoadRows(args_.q + offset + j * 64, rows, &raw.q[warp_ * 16][0]);
        LoadRows(args_.k + offset + j * 64, rows, &raw.k[warp_ * 16][0]);
        LoadRows(static_cast<const Gate*>(args_.g) + offset + j * 64, rows,
                 &raw.g[warp_ * 16][0]);
      }
    }
    CopyAsyncCommit();
  }

  // 16 rows of a slab's 64 channels, of which `rows` are in the sequence; the
  // others become zeros.
  template <typename T>
  __device__ void LoadRows(const T* from, int rows, T* to) {
    constexpr int kPieceElements = 16 / sizeof(T);
    constexpr int kPieces = 64 / kPieceElements;  // of a row
    constexpr int kRows = 32 / kPieces;           // at a time
    const int row = lane_ / kPieces;
    from += row * row_elements_ + lane_ % kPieces * kPieceElements;
    const uint32_t address = SharedAddress(to) + lane_ * 16;
#pragma unroll
    for (int it = 0; it < 16 / kRows; ++it) {
      CopyAsync16(address + it * 512, from, row + it * kRows < rows);
      from += kRows * row_elements_;
    }
  }

  // Gated operands of the own slabs, and their decay. Lane l has channels 2 l
  // and 2 l + 1, warp w rows 16 w .. 16 w + 15.
  __device__ void GateOperands(int stage, float (&sums)[C::kOwn][2]) {
    CopyAsyncWait<0>();
    __syncwarp();
    Pair g[C::kOwn][16];
#pragma unroll
    for (int j = 0; j < C::kOwn; ++j) {
      float2 total = {0, 0};
#pragma unroll
      for (int r = 0; r < 16; ++r) {
        g[j][r] = reinterpret_cast<const Pair*>(
            shared_.raw[j].g[warp_ * 16 + r])[lane_];
        const float2 log2 = ToLog2(g[j][r]);
        total = {total.x + log2.x, total.y + log2.y};
      }
      *reinterpret_cast<float2*>(&shared_.totals[j][warp_][2 * lane_]) = total;
    }
    NamedBarrier(kProducerBarrier, 128);
#pragma unroll
    for (int j = 0; j < C::kOwn; ++j) {
      float2 before = {0, 0}, all = {0, 0};
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float2 t =
            *reinterpret_cast<float2*>(&shared_.totals[j][w][2 * lane_]);
        if (w < warp_) before = {before.x + t.x, before.y + t.y};
        all = {all.x + t.x, all.y + t.y};
      }
      sums[j][0] += all.x;
      sums[j][1] += all.y;
      GateSlab(stage, j, g[j], before, all);
    }
    __syncwarp();
  }

  // Stores a slab's operands; `b` is the cumulative gate before this warp's
  // rows, `all` that of the chunk.
  __device__ void GateSlab(int stage, int j, const Pair (&gates)[16], float2 b,
                           float2 all) {
    const bool steep0 = all.x < -kMaxLog2Decay;
    const bool steep1 = all.y < -kMaxLog2Decay;
    const float shift0 = steep0 ? all.x : 0;
    const float shift1 = steep1 ? all.y : 0;
    auto& tiles = shared_.stage[stage];
    const int slab = OwnSlab(j);
    const uint32_t a = SharedAddress(tiles.a[slab]) + warp_ * 2048;
    const uint32_t b_slab = SharedAddress(tiles.b[slab]) + warp_ * 2048;
    const uint32_t q_slab = C::kReverse ? b_slab : a;
    const uint32_t k_slab = C::kReverse ? a : b_slab;
    const uint32_t q_raw = SharedAddress(shared_.raw[j].q[warp_ * 16]);
    const uint32_t k_raw = SharedAddress(shared_.raw[j].k[warp_ * 16]);
#pragma unroll
    for (int r = 0; r < 16; ++r) {
      const float2 g = ToLog2(gates[r]);
      b = {b.x + g.x, b.y + g.y};
      const uint32_t offset = (lane_ * 4 ^ (r % 8 << 4)) + r * 128;
      const uint32_t q = LoadShared32(q_raw + lane_ * 4 + r * 128);
      const uint32_t k = LoadShared32(k_raw + lane_ * 4 + r * 128);
      StoreShared32(q_slab + offset,
                    PackBf16(LowFloat(q) * args_.scale * Exp2(b.x),
                             HighFloat(q) * args_.scale * Exp2(b.y)));
      StoreShared32(k_slab + offset,
                    PackBf16(LowFloat(k) * Exp2(shift0 - b.x),
                             HighFloat(k) * Exp2(shift1 - b.y)));
    }
    if (warp_ != 0) return;
    SlabDecay& decay = shared_.decay[stage][slab];
    const float d0 = Exp2(all.x), d1 = Exp2(all.y);
    *reinterpret_cast<float2*>(&decay.edge[2 * lane_]) = {steep0 ? 1 : d0,
                                                          steep1 ? 1 : d1};
    *reinterpret_cast<float2*>(&decay.mid[2 * lane_]) = {steep0 ? d0 : 1,
                                                         steep1 ? d1 : 1};
    const bool any = __any_sync(0xffffffff, steep0 || steep1);
    if (lane_ == 0) decay.any_steep = any;
  }

  // Sends the own slabs to the other blocks of the cluster, and lets `full`
  // wait for theirs.
  __device__ void Publish(int stage) {
    constexpr uint32_t kBytes = 2 * kSlabBytes + sizeof(SlabDecay);
    const uint32_t full = SharedAddress(&shared_.full[stage]);
    BarrierArriveExpect(full, (C::kSlabs - C::kOwn) * kBytes);
    auto& tiles = shared_.stage[stage];
#pragma unroll 1
    for (int r = 1; r < C::kCluster; ++r) {
      const uint32_t peer = (rank_ + r) % C::kCluster;
      const uint32_t barrier = ClusterAddress(full, peer);
#pragma unroll
      for (int j = 0; j < C::kOwn; ++j) {
        const int slab = OwnSlab(j);
        Send(tiles.a[slab], kSlabBytes, peer, barrier);
        Send(tiles.b[slab], kSlabBytes, peer, barrier);
        Send(&shared_.decay[stage][slab], sizeof(SlabDecay), peer, barrier);
      }
    }
  }

  __device__ void Send(const void* data, uint32_t bytes, uint32_t peer,
                       uint32_t barrier) {
    const uint32_t address = SharedAddress(data);
    ClusterCopy(ClusterAddress(address, peer), address, bytes, barrier);
  }

  // Once all slabs of step i are there: the score terms of its steep channels.
  __device__ void Fix(int i) {
    const int stage = i % C::kStages;
    BarrierWait(SharedAddress(&shared_.full[stage]), i / C::kStages & 1);
    if (HasSteep<C>(shared_.decay[stage])) {
      FixScores<C>(args_, work_, shared_, thread_, stage, ChunkAt<C>(work_, i));
    }
    BarrierArrive(SharedAddress(&shared_.fixed[stage]));
  }

  __device__ void StorePieceDecay(const float (&sums)[C::kOwn][2]) {
    const int64_t head = work_.n * args_.shape.H + work_.h;
#pragma unroll
    for (int j = 0; j < C::kOwn; ++j) {
      float* const to = args_.piece_decays +
                        (head * args_.pieces + work_.piece) * C::K +
                        OwnSlab(j) * 64 + 2 * lane_;
      to[0] = Exp2(sums[j][0]);
      to[1] = Exp2(sums[j][1]);
    }
  }

  const ScanArgs& args_;
  const ScanWork& work_;
  ScanShared<C>& shared_;
  const int thread_, warp_, lane_, rank_;
  const int64_t row_elements_;  // from row to row of a [B, T, H, K] tensor
  const int64_t offset_;        // of this warp's first row of chunk 0
};

// --- Kernel -----------------------------------------------------------------

template <typename C>
constexpr int ScanSharedBytes() {
  constexpr int kBytes = sizeof(ScanShared<C>);
  static_assert(kBytes <= 227 * 1024, "more shared memory than a block has");
  return kBytes;
}

template <typename C>
__global__ void __cluster_dims__(C::kCluster) __launch_bounds__(C::kThreads, 1)
    ScanKernel(const __grid_constant__ ScanArgs args) {
  extern __shared__ __align__(1024) uint8_t dynamic[];
  auto& shared = *reinterpret_cast<ScanShared<C>*>(dynamic);
  const ScanWork work = FindWork<C>(args);
  if (threadIdx.x == 0) {
    for (int s = 0; s < C::kStages; ++s) {
      BarrierInit(SharedAddress(&shared.full[s]), 1);
      BarrierInit(SharedAddress(&shared.fixed[s]), 128);
      BarrierInit(SharedAddress(&shared.empty[s]), 8 * C::kCluster);
    }
    BarrierInitFence();
  }
  __syncthreads();
  if (C::kCluster > 1) ClusterSync();
  const int rank = C::kCluster > 1 ? ClusterRank() : 0;
  const int group = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
  if (group < C::kConsumerThreads / 128) {
    RaiseRegisters<C::kConsumerRegisters>();
    ScanConsumer<C>(args, work, shared, rank, group).Run();
  } else {
    LowerRegisters<C::kProducerRegisters>();
    ScanProducer<C>(args, work, shared, rank).Run();
  }
  // Shared memory must outlive the others' copies and arrivals.
  if (C::kCluster > 1) ClusterSync();
}

template <typename C>
cudaError_t LaunchScan(const ScanArgs& args, cudaStream_t stream) {
  constexpr int kBytes = ScanSharedBytes<C>();
  cudaError_t error = cudaFuncSetAttribute(
      ScanKernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  const int64_t blocks =
      args.shape.N * args.shape.H * args.pieces * C::kCluster;
  if (blocks == 0) return cudaSuccess;
  ScanKernel<C><<<blocks, C::kThreads, kBytes, stream>>>(args);
  return cudaGetLastError();
}

template <bool kReverse, bool kOutput, typename Gate>
cudaError_t LaunchScanForShape(const ScanArgs& args, cudaStream_t stream) {
  if (args.shape.K == 256) {
    return LaunchScan<ScanConfig<256, 512, kReverse, kOutput, Gate>>(args,
                                                                     stream);
  }
  if (args.shape.V == 256) {
    return LaunchScan<ScanConfig<128, 256, kReverse, kOutput, Gate>>(args,
                                                                     stream);
  }
  if (args.shape.K == 128) {
    return LaunchScan<ScanConfig<128, 128, kReverse, kOutput, Gate>>(args,
                                                                     stream);
  }
  return LaunchScan<ScanConfig<64, 128, kReverse, kOutput, Gate>>(args, stream);
}

template <bool kReverse, bool kOutput>
cudaError_t LaunchScanForGates(const ScanArgs& args, cudaStream_t stream) {
  return args.shape.gate_dtype == DType::kFloat32
             ? LaunchScanForShape<kReverse, kOutput, float>(args, stream)
             : LaunchScanForShape<kReverse, kOutput, __nv_bfloat16>(args,
                                                                    stream);
}

template <bool kReverse>
cudaError_t LaunchScan(const ScanArgs& args, cudaStream_t stream) {
  return args.y != nullptr ? LaunchScanForGates<kReverse, true>(args, stream)
                           : LaunchScanForGates<kReverse, false>(args, stream);
}

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_CUH_
