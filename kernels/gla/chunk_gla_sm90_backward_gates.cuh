// The gate warpgroup of the one-kernel backward pass
// (chunk_gla_sm90_backward.cuh): q~, k^ and their rests in the places of q and
// k; and <S, D>.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_GATES_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_GATES_CUH_

#include "kernels/gla/chunk_gla_sm90_backward_flow.cuh"
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

  // A chunk is gated during the step before its own.
  __device__ void Run() {
    LoadAhead(0);
#pragma unroll 1
    for (int i = -1; i < work_.chunks; ++i) {
      if (i >= 0) FormStateFlow(i);
      if (i + 1 < work_.chunks) Gate(i + 1);
    }
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
  static constexpr int kWarpChannels = 64 / kSlabWarps;  // of <S, D>
  // Whether a lane's rows are a part, before which the forward pass has left
  // what gates add up to.
  static constexpr bool kHasPart = kRows == kPartTokens;
  using Gates = float[kChannels];
  using LaneGates = RawGates<GateT, kChannels>;
  using Piece = Bf16Piece<kChannels>;
  struct Row {
    LaneGates g;
    Piece q, k;
  };

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

  // The operands of step i's chunk, with rests and decays.
  __device__ void Gate(int i) {
    const int stage = i % 2;
    auto& keys = shared_.keys[stage];
    const int rows = RowsOf(i);
    BarrierWait(SharedAddress(&shared_.raw_full[stage]), Parity<2>(i));
    if (rows < kChunk) MaskRows(keys, rows);
    if (!C::kRoomy && i > 0) {  // Where its rests go, D was.
      BarrierWait(SharedAddress(&shared_.d_read), (i - 1) & 1);
    }
    const int64_t stride = args_.shape.H * C::K;
    __nv_bfloat16* const query_rest = args_.dq +
                                      (FirstRow(i) + first_row_) * stride +
                                      Column(slab_) + Channel();
    Gates b;
    if constexpr (kHasPart) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) b[c] = before_[c];
    } else {
      SumGatesBefore([&](int r) { return LoadGates(i, rows, PlaceOf(r), r); },
                     b);
    }
    Gates shift;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) shift[c] = KeyShift(log_decay_[c]);
    if (first_row_ == 0) StoreDecay(stage);
    if (Token() < kChunk) shared_.own_scores[stage][Token()] = own_score_;
    GateRows(i, rows, shift, query_rest, stride, b);
    FenceAsyncProxy();
    if constexpr (!C::kRoomy) FenceAsyncProxyGlobal();
    BarrierArrive(SharedAddress(&shared_.gated[stage]));
    LoadAhead(i + 1);
  }

  // This lane's rows; `b` is the cumulative gate before them. If not kRoomy,
  // the rest of the first one's q~ goes to `query_rest`, others' `stride` on.
  __device__ void GateRows(int i, int rows, const Gates& shift,
                           __nv_bfloat16* query_rest, int64_t stride,
                           Gates& b) {
    const int stage = i % 2;
    auto& keys = shared_.keys[stage];
    // A row of an operand and of its rest.
    const auto store = [&](const Gates& x, bool is_query, uint32_t place,
                           int r) {
      const Piece rounded = Round(x);
      PieceOf(is_query ? keys.q : keys.k, place) = rounded;
      const Piece rest = RoundRest(x, rounded);
      if (!is_query) {
        PieceOf(shared_.rests[stage].k, place) = rest;
      } else if constexpr (C::kRoomy) {
        PieceOf(shared_.rests[stage].q, place) = rest;
      } else {
        StoreIf(first_row_ + r < rows, rest, query_rest);
        query_rest += stride;
        Hide(query_rest);
      }
    };
    // In halves, by one copy of the code. A row is loaded before the one before
    // it is stored.
    constexpr int kHalf = kRows / 2;
    uint32_t half = Place(0);
    Row next = LoadRow(i, rows, half, 0);
#pragma unroll 1
    for (int first = 0; first < kRows; first += kHalf) {
      const uint32_t next_half = Place(kHalf);
#pragma unroll
      for (int n = 0; n < kHalf; ++n) {
        const Row row = next;
        const uint32_t place = RowPlace(half, n);
        const int r = first + n;
        next = n + 1 < kHalf
                   ? LoadRow(i, rows, RowPlace(half, n + 1), r + 1)
                   : LoadRow(i, rows, next_half, min(r + 1, kRows - 1));
        AddGates(row.g, b);
        Gates x;
        GateQuery(row.q, b, args_.scale, x);
        store(x, /*is_query=*/true, place, r);
        GateKey(row.k, b, shift, x);
        store(x, /*is_query=*/false, place, r);
        // Of steep channels, where they may exceed, they are not used.
        PieceOf(keys.b, place) = LogUnits<C::Scaling::kLogUnits, false>(b);
      }
      half = next_half;
    }
  }

  // Row r of this lane's, which is at `place`, before it is gated.
  __device__ Row LoadRow(int i, int rows, uint32_t place, int r) {
    auto& keys = shared_.keys[i % 2];
    Row row = {.q = PieceOf(keys.q, place), .k = PieceOf(keys.k, place)};
    row.g = LoadGates(i, rows, place, r);
    return row;
  }
  // Its gates: those of 32 bits are not in shared memory.
  __device__ LaneGates LoadGates(int i, int rows, uint32_t place, int r) {
    if constexpr (kGatesInSlab) {
      return {PieceOf(shared_.keys[i % 2].b, place)};
    } else {
      const int row = first_row_ + r;
      if (row >= rows) return {};
      return *reinterpret_cast<const LaneGates*>(
          static_cast<const float*>(args_.g) +
          (FirstRow(i) + row) * (args_.shape.H * C::K) + Column(slab_) +
          Channel());
    }
  }

  // Zeros in the rows past the sequence, whatever lies there: each lane in
  // those that it reads.
  __device__ void MaskRows(typename BackwardShared<C>::Keys& keys, int rows) {
#pragma unroll 1
    for (int r = max(0, rows - first_row_); r < kRows; ++r) {
      PieceOf(keys.q, PlaceOf(r)) = {};
      PieceOf(keys.k, PlaceOf(r)) = {};
      if (kGatesInSlab) PieceOf(keys.b, PlaceOf(r)) = {};
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
      StoreSums(all, &shared_.totals[part_][Channel()]);
    }
    NamedBarrier(kBackwardGateBarrier, kThreads);
#pragma unroll
    for (int w = 0; w < kSlabWarps - 1; ++w) {
      Gates total;
      LoadSums(&shared_.totals[w][Channel()], total);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        if (w < part_) b[c] += total[c];
      }
    }
  }

  // mid <S, D> of step i: a warp its channels.
  __device__ void FormStateFlow(int i) {
    BarrierWait(SharedAddress(&shared_.d_full), i & 1);
    BarrierWait(SharedAddress(&shared_.state_full), i & 1);
    const auto& d_state = shared_.StateGradient(i % 2, slab_);
#pragma unroll
    for (int n = 0; n < kWarpChannels / 16; ++n) {
      const int channel = part_ * kWarpChannels + 16 * n;  // in its slab
      ChannelProducts products = {};
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        AddSlabFlow(shared_.state[slab_][s], d_state[s],
                    SlabOffset((lane_ & 7) + ((lane_ >> 4) << 3),
                               channel / 8 + ((lane_ >> 3) & 1)),
                    products);
      }
      const float flow = TakeDiagonal(products, lane_);
      if (lane_ < 16) {
        const int place = slab_ * 64 + channel + lane_;
        const float all = shared_.decay[i % 2][place];
        shared_.state_flow[place] = (IsSteepDecay(all) ? -all : 1) * flow;
      }
    }
    BarrierArrive(SharedAddress(&shared_.d_read));
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

  // As if it were read here. What rows' addresses follow from would else be
  // kept in registers for each row, and those are full.
  static __device__ void Hide(uint32_t& x) { asm volatile("" : "+r"(x)); }
  static __device__ void Hide(__nv_bfloat16*& x) { asm volatile("" : "+l"(x)); }

  // Where this lane's row r is in slabs.
  __device__ uint32_t PlaceOf(int r) const {
    return slab_ * kSlabBytes + SlabElement(first_row_ + r, Channel());
  }
  // The same, hidden, of row 0 or 4 or 8, and row n of four or eight from there
  // on.
  __device__ uint32_t Place(int r) const {
    uint32_t place = PlaceOf(r);
    Hide(place);
    return place;
  }
  static __device__ uint32_t RowPlace(uint32_t place, int n) {
    return (place ^ n << 4) + n * 128;
  }
  static __device__ Piece& PieceOf(uint8_t (&slabs)[C::kSlabs][kSlabBytes],
                                   uint32_t place) {
    return *reinterpret_cast<Piece*>(&slabs[0][0] + place);
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
