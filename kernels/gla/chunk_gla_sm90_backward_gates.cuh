// The gate warpgroups of the one-kernel backward pass
// (chunk_gla_sm90_backward.cuh): gated operands in, dq, dk and dg out.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_GATES_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_GATES_CUH_

#include "kernels/gla/chunk_gla_sm90_backward_shared.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_finish.cuh"

namespace gla::internal {

template <typename C>
class BackwardGates {
 public:
  __device__ BackwardGates(const BackwardParams& params, const ScanWork& work,
                           BackwardShared<C>& shared)
      : params_(params),
        args_(params.grad),
        work_(work),
        shared_(shared),
        warp_(__shfl_sync(0xffffffff, threadIdx.x / 32 % C::kGateWarps, 0)),
        lane_(threadIdx.x % 32),
        slab_(warp_ / kSlabWarps),
        part_(warp_ % kSlabWarps),
        first_row_((part_ * kRowGroups + lane_ / kLanes) * kRows) {}

  __device__ void Run() {
    LoadRaw(0);
    LoadRaw(1);
    LoadLogDecay(0);
    int gated = 0;
#pragma unroll 1
    for (int i = 0; i < work_.chunks; ++i) {
#pragma unroll 1
      for (; gated < work_.chunks && gated < i + 2; ++gated) Gate(gated);
      BarrierWait(SharedAddress(&shared_.finished[i % 2]), Parity<2>(i));
      Store(i);
      LoadRaw(i + 2);
    }
    if (IsLoader()) TensorStoreWaitRead();
  }

 private:
  using GateT = typename C::Gate;
  static constexpr bool kGatesInSlab = sizeof(GateT) == 2;
  static constexpr int kChannels = 4;             // of a lane
  static constexpr int kLanes = 64 / kChannels;   // of a row
  static constexpr int kRowGroups = 32 / kLanes;  // of a warp
  static constexpr int kSlabWarps = BackwardShared<C>::kSlabWarps;
  static constexpr int kRows = kChunk / kSlabWarps / kRowGroups;  // of a lane
  static constexpr int kThreads = 32 * C::kGateWarps;
  using Gates = float[kChannels];
  using LaneGates = RawGates<GateT, kChannels>;
  using Piece = Bf16Piece<kChannels>;

  __device__ bool IsLoader() const {
    return warp_ == C::kGateWarps - 1 && lane_ == 0;
  }
  // This lane's first channel in its slab.
  __device__ int Channel() const { return lane_ % kLanes * kChannels; }
  // A slab's first channel, in rows of H K.
  __device__ int Column(int slab) const { return work_.h * C::K + slab * 64; }
  // The first row of step i's chunk, and how many the sequence has of it.
  __device__ int64_t FirstRow(int i) const {
    return work_.rows.first + ChunkAt<C>(work_, i) * kChunk;
  }
  __device__ int RowsOf(int i) const {
    return work_.rows.length - ChunkAt<C>(work_, i) * kChunk;
  }

  // q, k and 16-bit gates, each in the place of what is made of it.
  __device__ void LoadRaw(int i) {
    if (!IsLoader() || i >= work_.chunks) return;
    auto& keys = shared_.keys[i % 2];
    const uint32_t full = SharedAddress(&shared_.raw_full[i % 2]);
    constexpr int kTensors = kGatesInSlab ? 3 : 2;
    BarrierArriveExpect(full, C::kSlabs * kTensors * kSlabBytes);
    const int row = FirstRow(i);
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
      const int column = Column(s);
      if constexpr (kGatesInSlab) {
        TensorLoad(SharedAddress(keys.b[s]), &params_.g, column, row, full);
      }
      TensorLoad(SharedAddress(keys.q[s]), &params_.q, column, row, full);
      TensorLoad(SharedAddress(keys.k[s]), &params_.k, column, row, full);
    }
  }

  // What step i's gates add up to, as the forward pass left it, ahead of use.
  __device__ void LoadLogDecay(int i) {
    if (i >= work_.chunks) return;
    LoadSums(
        LogDecays(args_.log_decays, args_.shape,
                  work_.chunk_slot + ChunkAt<C>(work_, i), work_.h, slab_) +
            (kChunkParts - 1) * 64 + Channel(),
        log_decay_);
  }

