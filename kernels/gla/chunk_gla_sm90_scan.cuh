// The tuned pass of the state over a sequence (ScanForward, ScanReverse).
//
// A cluster of V / 128 blocks works on one head of one piece; each block holds
// 128 values of the state in registers, all K channels, for the whole piece:
//
//   warpgroups 0, 1 (state)  64 values each. State transposed: accumulator rows
//       are values, columns channels, so that rounded to bf16 it is the A
//       operand of the output product as it lies. Each forms half of the
//       chunk's masked scores.
//   warpgroup 2 (gates)      loads x; loads q, k, g of the block's share of the
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
// Stages hold {A, B, x, edge, mid}. Barriers, one of each a stage:
//   full      this block's gate warps have stored their slabs, and the other
//             blocks' copies have arrived
//   x_full    x is there
//   scored    both halves of the scores are stored
//   empty     all state warps of the cluster are done with the stage
// y is transposed in the place of its x.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_CUH_

#include "kernels/device/tensor_map_sm90.h"
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
  float steep[2][3][8][kChunk];  // [warpgroup] b, q, k of eight channels
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

// --- State ------------------------------------------------------------------

// Warpgroup `group` of the block; `rank` is the block's in its cluster.
template <typename C>
class ScanState {
 public:
  __device__ ScanState(const ScanParams& params, const ScanWork& work,
                       ScanShared<C>& shared, int rank, int group)
      : params_(params),
        args_(params.args),
        work_(work),
        shared_(shared),
        group_(group),
        warp_(__shfl_sync(0xffffffff, threadIdx.x / 32 % 4, 0)),
        lane_(threadIdx.x % 32),
        column_((rank * 2 + group) * 64),
        fragment_(SlabOffset((lane_ & 7) + ((lane_ >> 4) << 3),
                             2 * warp_ + ((lane_ >> 3) & 1))) {}

  __device__ void Run() {
    LoadState();
#pragma unroll 1
    for (int i = 0; i < work_.chunks; ++i) Step(i);
    StoreState();
    if (C::kOutput && warp_ == 0 && lane_ == 0) TensorStoreWait();
  }

 private:
  using Stage = typename ScanShared<C>::Stage;

