// The state warpgroups of the state pass (chunk_gla_sm90_scan.cuh).
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_STATE_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_STATE_CUH_

#include "kernels/device/dependent_launch_sm90.cuh"
#include "kernels/gla/chunk_gla_sm90_scan_scores.cuh"

namespace gla::internal {

// Warpgroup `group` of the block.
template <typename C>
class ScanState : ScanScores<C> {
 public:
  __device__ ScanState(const ScanParams& params, const ScanWork& work,
                       ScanShared<C>& shared, int group)
      : ScanScores<C>(params, work, shared, group), params_(params) {}

  __device__ void Run() {
    LoadState();
    if (work_.chunks > 0) {
      if (WaitsEarly()) WaitFull(0);
      if (C::kReverse) FinishUpdate<0>(0);
      if (kStoresEarly && work_.silent == 0) StoreSlabs(0);
      float p[16] = {};
      if constexpr (C::kOutput) {
#pragma unroll 1
        for (int i = 0; i < work_.silent; ++i) {
          LetGradientsStart(i);
          Step<false>(i, p);
        }
        StartScores(work_.silent % C::kStages, p);
        if constexpr (C::kLoadsScores) LoadScores(work_.silent);
      }
#pragma unroll 1
      for (int i = work_.silent; i < work_.chunks; ++i) {
        LetGradientsStart(i);
        Step<C::kOutput>(i, p);
      }
      WgmmaWait<0>();
      if constexpr (C::kKeyRests) {
        if (EndsInState<C>(args_, work_)) AddKeyRests();
      }
    }
    StoreState();
    if (C::kOutput && warp_ == 0 && lane_ == 0) TensorStoreWaitRead();
  }

 private:
  // The gradient kernel may start when so many steps of the pass are left: 8
  // us. What it fetches earlier has left the L2 cache when it is needed again.
  static constexpr int kStepsAhead = 4;
  __device__ void LetGradientsStart(int i) const {
    if (!C::kBeforeGradients) return;
    if (i == max(work_.chunks - kStepsAhead, 0)) LetNextKernelStart();
  }

  using Stage = typename ScanShared<C>::Stage;
  using Tile = StateTile<C>;
  using Tile::args_, Tile::work_, Tile::group_, Tile::warp_, Tile::lane_;
  using Tile::column_, Tile::fragment_, Tile::state_;
  using Tile::LoadState, Tile::StoreState, Tile::StoreRows, Tile::Row;
  using Scores = ScanScores<C>;
  using Scores::KeepScores, Scores::LoadScores, Scores::FreeScores;
  using Scores::LoadOwnScores, Scores::StoreScores, Scores::ScoresOutput;
  using Scores::shared_, Scores::kScoreGroups, Scores::StartScores;

  // Whether a step waits for the next one's stage: for its scores and edges, if
  // it has any; and where states are stored the pass is a tenth faster so.
  __device__ bool WaitsEarly() const {
    return C::kGates || args_.states != nullptr;
  }

