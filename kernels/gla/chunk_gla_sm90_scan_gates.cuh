// The gate warpgroup of the state pass (chunk_gla_sm90_scan.cuh).
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_GATES_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_GATES_CUH_

#include "kernels/gla/chunk_gla_sm90_gating.cuh"
#include "kernels/gla/chunk_gla_sm90_scan_shared.cuh"

namespace gla::internal {

template <typename C>
class ScanGates {
 public:
  __device__ ScanGates(const ScanParams& params, const ScanWork& work,
                       ScanShared<C>& shared, int rank)
      : params_(params),
        args_(params.args),
        work_(work),
        shared_(shared),
        warp_(__shfl_sync(0xffffffff, threadIdx.x / 32 % 4, 0)),
        lane_(threadIdx.x % 32),
        rank_(rank),
        own_(warp_ / kSlabWarps),
        first_row_(warp_ % kSlabWarps * (4 * kRows) + lane_ / 8 * kRows),
        piece_(lane_ % 8) {}

  __device__ void Run() {
    for (int i = 0; i < 2; ++i) LoadGates(i);
    for (int i = 0; i < C::kRaws; ++i) LoadRaw(i);
#pragma unroll 1
    for (int i = 0; i < work_.chunks; ++i) Step(i);
    if (!C::kOutput && IsFirstRow()) StorePieceDecay();
  }

 private:
  // The gated operands of step i and their decay, once their stage is free.
  __device__ void Step(int i) {
    const int stage = i % C::kStages;
    BarrierWait(SharedAddress(&shared_.g_full[i % 2]), Parity<2>(i));
    const bool is_partial = RowsOf(i) < kChunk;
    if (is_partial) MaskGates(i);
    Gates before;
    SumGates(i, before);
    BarrierWait(SharedAddress(&shared_.empty[stage]),
                Parity<C::kStages>(i) ^ 1);
    LoadStage(i);
    const bool steep = StoreDecay(stage);
    BarrierWait(SharedAddress(&shared_.raw_full[i % C::kRaws]),
                Parity<C::kRaws>(i));
    if constexpr (!C::kAllAhead) {
      BarrierWait(SharedAddress(&shared_.k_full), i & 1);
    }
    if (is_partial) MaskRows(i);
    if (steep) {
      GateRows</*kSteep=*/true>(i, before);
    } else {
      GateRows</*kSteep=*/false>(i, before);
    }
    FenceAsyncProxy();
    NamedBarrier(kGateBarrier, 128);
    Publish(stage);
    LoadGates(i + 2);
    LoadRaw(i + C::kRaws);
  }

  using Gate = typename C::Gate;
  using Raw = typename ScanShared<C>::Raw;
  static constexpr int kSlabWarps = 4 / C::kOwn;  // that gate an own slab
  static constexpr int kRows = kChunk / kSlabWarps / 4;  // of a lane

  __device__ int OwnSlab(int j) const { return rank_ * C::kOwn + j; }
  // Of the lanes that have an own slab's channels, those of the first rows.
  __device__ bool IsFirstRow() const { return first_row_ == 0; }

  // The thread that starts loads.
  __device__ bool IsLoader() const { return warp_ == 3 && lane_ == 0; }

  // Starts the loads of step i's gates of the own slabs.
  __device__ void LoadGates(int i) {
    if (!IsLoader() || i >= work_.chunks) return;
    const uint32_t full = SharedAddress(&shared_.g_full[i % 2]);
    BarrierArriveExpect(full, sizeof(shared_.g[0]));
#pragma unroll
    for (int j = 0; j < C::kOwn; ++j) {
      TensorLoad(SharedAddress(shared_.g[i % 2][j]), &params_.g, KeyColumn(j),
                 Row(i), full);
    }
  }

  // Starts the loads of step i's q, perhaps k, of the own slabs.
  __device__ void LoadRaw(int i) {
    if (!IsLoader() || i >= work_.chunks) return;
    const uint32_t full = SharedAddress(&shared_.raw_full[i % C::kRaws]);
    auto& raw = shared_.raw[i % C::kRaws];
    BarrierArriveExpect(full, sizeof(raw));
#pragma unroll
    for (int j = 0; j < C::kOwn; ++j) {
      TensorLoad(SharedAddress(raw[j].q), &params_.q, KeyColumn(j), Row(i),
                 full);
      if constexpr (C::kAllAhead) {
        TensorLoad(SharedAddress(raw[j].k), &params_.k, KeyColumn(j), Row(i),
                   full);
      }
    }
  }