  __device__ void Step(int i) {
    const int stage = i % C::kStages;
    const int chunk = ChunkAt<C>(work_, i);
    const Stage& tiles = shared_.stage[stage];
    const auto& decay = shared_.decay[stage];
    BarrierWait(SharedAddress(&shared_.full[stage]), Parity<C::kStages>(i));

    if (AtSegmentEdge(chunk)) StoreSegmentState(chunk);
    if (C::kReverse) {
#pragma unroll
      for (int s = 0; s < C::kSlabs; ++s) Scale(s, decay[s].edge);
    }
    float y[32];
    if constexpr (C::kOutput) {
      Scores(stage, chunk);
      StateOutput(tiles, y);
    }

    BarrierWait(SharedAddress(&shared_.x_full[stage]), Parity<C::kStages>(i));
    const uint32_t x_slab = SharedAddress(tiles.x[group_]);
    uint32_t x[4][4];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      LoadMatrixTransposed(x_slab + fragment_ + 2048 * step, x[step]);
    }
    const int rows = work_.rows.length - chunk * kChunk;
    if (rows < kChunk) MaskX(rows, x);
    if constexpr (C::kOutput) {
      BarrierWait(SharedAddress(&shared_.scored[stage]), Parity<C::kStages>(i));
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
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
      if (decay[s].any_steep) Scale(s, decay[s].mid);
    }
    UpdateState(tiles, x);
    if constexpr (C::kOutput) {
      WgmmaWait<C::kSlabs>();
      Touch(y);
      StoreY(chunk, x_slab, y);
    }
    FinishSlabs<0>(decay);
    Release(stage);
  }

  // This warpgroup's half of the masked scores A B^T: rows are A's tokens,
  // columns 32 of B's.
  __device__ void Scores(int stage, int chunk) {
    Stage& tiles = shared_.stage[stage];
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
    if (HasSteep<C>(shared_.decay[stage])) AddSteep(stage, chunk, p);
    const uint32_t element =
        SharedAddress(tiles.scores) + SlabElement(Row(), Column());
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        // Eight columns on, eight rows on.
        const uint32_t address = (element ^ (j << 4)) + i * 1024;
        const int row = Row() + 8 * i, column = Column() + 8 * j;
        const float low = IsCausal<C>(row, column) ? p[4 * j + 2 * i] : 0;
        const float high =
            IsCausal<C>(row, column + 1) ? p[4 * j + 2 * i + 1] : 0;
        StoreShared32(address, PackBf16(low, high));
      }
    }
    FenceAsyncProxy();
    BarrierArrive(SharedAddress(&shared_.scored[stage]));
  }

  __device__ int Thread() const { return warp_ * 32 + lane_; }
  // The first of this thread's elements of the scores.
  __device__ int Row() const { return warp_ * 16 + lane_ / 4; }
  __device__ int Column() const { return 32 * group_ + lane_ % 4 * 2; }

  // Adds the terms q k e^(b_t - b_u) of a chunk's steep channels. (What their
  // gated operands add to the products is below 2^-kMaxLog2Decay of that.)
  // Works from global memory, eight channels at a time: any block needs any
  // slab.
  __device__ void AddSteep(int stage, int chunk, float (&p)[16]) {
#pragma unroll 1
    for (int group = 0; group < C::K / 8; ++group) {
      const auto& mid = shared_.decay[stage][group / 8].mid;
      const int j = group % 8 * 2;  // channel c: mid[c / 2][j + c % 2]
      bool any = false;
#pragma unroll 1
      for (int c = 0; c < 8; ++c) any |= mid[c / 2][j + c % 2] != 1;
      if (!any) continue;
      NamedBarrier(kSteepBarrier + group_, 128);
      LoadChannels(chunk, group * 8);
      NamedBarrier(kSteepBarrier + group_, 128);
      AccumulateGates();
      NamedBarrier(kSteepBarrier + group_, 128);
#pragma unroll 1
      for (int c = 0; c < 8; ++c) {
        if (mid[c / 2][j + c % 2] != 1) AddChannel(c, p);
      }
    }
  }

  // q (scaled), k and gates of channels [first, first + 8) of a chunk.
  __device__ void LoadChannels(int chunk, int first) {
    using Gate = typename C::Gate;
    const int t = Thread() / 2;
    const int row = chunk * kChunk + t;
    const bool valid = row < work_.rows.length;
    const int64_t offset =
        ((work_.rows.first + (valid ? row : 0)) * args_.shape.H + work_.h) *
            C::K +
        first;
#pragma unroll 1
    for (int c = Thread() % 2 * 4; c < Thread() % 2 * 4 + 4; ++c) {
      const float g =
          static_cast<float>(static_cast<const Gate*>(args_.g)[offset + c]);
      shared_.steep[group_][0][c][t] =
          valid ? fmaxf(g, kMinLogGate) * kLog2E : 0;
      shared_.steep[group_][1][c][t] =
          valid ? __bfloat162float(args_.q[offset + c]) * args_.scale : 0;
      shared_.steep[group_][2][c][t] =
          valid ? __bfloat162float(args_.k[offset + c]) : 0;
    }
  }

  // Gates to cumulative gates: 16 lanes a channel, four tokens a lane.
  __device__ void AccumulateGates() {
    float4& b = *reinterpret_cast<float4*>(
        &shared_.steep[group_][0][Thread() / 16][Thread() % 16 * 4]);
    float4 sum = b;
    sum.y += sum.x;
    sum.z += sum.y;
    sum.w += sum.z;
    float before = sum.w;
#pragma unroll
    for (int offset = 1; offset < 16; offset *= 2) {
      const float other = __shfl_up_sync(0xffffffff, before, offset, 16);
      if (Thread() % 16 >= offset) before += other;
    }
    before -= sum.w;
    b = {sum.x + before, sum.y + before, sum.z + before, sum.w + before};
  }

  __device__ void AddChannel(int c, float (&p)[16]) {
    constexpr int kQuery = 1, kKey = 2;
    const float* const b = shared_.steep[group_][0][c];
    const float* const row_value =
        shared_.steep[group_][C::kReverse ? kKey : kQuery][c];
    const float* const column_value =
        shared_.steep[group_][C::kReverse ? kQuery : kKey][c];
#pragma unroll
    for (int e = 0; e < 16; ++e) {
      const int row = Row() + e / 2 % 2 * 8,
                column = Column() + e / 4 * 8 + e % 2;
      if (IsCausal<C>(row, column)) {
        const float difference =
            C::kReverse ? b[column] - b[row] : b[row] - b[column];
        p[e] += row_value[row] * column_value[column] * Exp2(difference);
      }
    }
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
        WgmmaWait<1>();  // Frees the registers of earlier groups.
      }
    }
  }

  // state += x^T B, a group of products a slab.
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
      WgmmaCommit();
    }
  }

  // Waits for slab after slab of the update and decays it.
  template <int kSlab>
  __device__ void FinishSlabs(const SlabDecay (&decay)[C::kSlabs]) {
    if constexpr (kSlab < C::kSlabs) {
      WgmmaWait<C::kSlabs - 1 - kSlab>();
      Touch(state_[kSlab]);
      if (!C::kReverse) Scale(kSlab, decay[kSlab].edge);
      FinishSlabs<kSlab + 1>(decay);
    }
  }

  // Multiplies the channels of a slab by `factor`.
  __device__ void Scale(int s, const float (&factor)[4][20]) {
    const float4* const own =
        reinterpret_cast<const float4*>(factor[lane_ % 4]);
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      const float4 f = own[j / 2];
      state_[s][4 * j] *= f.x;
      state_[s][4 * j + 1] *= f.y;
      state_[s][4 * j + 2] *= f.x;
      state_[s][4 * j + 3] *= f.y;
      state_[s][4 * j + 4] *= f.z;
      state_[s][4 * j + 5] *= f.w;
      state_[s][4 * j + 6] *= f.z;
      state_[s][4 * j + 7] *= f.w;
    }
  }

  // The state warps of all blocks of the cluster tell all gate warps.
  __device__ void Release(int stage) {
    if (C::kOutput && warp_ == 0 && lane_ == 0) TensorStoreWaitRead();
    __syncwarp();
    const uint32_t empty = SharedAddress(&shared_.empty[stage]);
    if constexpr (C::kCluster == 1) {
      if (lane_ == 0) BarrierArrive(empty);
    } else if (lane_ < C::kCluster) {
      ClusterBarrierArrive(ClusterAddress(empty, lane_));
    }
  }

  // Starts the store of a chunk's y, from the slab of its x.
  __device__ void StoreY(int chunk, uint32_t slab, const float (&y)[32]) {
    __syncwarp();  // Each warp read and writes its own 16 columns.
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      uint32_t a[4];
      PackOperand(y, pair, a);
      StoreMatrixTransposed(slab + fragment_ + 2048 * pair, a);
    }
    FenceAsyncProxy();
    const int rows = work_.rows.length - chunk * kChunk;
    if (rows < kChunk) {
      NamedBarrier(kStoreBarrier + group_, 128);
      StoreRows(chunk, slab, rows);
    } else if (warp_ != 0) {
      NamedBarrierArrive(kStoreBarrier + group_, 128);
    } else {
      NamedBarrier(kStoreBarrier + group_, 128);
      if (lane_ == 0) {
        TensorStore(&params_.y, work_.h * C::V + column_,
                    work_.rows.first + chunk * kChunk, slab);
        TensorStoreCommit();
      }
    }
  }

  // Of a sequence's last chunk, only its own rows.
  __device__ void StoreRows(int chunk, uint32_t slab, int rows) {
    const int64_t first = work_.rows.first + chunk * kChunk;
    // Eight threads a row, 16 rows at a time.
    for (int row = warp_ * 4 + lane_ / 8; row < rows; row += 16) {
      __nv_bfloat16* const to =
          args_.y + ((first + row) * args_.shape.H + work_.h) * C::V + column_;
      reinterpret_cast<uint4*>(to)[lane_ % 8] =
          LoadShared128(slab + SlabOffset(row, lane_ % 8));
    }
  }

  // Zeros in the x of rows past the sequence, whatever lies there.
  __device__ void MaskX(int rows, uint32_t (&x)[4][4]) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = 16 * step + i / 2 * 8 + lane_ % 4 * 2;
        if (row >= rows) x[step][i] = 0;
        if (row + 1 == rows) x[step][i] &= 0xffff;
      }
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

  const ScanParams& params_;
  const ScanArgs& args_;
  const ScanWork& work_;
  ScanShared<C>& shared_;
  const int group_, warp_, lane_;
  const int column_;         // this warpgroup's first value
  const uint32_t fragment_;  // this lane's place in 16 rows of a slab, as
                             // ldmatrix and stmatrix want it
  float state_[C::kSlabs][32];
};

