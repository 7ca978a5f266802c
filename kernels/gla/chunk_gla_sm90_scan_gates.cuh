// The gate warpgroups of the state pass (chunk_gla_sm90_scan.cuh).
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_GATES_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_GATES_CUH_

#include "kernels/gla/chunk_gla_sm90_gating.cuh"
#include "kernels/gla/chunk_gla_sm90_scan_shared.cuh"

namespace gla::internal {

template <typename C>
class ScanGates {
 public:
  // Of a block's warp `warp`, as all its lanes know it.
  __device__ ScanGates(const ScanParams& params, const ScanWork& work,
                       ScanShared<C>& shared, int rank, int warp)
      : params_(params),
        args_(params.args),
        work_(work),
        shared_(shared),
        gates_(shared.gates),
        warp_(warp % C::kGateWarps),
        rank_(rank),
        own_(warp_ / kSlabWarps),
        first_row_((warp_ % kSlabWarps * kRowGroups + Lane() / kLanes) *
                   kRows) {}

  // The first loads, which are into this block only.
  __device__ void StartLoads() {
    for (int i = 0; i < 2; ++i) LoadGates(i);
    for (int i = 0; i < C::kRaws; ++i) LoadRaw(i);
  }

  // After StartLoads.
  __device__ void Run() {
#pragma unroll 1
    for (int i = 0; i < work_.chunks; ++i) Step(i);
    if constexpr (C::kKeyRests) {
      if (EndsInState<C>(args_, work_)) StoreKeyRests(work_.chunks - 1);
    }
    if (!C::kOutput && first_row_ == 0) StorePieceDecay();
  }

 private:
  static constexpr int kChannels = 4;                         // of a lane
  static constexpr int kLanes = 64 / kChannels;               // of a row
  static constexpr int kRowGroups = 32 / kLanes;              // of a warp
  static constexpr int kSlabWarps = C::kGateWarps / C::kOwn;  // of an own slab
  static constexpr int kRows = kChunk / kSlabWarps / kRowGroups;  // of a lane
  static constexpr int kWarpRows = kRows * kRowGroups;
  // The lanes with this row store decays: their warp forms no rests.
  static constexpr int kDecayRow = kChunk / 2;
  static_assert(C::kARests % kWarpRows == 0 && C::kBRests % kWarpRows == 0);
  using Gates = float[kChannels];
  using LaneGates = RawGates<typename C::Gate, kChannels>;
  using Piece = Bf16Piece<kChannels>;
  using LaneRests = Piece[kRows];

  // Whether step i is for the output too: A is gated.
  __device__ bool HasOutput(int i) const {
    return C::kOutput && i >= work_.silent;
  }