  // Starts the loads of what comes into step i's stage: x, and k, in the place
  // of k^, if it is not loaded ahead.
  __device__ void LoadStage(int i) {
    if (!IsLoader()) return;
    if constexpr (!C::kAllAhead) {
      const uint32_t k_full = SharedAddress(&shared_.k_full);
      BarrierArriveExpect(k_full, C::kOwn * kSlabBytes);
#pragma unroll
      for (int j = 0; j < C::kOwn; ++j) {
        TensorLoad(SharedAddress(KeySlabs(i)[OwnSlab(j)]), &params_.k,
                   KeyColumn(j), Row(i), k_full);
      }
    }
    const uint32_t x_full = SharedAddress(&shared_.x_full[i % C::kStages]);
    BarrierArriveExpect(x_full, 2 * kSlabBytes);
    for (int group = 0; group < 2; ++group) {
      TensorLoad(SharedAddress(shared_.stage[i % C::kStages].x[group]),
                 &params_.x, work_.h * C::V + work_.first_value + group * 64,
                 Row(i), x_full);
    }
  }

  // An own slab's first channel, in rows of H K.
  __device__ int KeyColumn(int j) const {
    return work_.h * C::K + OwnSlab(j) * 64;
  }
  // The first row of step i's chunk.
  __device__ int Row(int i) const {
    return work_.rows.first + ChunkAt<C>(work_, i) * kChunk;
  }

  // Rows of step i's chunk that the sequence has; may be more than a chunk.
  __device__ int RowsOf(int i) const {
    return work_.rows.length - ChunkAt<C>(work_, i) * kChunk;
  }

  // Zeros in the rows past the sequence, whatever lies there: each lane in
  // those that it reads.
  __device__ void MaskGates(int i) {
#pragma unroll 1
    for (int r = max(first_row_, RowsOf(i)); r < first_row_ + kRows; ++r) {
      *RawGatesAt(i, r) = {};
    }
    FenceAsyncProxy();  // Before the next load writes there.
  }
  __device__ void MaskRows(int i) {
#pragma unroll 1
    for (int r = max(first_row_, RowsOf(i)); r < first_row_ + kRows; ++r) {
      *RawQueryAt(i, r) = uint4{};
      *RawKeyAt(i, r) = uint4{};
    }
    FenceAsyncProxy();
  }

  // What the gates of the chunk's rows before this lane's add up to.
  __device__ void SumGates(int i, Gates& before) {
    Gates own = {}, all;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      AddGates(*RawGatesAt(i, first_row_ + r), own);
    }
    SumRowGroups(own, before, all);
    const int part = warp_ % kSlabWarps;
    if (lane_ < 8) StoreSums(all, &shared_.totals[own_][part][8 * piece_]);
    NamedBarrier(kGateBarrier, 128);
    AddTotals(before, part);
  }

  // Adds the totals of the own slab's first warps.
  __device__ void AddTotals(Gates& sum, int warps = kSlabWarps) const {
#pragma unroll
    for (int w = 0; w < kSlabWarps; ++w) {
      if (w >= warps) break;
      Gates total;
      LoadSums(&shared_.totals[own_][w][8 * piece_], total);
#pragma unroll
      for (int c = 0; c < 8; ++c) sum[c] += total[c];
    }
  }