// --- Gates ------------------------------------------------------------------

template <typename C>
class ScanGates {
 public:
  __device__ ScanGates(const ScanParams& params, const ScanWork& work,
                       ScanShared<C>& shared, int rank)
      : params_(params),
        args_(params.args),
        work_(work),
        shared_(shared),
        thread_(threadIdx.x % 128),
        warp_(__shfl_sync(0xffffffff, thread_ / 32, 0)),
        lane_(thread_ % 32),
        rank_(rank) {}

  __device__ void Run() {
    LoadG(0);
    LoadQ(0);
    LoadK(0);
#pragma unroll 1
    for (int i = 0; i < work_.chunks; ++i) Step(i);
    if (!C::kOutput && warp_ == 0) StorePieceDecay();
  }

 private:
  // The gated operands of step i, once their stage is free.
  __device__ void Step(int i) {
    const int stage = i % C::kStages;
    BarrierWait(SharedAddress(&shared_.empty[stage]),
                Parity<C::kStages>(i) ^ 1);
    if (IsLoader()) LoadX(i);
    BarrierWait(SharedAddress(&shared_.g_full), i & 1);
    const int rows = work_.rows.length - ChunkAt<C>(work_, i) * kChunk;
    if (rows < kChunk) {
      BarrierWait(SharedAddress(&shared_.q_full), i & 1);
      BarrierWait(SharedAddress(&shared_.k_full), i & 1);
      MaskRaw(rows);
    }
    GateOperands(i);
  }