  // Step i, whose scores have been started; starts the next one's in p (after
  // the last step of whatever lies there). Without output there are no scores.
  template <bool kOutput>
  __device__ void Step(int i, float (&p)[16]) {
    const int stage = i % C::kStages;
    const int chunk = ChunkAt<C>(work_, i);
    const Stage& tiles = shared_.stage[stage];
    const auto& decay = shared_.decay[stage];

    if (!WaitsEarly()) WaitFull(i);
    float y[32] = {}, a_rests[8] = {};
    if constexpr (kOutput) {
      uint8_t* const stored = kStoresEarly ? nullptr : StoredState(chunk);
      float own_scores[2];
      if constexpr (C::kFormsScores) LoadOwnScores(decay, own_scores);
      WgmmaWait<0>();
      Touch(p);
      StateOutput(i, stored, y, a_rests, [&](int half) {
        if constexpr (C::kFormsScores) {
          if (half == 0) StoreScores(i, chunk, own_scores, p);
        }
      });
      if constexpr (!C::kGates) {
#pragma unroll
        for (int s = 0; s < C::kSlabs; ++s) Scale(s, decay[s].mid);
      }
    }

    BarrierWait(SharedAddress(&shared_.x_full[stage]), Parity<C::kStages>(i));
    const uint32_t x_slab = SharedAddress(tiles.x[group_]);
    uint32_t x[4][4];
    const int rows = work_.rows.length - chunk * kChunk;
    if (kOutput || !C::kUpdatesFromSlabs || rows < kChunk) ReadX(x_slab, x);
    if (rows < kChunk) {
      MaskX(rows, x);
      if constexpr (C::kUpdatesFromSlabs) WriteX(x_slab, x);
    }
    if constexpr (kOutput) ScoresOutput(i, x, y);
    if constexpr (C::kGates) {
#pragma unroll
      for (int s = 0; s < C::kSlabs; ++s) {
        if (decay[s].any_steep) Scale(s, decay[s].mid);
      }
    } else if constexpr (!kOutput) {
#pragma unroll
      for (int s = 0; s < C::kSlabs; ++s) Scale(s, decay[s].mid);
    }
    UpdateState(i, x);
    const bool has_next = i + 1 < work_.chunks;
    const int next_stage = (i + 1) % C::kStages;
    if (WaitsEarly() && has_next) WaitFull(i + 1);
    if constexpr (kOutput) {
      StartScores(next_stage, p);
      WgmmaWait<kUpdateGroups + kScoreGroups>();
      Touch(y);
      if constexpr (C::kARests > 0) {
        Touch(a_rests);
#pragma unroll
        for (int e = 0; e < 8; ++e) y[24 + e] += a_rests[e];
      }
      if constexpr (C::kOwnRest) {
        AddOwnRest(shared_.own_rest.stage[stage], x, y);
        FenceAsyncProxy();  // It has been read.
      }
      if constexpr (!C::kGates) {
        BarrierArrive(SharedAddress(&shared_.a_empty[stage]));
      } else if constexpr (!C::kKeeps) {
        __syncwarp();
        FreeScores();
      }
      StoreY(chunk, YSlab(tiles), y);
      if constexpr (C::kKeeps) {
        KeepScores(chunk);
      } else if constexpr (C::kLoadsScores) {
        if (has_next) LoadScores(i + 1);
      }
    } else if constexpr (C::kOutput && !C::kGates) {
      BarrierArrive(SharedAddress(&shared_.a_empty[stage]));
    }
    FinishUpdate<kOutput ? kScoreGroups : 0>(C::kReverse ? i + 1 : i);
    Release(i);
    // By then what is stored has been read.
    if constexpr (kOutput && C::kKeeps) FreeScores();
  }

  __device__ void WaitFull(int i) {
    BarrierWait(SharedAddress(&shared_.full[i % C::kStages]),
                Parity<C::kStages>(i));
  }