  // q~ and k^ of this lane's rows; `b` is the cumulative gate before them.
  template <bool kSteep>
  __device__ void GateRows(int i, Gates& b) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = first_row_ + r;
      const uint4 q = *RawQueryAt(i, row), k = *RawKeyAt(i, row);
      AddGates(*RawGatesAt(i, row), b);
      *PieceAt(QuerySlabs(i), row) = GateQuery(q, b, args_.scale);
      Gates shift = {};
      if constexpr (kSteep) {
        AddTotals(shift);
#pragma unroll
        for (int c = 0; c < 8; ++c) shift[c] = KeyShift(shift[c]);
      }
      *PieceAt(KeySlabs(i), row) = GateKey(k, b, shift);
    }
  }

  using Slab = uint8_t[kSlabBytes];
  __device__ Slab* QuerySlabs(int i) {
    auto& tiles = shared_.stage[i % C::kStages];
    return C::kReverse ? tiles.b : tiles.a;
  }
  __device__ Slab* KeySlabs(int i) {
    auto& tiles = shared_.stage[i % C::kStages];
    return C::kReverse ? tiles.a : tiles.b;
  }

  // This lane's channels in a row of its own slab, as loaded and gated.
  __device__ RawGates<Gate>* RawGatesAt(int i, int row) {
    return reinterpret_cast<RawGates<Gate>*>(
        &shared_.g[i % 2][own_][row][8 * piece_]);
  }
  __device__ uint4* RawQueryAt(int i, int row) {
    return reinterpret_cast<uint4*>(
        &shared_.raw[i % C::kRaws][own_].q[row][8 * piece_]);
  }
  __device__ uint4* RawKeyAt(int i, int row) {
    if constexpr (C::kAllAhead) {
      return reinterpret_cast<uint4*>(
          &shared_.raw[i % C::kRaws][own_].k[row][8 * piece_]);
    } else {
      return PieceAt(KeySlabs(i), row);
    }
  }
  __device__ uint4* PieceAt(Slab* slabs, int row) const {
    return reinterpret_cast<uint4*>(slabs[OwnSlab(own_)] +
                                    SlabOffset(row, piece_));
  }

  // Returns whether any of the own slab's channels is steep.
  __device__ bool StoreDecay(int stage) {
    Gates all = {};
    AddTotals(all);
    if (!C::kOutput) {
#pragma unroll
      for (int c = 0; c < 8; ++c) sums_[c] += all[c];
    }
    bool steep[8], any = false;
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      steep[c] = IsSteep(all[c]);
      any |= steep[c];
    }
    any = __any_sync(0xffffffff, any);
    if (!IsFirstRow()) return any;
    SlabDecay& decay = shared_.decay[stage][OwnSlab(own_)];
#pragma unroll
    for (int c = 0; c < 8; c += 2) {
      const float d0 = Exp2(all[c]), d1 = Exp2(all[c + 1]);
      *reinterpret_cast<float2*>(&decay.edge[c / 2][2 * piece_]) = {
          steep[c] ? 1 : d0, steep[c + 1] ? 1 : d1};
      *reinterpret_cast<float2*>(&decay.mid[c / 2][2 * piece_]) = {
          steep[c] ? d0 : 1, steep[c + 1] ? d1 : 1};
    }
    if (lane_ == 0) decay.any_steep = any;
    return any;
  }

  // Sends the own slabs to the other blocks of the cluster, one a warp.
  __device__ void Publish(int stage) {
    if (lane_ != 0) return;
    auto& tiles = shared_.stage[stage];
    if (warp_ + 1 < C::kCluster) {
#pragma unroll
      for (int j = 0; j < C::kOwn; ++j) {
        const int slab = OwnSlab(j);
        Send(tiles.a[slab], kSlabBytes, stage);
        Send(tiles.b[slab], kSlabBytes, stage);
        Send(&shared_.decay[stage][slab], sizeof(SlabDecay), stage);
      }
    }
    if (IsLoader()) {
      constexpr uint32_t kBytes = 2 * kSlabBytes + sizeof(SlabDecay);
      BarrierArriveExpect(SharedAddress(&shared_.full[stage]),
                          (C::kSlabs - C::kOwn) * kBytes);
    }
  }

  // Sends to this warp's peer.
  __device__ void Send(const void* data, uint32_t bytes, int stage) {
    const uint32_t peer = (rank_ + 1 + warp_) % C::kCluster;
    const uint32_t address = SharedAddress(data);
    ClusterCopy(ClusterAddress(address, peer), address, bytes,
                ClusterAddress(SharedAddress(&shared_.full[stage]), peer));
  }

  __device__ void StorePieceDecay() {
    const int64_t head = work_.n * args_.shape.H + work_.h;
    float* const to = args_.piece_decays +
                      (head * args_.pieces + work_.piece) * C::K +
                      OwnSlab(own_) * 64 + 8 * piece_;
    for (int c = 0; c < 8; ++c) to[c] = Exp2(sums_[c]);
  }

  const ScanParams& params_;
  const ScanArgs& args_;
  const ScanWork& work_;
  ScanShared<C>& shared_;
  const int warp_, lane_, rank_;
  const int own_;  // the slab that this warp gates, of the block's own
  const int first_row_, piece_;  // this lane's kRows rows and 8 channels
  Gates sums_ = {};              // gates of the piece so far
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_GATES_CUH_