  using Gate = typename C::Gate;
  using Pair = typename GatePair<Gate>::Type;
  using Raw = typename ScanShared<C>::Raw;

  __device__ int OwnSlab(int j) const { return rank_ * C::kOwn + j; }

  // The thread that starts loads.
  __device__ bool IsLoader() const { return warp_ == 3 && lane_ == 0; }

  // Starts the loads of step i's q, k or g of the own slabs.
  __device__ void LoadQ(int i) {
    Load<&Raw::q>(i, &params_.q, &shared_.q_full);
  }
  __device__ void LoadK(int i) {
    Load<&Raw::k>(i, &params_.k, &shared_.k_full);
  }
  __device__ void LoadG(int i) {
    Load<&Raw::g>(i, &params_.g, &shared_.g_full);
  }

  template <auto kMember>
  __device__ void Load(int i, const CUtensorMap* map, uint64_t* full) {
    if (!IsLoader() || i >= work_.chunks) return;
    const uint32_t barrier = SharedAddress(full);
    BarrierArriveExpect(barrier, C::kOwn * sizeof(shared_.raw[0].*kMember));
    const int row = work_.rows.first + ChunkAt<C>(work_, i) * kChunk;
#pragma unroll
    for (int j = 0; j < C::kOwn; ++j) {
      TensorLoad(SharedAddress(&(shared_.raw[j].*kMember)), map,
                 work_.h * C::K + OwnSlab(j) * 64, row, barrier);
    }
  }