  // The gated operands of step i and their decay, once their stage is free.
  __device__ void Step(int i) {
    const int stage = i % C::kStages;
    BarrierWait(SharedAddress(&shared_.g_full[i % 2]), Parity<2>(i));
    const bool is_partial = RowsOf(i) < kChunk;
    if (is_partial) MaskGates(i);
    Gates own[kRows], before, all;
    SumGates(i, own, before, all);
    if (i >= C::kStages) WaitReleased(i - C::kStages);
    if (IsLoader()) LoadX<C>(params_, work_, shared_, i);
    if (first_row_ == kDecayRow) {
      StoreDecay(all, Channel(), shared_.decay[stage][OwnSlab(own_)]);
    }
    if (!C::kOutput) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) sums_[c] += all[c];
    } else if (C::kSums && args_.log_decays != nullptr && HasOutput(i)) {
      StoreLogDecays<kRows>(before, all, first_row_, Channel(),
                            StepLogDecays(i, own_));
    }
    BarrierWait(SharedAddress(&shared_.raw_full[i % C::kRaws]),
                Parity<C::kRaws>(i));
    if (is_partial) MaskRows(i);
    LaneRests rests;
    if (HasOutput(i)) {
      GateRows<C::kOutput>(i, own, before, all, rests);
    } else {
      GateRows<false>(i, own, before, all, rests);
    }
    if constexpr (C::kRowRests > 0) {
      if (i >= C::kReuse) WaitReleased(i - C::kReuse);
      StoreRests(i, rests);
    }
    FenceAsyncProxy();
    if (first_row_ == kDecayRow ||
        (C::kFormsScores && HasRowSum<kLanes, kRows>())) {
      BarrierArrive(SharedAddress(&shared_.full[stage]));
    }
    NamedBarrier(kGateBarrier, 32 * C::kGateWarps);
    Publish(i);
    LoadGates(i + 2);
    LoadRaw(i + C::kRaws);
  }

  // Until all that use what was gated in step i are done with it.
  __device__ void WaitReleased(int i) {
    BarrierWait(SharedAddress(&shared_.empty[i % C::kStages]),
                Parity<C::kStages>(i));
  }

  __device__ int Lane() const { return threadIdx.x % 32; }
  // This lane's first channel in its slab.
  __device__ int Channel() const { return Lane() % kLanes * kChannels; }
  __device__ int OwnSlab(int j) const { return rank_ * C::kOwn + j; }
  __device__ bool IsLoader() const { return threadIdx.x == C::kLoader; }

  // Starts the loads of step i's gates of the own slabs.
  __device__ void LoadGates(int i) {
    if (!IsLoader() || i >= work_.chunks) return;
    const uint32_t full = SharedAddress(&shared_.g_full[i % 2]);
    auto& g = gates_.g[i % 2];
    constexpr int kSumBytes = kChunkParts * 64 * sizeof(float);
    BarrierArriveExpect(full, sizeof(g) + (C::kSums ? 0 : C::kOwn * kSumBytes));
#pragma unroll
    for (int j = 0; j < C::kOwn; ++j) {
      TensorLoad(SharedAddress(g[j]), &params_.g, Column(j), Row(i), full);
      if constexpr (!C::kSums) {
        BulkLoad(SharedAddress(gates_.sums.sums[i % 2][j]), StepLogDecays(i, j),
                 kSumBytes, full);
      }
    }
  }

  // Starts the loads of what step i gates.
  __device__ void LoadRaw(int i) {
    if (!IsLoader() || i >= work_.chunks) return;
    const uint32_t full = SharedAddress(&shared_.raw_full[i % C::kRaws]);
    auto& raw = gates_.raw[i % C::kRaws];
    const bool output = HasOutput(i);
    BarrierArriveExpect(full,
                        (output ? 2 : 1) * C::kOwn * int{sizeof(raw[0].b)});
#pragma unroll
    for (int j = 0; j < C::kOwn; ++j) {
      if constexpr (C::kOutput) {
        if (output) {
          TensorLoad(SharedAddress(raw[j].a), &params_.a, Column(j), Row(i),
                     full);
        }
      }
      TensorLoad(SharedAddress(raw[j].b), &params_.b, Column(j), Row(i), full);
    }
  }

  // An own slab's first channel, in rows of H K.
  __device__ int Column(int j) const {
    return work_.h * C::K + OwnSlab(j) * 64;
  }
  // Where the sums of step i's gates of an own slab are.
  __device__ float* StepLogDecays(int i, int j) const {
    return LogDecays(args_.log_decays, args_.shape,
                     work_.chunk_slot + ChunkAt<C>(work_, i), work_.h,
                     OwnSlab(j));
  }
  // The first row of step i's chunk.
  __device__ int Row(int i) const {
    return work_.rows.first + ChunkAt<C>(work_, i) * kChunk;
  }
  // Rows of step i's chunk that the sequence has; may be more than a chunk.
  __device__ int RowsOf(int i) const {
    return work_.rows.length - ChunkAt<C>(work_, i) * kChunk;
  }

  // Zeros in the rows past the sequence, whatever lies there: each lane in its
  // own.
  __device__ void MaskGates(int i) {
#pragma unroll 1
    for (int r = max(0, RowsOf(i) - first_row_); r < kRows; ++r) {
      GatesAt(i, r) = {};
    }
    FenceAsyncProxy();  // Before the next load writes there.
  }
  __device__ void MaskRows(int i) {
#pragma unroll 1
    for (int r = max(0, RowsOf(i) - first_row_); r < kRows; ++r) {
      if constexpr (C::kOutput) At(Raw(i).a, r) = {};
      At(Raw(i).b, r) = {};
    }
    FenceAsyncProxy();
  }

  // What step i's gates add up to: those of this lane to the end of each row,
  // those before its rows, and all of them.
  __device__ void SumGates(int i, Gates (&rows)[kRows], Gates& before,
                           Gates& all) {
    Gates own = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      AddGates(LaneGates(GatesAt(i, r)), own);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) rows[r][c] = own[c];
    }
    if constexpr (C::kSums) {
      SumSlab(own, gates_.sums.sums[own_], warp_ % kSlabWarps, kGateBarrier,
              32 * C::kGateWarps, before, all);
    } else {
      Gates warp;
      SumRowGroups(own, before, warp);
      AddEarlierGates(i, before);
      LoadSums(&gates_.sums.sums[i % 2][own_][kChunkParts - 1][Channel()], all);
    }
  }
  // Adds those before this warp's rows: of earlier parts, and of the warp that
  // has the part's first rows, but for those past the sequence (MaskGates).
  __device__ void AddEarlierGates(int i, Gates& before) {
    static_assert(kPartTokens == kWarpRows || kPartTokens == 2 * kWarpRows);
    const int row = warp_ % kSlabWarps * kWarpRows;
    if (row % kPartTokens != 0) {
      Gates own = {}, unused, warp;
      const int rows = RowsOf(i) - (first_row_ - kWarpRows);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        LaneGates g = {};
        if (r < rows) g = GatesAt(i, r - kWarpRows);
        AddGates(g, own);
      }
      SumRowGroups(own, unused, warp);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) before[c] += warp[c];
    }
    if (row < kPartTokens) return;
    Gates parts;
    LoadSums(&gates_.sums.sums[i % 2][own_][row / kPartTokens - 1][Channel()],
             parts);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) before[c] += parts[c];
  }

  // The operands of this lane's rows, from SumGates. Second parts, if they have
  // any, stay in `rests`, so that gating need not wait for their place.
  template <bool kOutput>
  __device__ void GateRows(int i, const Gates (&sums)[kRows],
                           const Gates& before, const Gates& all,
                           LaneRests& rests) {
    if (HasBRests()) {
      GateRows<kOutput, false, (C::kBRests > 0)>(i, sums, before, all, rests);
    } else if (kOutput && HasARests()) {
      GateRows<kOutput, (kOutput && C::kARests > 0), false>(i, sums, before,
                                                            all, rests);
    } else {
      GateRows<kOutput, false, false>(i, sums, before, all, rests);
    }
  }
  template <bool kOutput, bool kARest, bool kBRest>
  __device__ void GateRows(int i, const Gates (&sums)[kRows],
                           const Gates& before, const Gates& all,
                           LaneRests& rests) {
    auto& stage = shared_.stage[i % C::kStages];
    float own_scores[kRows];
    Gates shift, b;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) shift[c] = KeyShift(all[c]);
    const auto gate = [&](const Piece& x, bool is_query, Gates& y) {
      if (is_query) {
        GateQuery(x, b, args_.scale, y);
      } else {
        GateKey(x, b, shift, y);
      }
      return Round(y);
    };
    // The next row is loaded before this one is stored.
    Piece next_a = {}, next_b = At(Raw(i).b, 0);
    if constexpr (kOutput) next_a = At(Raw(i).a, 0);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const Piece raw_a = next_a, raw_b = next_b;
      if (r + 1 < kRows) {
        if constexpr (kOutput) next_a = At(Raw(i).a, r + 1);
        next_b = At(Raw(i).b, r + 1);
      }