  __device__ void Gate(int i) {
    const int stage = i % 2;
    auto& keys = shared_.keys[stage];
    const int rows = RowsOf(i);
    BarrierWait(SharedAddress(&shared_.raw_full[stage]), Parity<2>(i));
    // A row's gates, or zero where there is no row.
    const auto gates = [&](int r) -> LaneGates {
      const int row = first_row_ + r;
      if (row >= rows) return {};
      if constexpr (kGatesInSlab) {
        return {PieceAt(keys.b, r)};
      } else {
        return *reinterpret_cast<const LaneGates*>(
            static_cast<const float*>(args_.g) +
            (FirstRow(i) + row) * (args_.shape.H * C::K) + Column(slab_) +
            Channel());
      }
    };
    const auto raw = [&](uint8_t(&slabs)[C::kSlabs][kSlabBytes],
                         int r) -> Piece {
      return first_row_ + r < rows ? PieceAt(slabs, r) : Piece{};
    };
    // A row of an operand and, if there is one, of its rest.
    const auto store = [&](const Gates& x, bool is_query, int r) {
      const Piece rounded = Round(x);
      PieceAt(is_query ? keys.q : keys.k, r) = rounded;
      if constexpr (C::kRests) {
        auto& rests = shared_.rests[stage];
        PieceAt(is_query ? rests.q : rests.k, r) = RoundRest(x, rounded);
      }
    };
    Gates own = {}, b, all;
#pragma unroll
    for (int r = 0; r < kRows; ++r) AddGates(gates(r), own);
    SumRowGroups(own, b, all);
    if (lane_ < kLanes && part_ < kSlabWarps - 1) {
      StoreSums(all, &shared_.totals[slab_][part_][Channel()]);
    }
    NamedBarrier(kBackwardGateBarrier, kThreads);
#pragma unroll
    for (int w = 0; w < kSlabWarps - 1; ++w) {
      Gates total;
      LoadSums(&shared_.totals[slab_][w][Channel()], total);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        if (w < part_) b[c] += total[c];
      }
    }
    Gates shift;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) shift[c] = KeyShift(log_decay_[c]);
    if (first_row_ == 0) StoreDecay(stage);
    LoadLogDecay(i + 1);
    // The next row is loaded before this one is stored.
    LaneGates next_g = gates(0);
    Piece next_q = raw(keys.q, 0), next_k = raw(keys.k, 0);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const LaneGates g = next_g;
      const Piece q = next_q, k = next_k;
      if (r + 1 < kRows) {
        next_g = gates(r + 1);
        next_q = raw(keys.q, r + 1);
        next_k = raw(keys.k, r + 1);
      }
      AddGates(g, b);
      Gates x;
      GateQuery(q, b, args_.scale, x);
      store(x, /*is_query=*/true, r);
      GateKey(k, b, shift, x);
      store(x, /*is_query=*/false, r);
      PieceAt(keys.b, r) = LogUnits<C::Scaling::kLogUnits>(b);
    }
    FenceAsyncProxy();
    BarrierArrive(SharedAddress(&shared_.gated[stage]));
    NamedBarrier(kBackwardGateBarrier, kThreads);  // All have read the totals.
  }

  // By the first lanes of a slab's first warp.
  __device__ void StoreDecay(int stage) {
    Gates decay;
    bool any = false;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const bool steep = IsSteep(log_decay_[c]);
      decay[c] = steep ? -Exp2(log_decay_[c]) : Exp2(log_decay_[c]);
      any |= steep;
    }
    StoreSums(decay, &shared_.decay[stage][slab_ * 64 + Channel()]);
    any = __any_sync((1u << kLanes) - 1, any);
    if (lane_ == 0) shared_.any_steep[stage][slab_] = any;
  }

  // This lane's channels in its row r.
  __device__ Piece& PieceAt(uint8_t (&slabs)[C::kSlabs][kSlabBytes],
                            int r) const {
    return reinterpret_cast<Piece&>(
        slabs[slab_][SlabElement(first_row_ + r, Channel())]);
  }

  // The gradients of step i.
  __device__ void Store(int i) {
    const int rows = RowsOf(i);
    auto& keys = shared_.keys[i % 2];
    if (rows < kChunk) {
      StoreRows(i, rows);
    } else if (IsLoader()) {
      const int row = FirstRow(i);
#pragma unroll
      for (int s = 0; s < C::kSlabs; ++s) {
        const int column = Column(s);
        TensorStore(&params_.dq, column, row, SharedAddress(keys.q[s]));
        TensorStore(&params_.dk, column, row, SharedAddress(keys.k[s]));
        if (kGatesInSlab) {
          TensorStore(&params_.d_g, column, row, SharedAddress(keys.b[s]));
        }
      }
      TensorStoreCommit();
      TensorStoreWaitRead();
    }
  }

  // Of a sequence's last chunk, only its own rows: eight threads a row.
  __device__ void StoreRows(int i, int rows) {
    const auto& keys = shared_.keys[i % 2];
    const int piece = lane_ % 8;
#pragma unroll 1
    for (int s = 0; s < C::kSlabs; ++s) {
      for (int r = warp_ * 4 + lane_ / 8; r < rows; r += 4 * C::kGateWarps) {
        const uint32_t place = SlabOffset(r, piece);
        const int64_t offset =
            (FirstRow(i) + r) * (args_.shape.H * C::K) + Column(s) + piece * 8;
        const auto store = [place, offset](void* tensor, const uint8_t* from) {
          *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(tensor) +
                                    offset) =
              *reinterpret_cast<const uint4*>(from + place);
        };
        store(args_.dq, keys.q[s]);
        store(args_.dk, keys.k[s]);
        if (kGatesInSlab) store(args_.dg, keys.b[s]);
      }
    }
    FenceAsyncProxy();
    NamedBarrier(kBackwardGateBarrier, kThreads);  // Before the next load.
  }

  const BackwardParams& params_;
  const GradArgs& args_;
  const ScanWork& work_;
  BackwardShared<C>& shared_;
  const int warp_, lane_;
  const int slab_, part_;  // this warp's, and which of the slab's warps it is
  const int first_row_;    // of this lane's kRows
  Gates log_decay_;        // of the next step to gate
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_GATES_CUH_