  // Zeros in the rows past the sequence, whatever lies there: each warp in the
  // rows that it reads.
  __device__ void MaskRaw(int rows) {
#pragma unroll 1
    for (int r = warp_ * 16; r < warp_ * 16 + 16; ++r) {
      if (r < rows) continue;
#pragma unroll
      for (int j = 0; j < C::kOwn; ++j) {
        auto& raw = shared_.raw[j];
        reinterpret_cast<uint32_t*>(raw.q[r])[lane_] = 0;
        reinterpret_cast<uint32_t*>(raw.k[r])[lane_] = 0;
        reinterpret_cast<Pair*>(raw.g[r])[lane_] = Pair{};
      }
    }
    FenceAsyncProxy();  // Before the next load writes there.
    __syncwarp();
  }

  // Starts the load of step i's x.
  __device__ void LoadX(int i) {
    const int stage = i % C::kStages;
    const uint32_t barrier = SharedAddress(&shared_.x_full[stage]);
    BarrierArriveExpect(barrier, 2 * kSlabBytes);
    const int row = work_.rows.first + ChunkAt<C>(work_, i) * kChunk;
    const int column = work_.h * C::V + rank_ * 128;
    for (int group = 0; group < 2; ++group) {
      TensorLoad(SharedAddress(shared_.stage[stage].x[group]), &params_.x,
                 column + group * 64, row, barrier);
    }
  }

  // Gated operands of the own slabs, and their decay: first q~, on its way to
  // the other blocks while k^ is formed. Loads of the next step start as soon
  // as what they overwrite has been read. Lane l has channels 2 l and 2 l + 1,
  // warp w rows 16 w .. 16 w + 15.
  __device__ void GateOperands(int i) {
    const int stage = i % C::kStages;
    Pair g[C::kOwn][16];
    float2 before[C::kOwn], all[C::kOwn];
    SumGates(g, before, all);
    LoadG(i + 1);
    auto& tiles = shared_.stage[stage];
    uint8_t(*const q_slabs)[kSlabBytes] = C::kReverse ? tiles.b : tiles.a;
    uint8_t(*const k_slabs)[kSlabBytes] = C::kReverse ? tiles.a : tiles.b;
    BarrierWait(SharedAddress(&shared_.q_full), i & 1);
#pragma unroll
    for (int j = 0; j < C::kOwn; ++j) {
      GateRows<true>(j, g[j], before[j], {0, 0}, q_slabs[OwnSlab(j)]);
      if (warp_ == 0) StoreDecay(stage, OwnSlab(j), all[j]);
    }
    FenceAsyncProxy();
    NamedBarrier(kGateBarrier, 128);
    LoadQ(i + 1);
    Publish(stage, q_slabs, /*with_decay=*/true);
    BarrierWait(SharedAddress(&shared_.k_full), i & 1);
#pragma unroll
    for (int j = 0; j < C::kOwn; ++j) {
      const float2 shift = {all[j].x < -kMaxLog2Decay ? all[j].x : 0,
                            all[j].y < -kMaxLog2Decay ? all[j].y : 0};
      GateRows<false>(j, g[j], before[j], shift, k_slabs[OwnSlab(j)]);
    }
    FenceAsyncProxy();
    NamedBarrier(kGateBarrier, 128);
    Publish(stage, k_slabs, /*with_decay=*/false);
    if (IsLoader()) {
      constexpr uint32_t kBytes = 2 * kSlabBytes + sizeof(SlabDecay);
      BarrierArriveExpect(SharedAddress(&shared_.full[stage]),
                          (C::kSlabs - C::kOwn) * kBytes);
    }
    LoadK(i + 1);
  }

