// The gate warpgroup of the one-kernel backward pass
// (chunk_gla_sm90_backward.cuh): q~, k^ and their rests in the places of q and
// k.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_GATES_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_GATES_CUH_

#include "kernels/gla/chunk_gla_sm90_backward_shared.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_finish.cuh"

namespace gla::internal {

template <typename C>
class BackwardGates {
 public:
  __device__ BackwardGates(const BackwardParams& params,
                           BackwardShared<C>& shared)
      : args_(params.grad),
        work_(shared.work),
        shared_(shared),
        warp_(__shfl_sync(0xffffffff, threadIdx.x / 32 % C::kGateWarps, 0)),
        lane_(threadIdx.x % 32),
        slab_(warp_ / kSlabWarps),
        part_(warp_ % kSlabWarps),
        first_row_((part_ * kRowGroups + lane_ / kLanes) * kRows) {}

  __device__ void Run() {
    LoadAhead(0);
#pragma unroll 1
    for (int i = 0; i < work_.chunks; ++i) Gate(i);
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
  // Whether a lane's rows are a part, before which the forward pass has left
  // what gates add up to.
  static constexpr bool kHasPart = kRows == kPartTokens;
  using Gates = float[kChannels];
  using LaneGates = RawGates<GateT, kChannels>;
  using Piece = Bf16Piece<kChannels>;

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

  // What step i's gates add up to, and a token's score with itself, as the
  // forward pass left them, ahead of use.
  __device__ void LoadAhead(int i) {
    if (i >= work_.chunks) return;
    const int64_t slot = work_.chunk_slot + ChunkAt<C>(work_, i);
    const float* const sums =
        LogDecays(args_.log_decays, args_.shape, slot, work_.h, slab_) +
        Channel();
    LoadSums(sums + (kChunkParts - 1) * 64, log_decay_);
    if (kHasPart && first_row_ > 0) {
      LoadSums(sums + (first_row_ / kPartTokens - 1) * 64, before_);
    }
    if (Token() < kChunk) {
      own_score_ =
          OwnScores(args_.own_scores, args_.shape, slot, work_.h)[Token()];
    }
  }
  __device__ int Token() const { return warp_ * 32 + lane_; }

  __device__ void Gate(int i) {
    const int stage = i % 2;
    auto& keys = shared_.keys[stage];
    const int rows = RowsOf(i);
    BarrierWait(SharedAddress(&shared_.raw_full[stage]), Parity<2>(i));
    if (rows < kChunk) MaskRows(keys, rows);
    const auto gates = [&](int r) -> LaneGates {
      if constexpr (kGatesInSlab) {
        return {PieceAt(keys.b, r)};
      } else {
        const int row = first_row_ + r;
        if (row >= rows) return {};
        return *reinterpret_cast<const LaneGates*>(
            static_cast<const float*>(args_.g) +
            (FirstRow(i) + row) * (args_.shape.H * C::K) + Column(slab_) +
            Channel());
      }
    };
    // A row of an operand and of its rest.
    const int64_t stride = args_.shape.H * C::K;
    const int64_t first =
        (FirstRow(i) + first_row_) * stride + Column(slab_) + Channel();
    __nv_bfloat16 *query_rest = args_.dq + first, *key_rest = args_.dk + first;
    const auto store = [&](const Gates& x, bool is_query, int r) {
      const Piece rounded = Round(x);
      PieceAt(is_query ? keys.q : keys.k, r) = rounded;
      const Piece rest = RoundRest(x, rounded);
      if constexpr (C::kRoomy) {
        auto& rests = shared_.rests[stage];
        PieceAt(is_query ? rests.q : rests.k, r) = rest;
      } else {
        __nv_bfloat16*& to = is_query ? query_rest : key_rest;
        StoreIf(first_row_ + r < rows, rest, to);
        to += stride;
      }
    };
    Gates b;
    if constexpr (kHasPart) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) b[c] = before_[c];
    } else {
      SumGatesBefore(gates, b);
    }
    Gates shift;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) shift[c] = KeyShift(log_decay_[c]);
    if (first_row_ == 0) StoreDecay(stage);
    if (Token() < kChunk) shared_.own_scores[stage][Token()] = own_score_;
    LoadAhead(i + 1);
    // In halves, by one copy of the code. A row is loaded before the one before
    // it is stored.
    LaneGates next_g = gates(0);
    Piece next_q = PieceAt(keys.q, 0), next_k = PieceAt(keys.k, 0);
#pragma unroll 1
    for (int first = 0; first < kRows; first += kRows / 2) {
#pragma unroll
      for (int n = 0; n < kRows / 2; ++n) {
        const int r = first + n;
        const int next = n + 1 < kRows / 2 ? r + 1 : min(r + 1, kRows - 1);
        const LaneGates g = next_g;
        const Piece q = next_q, k = next_k;
        next_g = gates(next);
        next_q = PieceAt(keys.q, next);
        next_k = PieceAt(keys.k, next);
        AddGates(g, b);
        Gates x;
        GateQuery(q, b, args_.scale, x);
        store(x, /*is_query=*/true, r);
        GateKey(k, b, shift, x);
        store(x, /*is_query=*/false, r);
        // Of steep channels, where they may exceed, they are not used.
        PieceAt(keys.b, r) = LogUnits<C::Scaling::kLogUnits, false>(b);
      }
    }
    FenceAsyncProxy();
    if constexpr (!C::kRoomy) FenceAsyncProxyGlobal();
    BarrierArrive(SharedAddress(&shared_.gated[stage]));
    if (!kHasPart)
      NamedBarrier(kBackwardGateBarrier, kThreads);  // totals: read
  }

  // Zeros in the rows past the sequence, whatever lies there: each lane in
  // those that it reads.
  __device__ void MaskRows(typename BackwardShared<C>::Keys& keys, int rows) {
#pragma unroll 1
    for (int r = max(0, rows - first_row_); r < kRows; ++r) {
      PieceAt(keys.q, r) = {};
      PieceAt(keys.k, r) = {};
      if (kGatesInSlab) PieceAt(keys.b, r) = {};
    }
  }

  // What the gates before this lane's rows add up to; gates(r) are row r's.
  template <typename Fn>
  __device__ void SumGatesBefore(Fn gates, Gates& b) {
    Gates own = {}, all;
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
  }

  // Without a branch, around which a row's instructions could not move.
  static __device__ void StoreIf(bool condition, const Piece& piece,
                                 __nv_bfloat16* to) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %0, 0;\n"
        "@p st.global.v2.b32 [%1], {%2, %3};\n}\n" ::"r"(
            static_cast<int>(condition)),
        "l"(to), "r"(piece.pairs[0]), "r"(piece.pairs[1]));
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

  const GradArgs& args_;
  const ScanWork& work_;
  BackwardShared<C>& shared_;
  const int warp_, lane_;
  const int slab_, part_;  // this warp's, and which of the slab's warps it is
  const int first_row_;    // of this lane's kRows
  Gates log_decay_;        // of the next step to gate
  Gates before_ = {};      // the same before this lane's rows, if kHasPart
  float own_score_;
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_GATES_CUH_