  // y += x times what rounding left out of each token's score with itself.
  // (Operand and accumulator have their elements in the same threads.)
  __device__ void AddOwnRest(const float (&rest)[kChunk],
                             const uint32_t (&x)[4][4], float (&y)[32]) const {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 pair =
          *reinterpret_cast<const float2*>(&rest[8 * j + lane_ % 4 * 2]);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t values = x[j / 2][j % 2 * 2 + i];
        y[4 * j + 2 * i] += pair.x * LowFloat(values);
        y[4 * j + 2 * i + 1] += pair.y * HighFloat(values);
      }
    }
  }

  // y += state^T A^T; what rests of state and A, if there are any, add to the
  // last rows is in a_rests. Also stores the state as it was rounded for that,
  // unless `stored` is null. Calls meanwhile(half) once the products with that
  // half of a slab are under way.
  template <typename Fn>
  __device__ void StateOutput(int i, uint8_t* stored, float (&y)[32],
                              float (&a_rests)[8], Fn meanwhile) {
    const Stage& tiles = shared_.stage[i % C::kStages];
#pragma unroll
    for (int half = 0; half < 2 * C::kSlabs; ++half) {
      const int s = half / 2, first = half % 2 * 2;
      const uint64_t slab = SlabDescriptor(SharedAddress(tiles.a[s]));
      uint32_t a[2][4];
      PackOperand(state_[s], first, a[0]);
      PackOperand(state_[s], first + 1, a[1]);
      uint32_t rest[2][4];
      if constexpr (C::kStateRests) {
        PackRest(state_[s], first, a[0], rest[0]);
        PackRest(state_[s], first + 1, a[1], rest[1]);
      }
      WgmmaFence();
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        constexpr auto kAlong = Contract::kAlongColumns;
        const uint64_t b = StepDescriptor<kAlong>(slab, first + n);
        Wgmma<kAlong>(y, a[n], b, true);
        if constexpr (C::kStateRests) {
          // Both for the last rows of A.
          static_assert(C::kARests == 16 && C::kBRests % 8 == 0);
          constexpr int kLastRows = (kChunk - C::kARests) * 128;
          Wgmma<kAlong>(a_rests, rest[n], b + (kLastRows >> 4), true);
          const uint64_t rests =
              SlabDescriptor(RestsOf(i, s) + C::kBRests * 128);
          Wgmma<kAlong>(a_rests, a[n], StepDescriptor<kAlong>(rests, first + n),
                        true);
        }
      }
      WgmmaCommit();
      if (stored != nullptr) StoreHalfSlab(stored, s, half % 2, a);
      meanwhile(half);
      WgmmaWait<1>();  // Frees the registers of earlier groups.
    }
  }

  // Where y leaves from.
  __device__ uint32_t YSlab(const Stage& tiles) const {
    if constexpr (C::kUpdatesFromSlabs) {
      return SharedAddress(tiles.y[group_]);
    } else {
      return SharedAddress(tiles.x[group_]);
    }
  }

  static constexpr int kUpdateGroups = C::kUpdatesFromSlabs ? 1 : C::kSlabs;

  // state += x^T B, in kUpdateGroups of products.
  __device__ void UpdateState(int i, const uint32_t (&x)[4][4]) {
    constexpr auto kAlong = Contract::kAlongRows;
    const Stage& tiles = shared_.stage[i % C::kStages];
    WgmmaFence();
    if constexpr (C::kUpdatesFromSlabs) {
      const uint64_t a = SlabDescriptor(SharedAddress(tiles.x[group_]));
      const uint64_t b = SlabDescriptor(SharedAddress(tiles.b[0]));
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        Wgmma<kAlong, kAlong>(state_, StepDescriptor<kAlong>(a, step),
                              StepDescriptor<kAlong>(b, step), true);
      }
      WgmmaCommit();
    } else {
#pragma unroll
      for (int s = 0; s < C::kSlabs; ++s) {
        Tile::template AddTokens<kAlong>(x, tiles.b[s], state_[s]);
        if constexpr (C::kBRests > 0) {
          Wgmma<kAlong>(state_[s], x[0], SlabDescriptor(RestsOf(i, s)), true);
        }
        WgmmaCommit();
      }
    }
  }

  // Where step i's RowRests of a slab are.
  __device__ uint32_t RestsOf(int i, int s) {
    return SharedAddress(shared_.row_rests.slab[i % C::kRowRestBuffers][s]);
  }

  // state += x^T KeyRests.
  __device__ void AddKeyRests() {
    const int first =
        (work_.rows.chunks() - 1) * kChunk + FirstRestRow<C>(work_);
    uint32_t x[4];  // y has taken its place: from global memory
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int value = column_ + Row() + i % 2 * 8;
      uint32_t bits[2] = {};
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int token = first + i / 2 * 8 + lane_ % 4 * 2 + j;
        if (token >= work_.rows.length) continue;
        const int64_t row =
            (work_.rows.first + token) * args_.shape.H + work_.h;
        bits[j] = __bfloat16_as_ushort(args_.x[row * C::V + value]);
      }
      x[i] = bits[0] | bits[1] << 16;
    }
    BarrierWait(SharedAddress(&shared_.rests_full), 0);
    WgmmaFence();
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
      const uint32_t rests = SharedAddress(shared_.key_rests.slab[s]);
      Wgmma<Contract::kAlongRows>(state_[s], x, SlabDescriptor(rests), true);
    }
    WgmmaCommit();
    WgmmaWait<0>();
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) Touch(state_[s]);
  }

  // Whether a step's state is stored by the step before, as its slabs are done.
  static constexpr bool kStoresEarly =
      C::kGates && !C::kReverse && C::kOutput && C::V == 128;

  // Waits for the update of step `i` (reverse: i - 1), behind which kBehind
  // groups have been started, and applies the edge of step i, if there is one:
  // to slab after slab.
  template <int kBehind>
  __device__ void FinishUpdate(int i) {
    if constexpr (C::kGates) {
      FinishSlabs<0, kBehind>(
          i < work_.chunks ? shared_.decay[i % C::kStages] : nullptr,
          kStoresEarly ? EarlyState(i + 1) : nullptr);
    } else {
      WgmmaWait<kBehind>();
#pragma unroll
      for (int s = 0; s < C::kSlabs; ++s) Touch(state_[s]);
    }
  }
  template <int kSlab, int kBehind>
  __device__ void FinishSlabs(const StageDecay<C>* edges, uint8_t* stored) {
    if constexpr (kSlab < C::kSlabs) {
      WgmmaWait<kUpdateGroups - 1 - kSlab + kBehind>();
      Touch(state_[kSlab]);
      if (edges != nullptr) Scale(kSlab, edges[kSlab].edge);
      if (stored != nullptr) StoreSlab(kSlab, stored);
      FinishSlabs<kSlab + 1, kBehind>(edges, stored);
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

  // After step i, to all that fill its stage: every thread for itself on this
  // block's barrier, which racecheck follows. Where operands are gated here
  // also a lane for its warp on the other block's, but not after the last
  // kReuse steps, for which nobody there waits.
  __device__ void Release(int i) {
    if (C::kOutput && warp_ == 0 && lane_ == 0) TensorStoreWaitRead();
    // Forward, edges have just been read.
    if (C::kGates && !C::kReverse && C::kCluster > 1) FenceAsyncProxy();
    const uint32_t empty = SharedAddress(&shared_.empty[i % C::kStages]);
    BarrierArrive(empty);
    if (C::kCluster == 1 || !C::kGates) return;
    __syncwarp();
    if (i + C::kReuse >= work_.chunks || lane_ > 0) return;
    ClusterBarrierArrive(ClusterAddress(empty, ClusterRank() ^ 1));
  }

  // Starts the store of a chunk's y, from a slab.
  __device__ void StoreY(int chunk, uint32_t slab, const float (&y)[32]) {
    // Of x, if it was there, each warp read the 16 columns that it writes.
    __syncwarp();
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

  // x from its slab, as a product's A operand.
  __device__ void ReadX(uint32_t slab, uint32_t (&x)[4][4]) const {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      LoadMatrixTransposed(slab + fragment_ + 2048 * step, x[step]);
    }
  }
  // Back to its slab, masked, for products from there.
  __device__ void WriteX(uint32_t slab, const uint32_t (&x)[4][4]) const {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      StoreMatrixTransposed(slab + fragment_ + 2048 * step, x[step]);
    }
    FenceAsyncProxy();
    NamedBarrier(kMaskBarrier + group_, 128);
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

  // Where the state that this chunk's y is formed from is to be stored; null if
  // it is not to be.
  __device__ uint8_t* StoredState(int chunk) const {
    if (args_.states == nullptr) return nullptr;
    constexpr int kEach = C::kStateChunks;
    const bool is_stored = C::kReverse ? chunk % kEach == kEach - 1 ||
                                             chunk == work_.rows.chunks() - 1
                                       : chunk % kEach == 0;
    const bool is_first = chunk == (C::kReverse ? work_.rows.chunks() - 1 : 0);
    const bool is_zero = is_first && args_.initial_state == nullptr;
    if (!is_stored || is_zero) return nullptr;
    const int64_t slot = work_.state_slot + chunk / kEach;
    return reinterpret_cast<uint8_t*>(args_.states) +
           (slot * args_.shape.H + work_.h) * (C::K * C::V * 2) +
           column_ / 64 * kSlabBytes;
  }

  // Half of the channels of slab `s`, as operands, to a slab as
  // chunk_gla_sm90.h has it: 16 bytes of a row a lane.
  __device__ void StoreHalfSlab(uint8_t* stored, int s, int half,
                                const uint32_t (&a)[2][4]) const {
    uint8_t* const slab = stored + s * (C::V / 64) * kSlabBytes;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t words[4] = {a[0][i], a[0][2 + i], a[1][i], a[1][2 + i]};
      StoreRowWords(slab, Row() + 8 * i, 4 * half, words);
    }
  }

  // Where step i's state is to be stored; null if it is not to be.
  __device__ uint8_t* EarlyState(int i) const {
    return i < work_.silent || i >= work_.chunks
               ? nullptr
               : StoredState(ChunkAt<C>(work_, i));
  }
  __device__ void StoreSlabs(int i) const {
    uint8_t* const stored = EarlyState(i);
    if (stored == nullptr) return;
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) StoreSlab(s, stored);
  }
  __device__ void StoreSlab(int s, uint8_t* stored) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[2][4];
      PackOperand(state_[s], 2 * half, a[0]);
      PackOperand(state_[s], 2 * half + 1, a[1]);
      StoreHalfSlab(stored, s, half, a);
    }
  }

  const ScanParams& params_;
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_STATE_CUH_