  // This lane's gates; in powers of two, those of the chunk and of its rows
  // before this warp's.
  __device__ void SumGates(Pair (&g)[C::kOwn][16], float2 (&before)[C::kOwn],
                           float2 (&all)[C::kOwn]) {
#pragma unroll
    for (int j = 0; j < C::kOwn; ++j) {
      float2 total = {0, 0};
#pragma unroll
      for (int r = 0; r < 16; ++r) {
        g[j][r] = reinterpret_cast<const Pair*>(
            shared_.raw[j].g[warp_ * 16 + r])[lane_];
      }
#pragma unroll
      for (int r = 0; r < 16; ++r) {
        const float2 log2 = ToLog2(g[j][r]);
        total = {total.x + log2.x, total.y + log2.y};
      }
      *reinterpret_cast<float2*>(&shared_.totals[j][warp_][2 * lane_]) = total;
    }
    NamedBarrier(kGateBarrier, 128);
#pragma unroll
    for (int j = 0; j < C::kOwn; ++j) {
      before[j] = all[j] = {0, 0};
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float2 t =
            *reinterpret_cast<float2*>(&shared_.totals[j][w][2 * lane_]);
        if (w < warp_) before[j] = {before[j].x + t.x, before[j].y + t.y};
        all[j] = {all[j].x + t.x, all[j].y + t.y};
      }
      sums_[j] = {sums_[j].x + all[j].x, sums_[j].y + all[j].y};
    }
  }

  // Stores this warp's rows of scale q e^b or k e^(shift - b) in a slab; `b` is
  // the cumulative gate before them.
  template <bool kQuery>
  __device__ void GateRows(int j, const Pair (&g)[16], float2 b, float2 shift,
                           uint8_t* slab) {
    constexpr int kBatch = 8;  // rows whose loads are issued together
    const auto& raw = kQuery ? shared_.raw[j].q : shared_.raw[j].k;
    slab += warp_ * 2048;
#pragma unroll
    for (int first = 0; first < 16; first += kBatch) {
      uint32_t value[kBatch];
#pragma unroll
      for (int r = 0; r < kBatch; ++r) {
        value[r] = reinterpret_cast<const uint32_t*>(
            raw[warp_ * 16 + first + r])[lane_];
      }
#pragma unroll
      for (int r = 0; r < kBatch; ++r) {
        const float2 log2 = ToLog2(g[first + r]);
        b = {b.x + log2.x, b.y + log2.y};
        const float low = LowFloat(value[r]), high = HighFloat(value[r]);
        value[r] = kQuery ? PackBf16(low * args_.scale * Exp2(b.x),
                                     high * args_.scale * Exp2(b.y))
                          : PackBf16(low * Exp2(shift.x - b.x),
                                     high * Exp2(shift.y - b.y));
      }
#pragma unroll
      for (int r = 0; r < kBatch; ++r) {
        const int row = first + r;
        const int offset = row * 128 + (lane_ * 4 ^ (row % 8 << 4));
        *reinterpret_cast<uint32_t*>(slab + offset) = value[r];
      }
    }
  }

  __device__ void StoreDecay(int stage, int slab, float2 all) {
    const bool steep0 = all.x < -kMaxLog2Decay;
    const bool steep1 = all.y < -kMaxLog2Decay;
    SlabDecay& decay = shared_.decay[stage][slab];
    const float d0 = Exp2(all.x), d1 = Exp2(all.y);
    const int i = lane_ % 4, j = lane_ / 4 * 2;
    *reinterpret_cast<float2*>(&decay.edge[i][j]) = {steep0 ? 1 : d0,
                                                     steep1 ? 1 : d1};
    *reinterpret_cast<float2*>(&decay.mid[i][j]) = {steep0 ? d0 : 1,
                                                    steep1 ? d1 : 1};
    const bool any = __any_sync(0xffffffff, steep0 || steep1);
    if (lane_ == 0) decay.any_steep = any;
  }

  // Sends the own slabs to the other blocks of the cluster, one a warp.
  __device__ void Publish(int stage, uint8_t (*slabs)[kSlabBytes],
                          bool with_decay) {
    if (warp_ + 1 >= C::kCluster || lane_ != 0) return;
    const uint32_t peer = (rank_ + 1 + warp_) % C::kCluster;
    const uint32_t barrier =
        ClusterAddress(SharedAddress(&shared_.full[stage]), peer);
#pragma unroll
    for (int j = 0; j < C::kOwn; ++j) {
      Send(slabs[OwnSlab(j)], kSlabBytes, peer, barrier);
      if (with_decay) {
        Send(&shared_.decay[stage][OwnSlab(j)], sizeof(SlabDecay), peer,
             barrier);
      }
    }
  }

  __device__ void Send(const void* data, uint32_t bytes, uint32_t peer,
                       uint32_t barrier) {
    const uint32_t address = SharedAddress(data);
    ClusterCopy(ClusterAddress(address, peer), address, bytes, barrier);
  }

  __device__ void StorePieceDecay() {
    const int64_t head = work_.n * args_.shape.H + work_.h;
#pragma unroll
    for (int j = 0; j < C::kOwn; ++j) {
      float* const to = args_.piece_decays +
                        (head * args_.pieces + work_.piece) * C::K +
                        OwnSlab(j) * 64 + 2 * lane_;
      to[0] = Exp2(sums_[j].x);
      to[1] = Exp2(sums_[j].y);
    }
  }

  const ScanParams& params_;
  const ScanArgs& args_;
  const ScanWork& work_;
  ScanShared<C>& shared_;
  const int thread_, warp_, lane_, rank_;
  float2 sums_[C::kOwn] = {};  // gates of the piece so far
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
    ScanKernel(const __grid_constant__ ScanParams params) {
  extern __shared__ __align__(1024) uint8_t dynamic[];
  auto& shared = *reinterpret_cast<ScanShared<C>*>(dynamic);
  const ScanWork work = FindWork<C>(params.args);
  if (threadIdx.x == 0) {
    for (int s = 0; s < C::kStages; ++s) {
      BarrierInit(SharedAddress(&shared.full[s]), 1);
      BarrierInit(SharedAddress(&shared.x_full[s]), 1);
      BarrierInit(SharedAddress(&shared.scored[s]), 256);
      BarrierInit(SharedAddress(&shared.empty[s]), 8 * C::kCluster);
    }
    BarrierInit(SharedAddress(&shared.q_full), 1);
    BarrierInit(SharedAddress(&shared.k_full), 1);
    BarrierInit(SharedAddress(&shared.g_full), 1);
    BarrierInitFence();
  }
  __syncthreads();
  if (C::kCluster > 1) ClusterSync();
  const int rank = C::kCluster > 1 ? ClusterRank() : 0;
  const int group = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
  if (group < 2) {
    RaiseRegisters<C::kStateRegisters>();
    ScanState<C>(params, work, shared, rank, group).Run();
  } else {
    LowerRegisters<C::kGateRegisters>();
    ScanGates<C>(params, work, shared, rank).Run();
  }
  // Shared memory must outlive the others' copies and arrivals.
  if (C::kCluster > 1) ClusterSync();
}