#pragma unroll
      for (int c = 0; c < kChannels; ++c) b[c] = before[c] + sums[r][c];
      Gates y;
      if constexpr (kOutput) {
        const Piece a = gate(raw_a, !C::kReverse, y);
        GatedAt(stage.a, r) = a;
        if constexpr (kARest) rests[r] = RoundRest(y, a);
        if constexpr (C::kFormsScores) own_scores[r] = Dot(raw_a, raw_b);
      }
      const Piece b_row = gate(raw_b, C::kReverse, y);
      GatedAt(stage.b, r) = b_row;
      if constexpr (kBRest) rests[r] = RoundRest(y, b_row);
    }
    if constexpr (kOutput && C::kFormsScores) {
      auto& decay = shared_.decay[i % C::kStages][OwnSlab(own_)];
      StoreRowSums<kLanes>(own_scores, &decay.own_score[first_row_]);
    }
  }

  // This lane's channels in its row r, as loaded and gated.
  __device__ LaneGates& GatesAt(int i, int r) {
    return reinterpret_cast<LaneGates&>(
        gates_.g[i % 2][own_][first_row_ + r][Channel()]);
  }
  __device__ auto& Raw(int i) { return gates_.raw[i % C::kRaws][own_]; }
  __device__ Piece& At(typename GateBuffers<C>::Tile& tile, int r) {
    return reinterpret_cast<Piece&>(tile[first_row_ + r][Channel()]);
  }
  __device__ Piece& GatedAt(uint8_t (&slabs)[C::kSlabs][kSlabBytes], int r) {
    return reinterpret_cast<Piece&>(
        slabs[OwnSlab(own_)][SlabElement(first_row_ + r, Channel())]);
  }
  // Whether this warp's rows of B, of A, have second parts.
  __device__ bool HasBRests() const {
    return warp_ % kSlabWarps * kWarpRows < C::kBRests;
  }
  __device__ bool HasARests() const {
    return warp_ % kSlabWarps * kWarpRows >= kChunk - C::kARests;
  }
  // Those of step i, to RowRests.
  __device__ void StoreRests(int i, const LaneRests& rests) {
    if (!HasBRests() && !(HasARests() && HasOutput(i))) return;
    const int first = first_row_ - (HasBRests() ? 0 : kChunk - C::kRowRests);
    auto& slab = shared_.row_rests.slab[i % C::kRowRestBuffers][OwnSlab(own_)];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      reinterpret_cast<Piece&>(slab[SlabElement(first + r, Channel())]) =
          rests[r];
    }
  }

  // KeyRests, from what the last step, i, has gated: gates and keys are still
  // there, with zeros in the rows past the sequence.
  __device__ void StoreKeyRests(int i) {
    Gates own = {}, before, b, all, shift, edge;
#pragma unroll 1
    for (int r = 0; r < kRows; ++r) AddGates(LaneGates(GatesAt(i, r)), own);
    SumSlab(own, gates_.sums.sums[own_], warp_ % kSlabWarps, kGateBarrier,
            32 * C::kGateWarps, before, all);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      shift[c] = KeyShift(all[c]);
      edge[c] = IsSteep(all[c]) ? 1 : Exp2(all[c]);
      own[c] = 0;
    }