template <typename C>
cudaError_t MakeScanParams(const ScanArgs& args, ScanParams* params) {
  params->args = args;
  const ChunkGlaShape& s = args.shape;
  const auto make = [&s](const void* data, DType dtype, int64_t columns,
                         bool swizzled, CUtensorMap* map) {
    return MakeTensorMap({.data = data,
                          .dtype = dtype,
                          .rows = s.B * s.T,
                          .columns = columns,
                          .box_rows = 64,
                          .box_columns = 64,
                          .swizzled = swizzled},
                         map);
  };
  const int64_t keys = s.H * C::K, values = s.H * C::V;
  constexpr DType kBf16 = DType::kBFloat16;
  if (cudaError_t e = make(args.q, kBf16, keys, false, &params->q)) return e;
  if (cudaError_t e = make(args.k, kBf16, keys, false, &params->k)) return e;
  if (cudaError_t e = make(args.g, s.gate_dtype, keys, false, &params->g)) {
    return e;
  }
  if (cudaError_t e = make(args.x, kBf16, values, true, &params->x)) return e;
  if (!C::kOutput) return cudaSuccess;
  return make(args.y, kBf16, values, true, &params->y);
}

template <typename C>
cudaError_t LaunchScan(const ScanArgs& args, cudaStream_t stream) {
  const int64_t blocks =
      args.shape.N * args.shape.H * args.pieces * C::kCluster;
  if (blocks == 0) return cudaSuccess;
  ScanParams params;
  if (cudaError_t error = MakeScanParams<C>(args, &params)) return error;
  constexpr int kBytes = ScanSharedBytes<C>();
  if (cudaError_t error = cudaFuncSetAttribute(
          ScanKernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes)) {
    return error;
  }
  ScanKernel<C><<<blocks, C::kThreads, kBytes, stream>>>(params);
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