#pragma unroll 1
    for (int r = 0; r < kRows; ++r) {
      AddGates(LaneGates(GatesAt(i, r)), own);
      // The bits of GateRows: rests of a key rounded otherwise are none.
#pragma unroll
      for (int c = 0; c < kChannels; ++c) b[c] = before[c] + own[c];
      const int row = first_row_ + r - FirstRestRow<C>(work_);
      if (row < 0 || row >= C::kRestTokens) continue;
      Gates key;
      GateKey(At(Raw(i).b, r), b, shift, key);
      const Piece rounded = Round(key);
#pragma unroll
      for (int c = 0; c < kChannels; c += 2) {
        const uint32_t pair = rounded.pairs[c / 2];
        key[c] = (key[c] - LowFloat(pair)) * edge[c];
        key[c + 1] = (key[c + 1] - HighFloat(pair)) * edge[c + 1];
      }
      auto& slab = shared_.key_rests.slab[OwnSlab(own_)];
      reinterpret_cast<Piece&>(slab[SlabElement(row, Channel())]) = Round(key);
    }
    FenceAsyncProxy();
    const uint32_t full = SharedAddress(&shared_.rests_full);
    BarrierArrive(full);
    if constexpr (C::kCluster > 1) {
      NamedBarrier(kGateBarrier, 32 * C::kGateWarps);
      if (IsLoader()) {
        BarrierArriveExpect(full, C::kOwn * C::kRestBytes);
      }
      if (Lane() == 0 && warp_ < C::kOwn) {
        const uint32_t slab =
            SharedAddress(shared_.key_rests.slab[OwnSlab(warp_)]);
        ClusterCopy(ClusterAddress(slab, rank_ ^ 1), slab, C::kRestBytes,
                    ClusterAddress(full, rank_ ^ 1));
      }
    }
  }

  // Sends the own slab of step i to the other block of the cluster.
  __device__ void Publish(int i) {
    if (Lane() != 0) return;
    const int stage = i % C::kStages;
    const bool output = HasOutput(i);
    const int rest_bytes = (C::kRowRests - (output ? 0 : C::kARests)) * 128;
    if constexpr (C::kCluster > 1) {
      static_assert(C::kOwn == 1);
      auto& tiles = shared_.stage[stage];
      const int slab = OwnSlab(0);
      if constexpr (C::kOutput) {
        if (output && warp_ == 0) Send(tiles.a[slab], kSlabBytes, stage);
      }
      if (warp_ == 1) Send(tiles.b[slab], kSlabBytes, stage);
      if (warp_ == 2) {
        Send(&shared_.decay[stage][slab], sizeof(StageDecay<C>), stage);
      }
      if constexpr (C::kRowRests > 0) {
        auto& rests = shared_.row_rests.slab[i % C::kRowRestBuffers];
        if (warp_ == 3) Send(rests[slab], rest_bytes, stage);
      }
    }
    if (IsLoader()) {
      const uint32_t bytes =
          (output ? 2 : 1) * kSlabBytes + rest_bytes + sizeof(StageDecay<C>);
      BarrierArriveExpect(SharedAddress(&shared_.full[stage]),
                          (C::kSlabs - C::kOwn) * bytes);
    }
  }

  __device__ void Send(const void* data, uint32_t bytes, int stage) {
    const uint32_t address = SharedAddress(data);
    ClusterCopy(ClusterAddress(address, rank_ ^ 1), address, bytes,
                ClusterAddress(SharedAddress(&shared_.full[stage]), rank_ ^ 1));
  }

  __device__ void StorePieceDecay() {
    float* const to = PieceDecay<C>(args_, work_, OwnSlab(own_)) + Channel();
    for (int c = 0; c < kChannels; ++c) to[c] = Exp2(sums_[c]);
  }

  const ScanParams& params_;
  const ScanArgs& args_;
  const ScanWork& work_;
  ScanShared<C>& shared_;
  GateBuffers<C>& gates_;
  const int warp_, rank_;
  const int own_;        // the slab that this warp gates, of the block's own
  const int first_row_;  // of this lane's kRows
  Gates sums_ = {};      // gates of the piece so far
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_GATES_CUH_
