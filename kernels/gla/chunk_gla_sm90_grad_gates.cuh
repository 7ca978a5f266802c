// From q, k and g of a chunk to its operands, by a warp
// (chunk_gla_sm90_grad.cuh).
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_GATES_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_GATES_CUH_

#include "kernels/gla/chunk_gla_sm90_gating.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_shared.cuh"

namespace gla::internal {

// Until this warp's stores have been read.
__device__ inline void AwaitTensorStores(int lane) {
  if (lane == 0) TensorStoreWaitRead();
  __syncwarp();
}

// A lane has the rows of a part, eight channels.
template <typename C>
class GradGates {
 public:
  using Piece = Bf16Piece<8>;
  using Gates = float[8];

  // Of a lane's channels: from its part's reference to the next one (as
  // PartGates), and what gates add up to from the reference to its rows.
  struct Decays {
    Gates decay, b;
    bool is_gentle;  // the chunk
  };

  // The powers of two that bring its q and k, in the part, below 2^16; with
  // PartGates::kExponentBias.
  struct Exponents {
    Piece q, k;
  };

  // What makes a lane's operands of its q and k: the powers of two that they
  // are multiplied by, bf16, and what gates add up to before its rows.
  struct Factors {
    Piece q, k;
    Gates b;
    bool any_steep;  // in the chunk
  };

  __device__ GradGates(const GradParams& params, GradShared<C>& shared, int n,
                       int chunk, int lane)
      : params_(params),
        shared_(shared),
        keys_(shared.keys(n, chunk)),
        raw_gates_(shared.raw_gates(n, chunk)),
        gates_(shared.gates[chunk]),
        work_(shared.work(n)),
        chunk_(chunk),
        lane_(lane),
        part_(lane / kLanes),
        channel_(lane % kLanes * 8),
        first_(SlabElement(part_ * kPartTokens, channel_)) {}

  // From what the forward pass left.
  __device__ Decays LoadDecays() const {
    Gates all, before;
    Decays decays;
    LoadSumsAt(kChunkParts, all);
    LoadSumsAt(part_ + 1, decays.decay);
    LoadSumsAt(part_, before);
    bool gentle = true;
#pragma unroll
    for (int i = 0; i < 8; ++i) gentle &= all[i] >= -kMaxGentleDecay;
    decays.is_gentle = gentle = __all_sync(0xffffffff, gentle);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      decays.decay[i] = gentle ? all[i] : decays.decay[i] - before[i];
      decays.b[i] = gentle ? before[i] : 0;
    }
    return decays;
  }

  // q and k are there.
  __device__ Exponents FindExponents() const {
    const int rows = work_.RowsOf(chunk_);
    if (rows < kChunk) {
      ClearRows(keys_.q, rows);
      ClearRows(keys_.k, rows);
    }
    Piece q = {}, k = {};
#pragma unroll 2
    for (int i = 0; i < kPartTokens; ++i) {
      KeepMost(*PieceAt(keys_.q, i), q);
      KeepMost(*PieceAt(keys_.k, i), k);
    }
    return {ExponentsOf(q), ExponentsOf(k)};
  }

  // Sets the chunk's PartGates and decays too: its main warpgroup is done with
  // the last item's.
  __device__ Factors FindFactors(const Decays& decays,
                                 Exponents exponents) const {
    Factors factors;
    const bool gentle = decays.is_gentle;
    if (part_ == 0) {
      float* const to = &shared_.log_decay[chunk_][channel_];
      if (gentle) {
        StoreSums(decays.decay, to);
      } else {
        Gates all;
        LoadSumsAt(kChunkParts, all);
        StoreSums(all, to);
      }
    }
    if (gentle) {
      TakeLeastOfChunk(exponents.q);
      TakeLeastOfChunk(exponents.k);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) factors.b[i] = decays.b[i];
    factors.any_steep = __any_sync(
        0xffffffff, SetPart(gentle, decays.decay, exponents, factors));
    if (lane_ == 0) {
      shared_.any_steep[chunk_] = factors.any_steep;
      shared_.is_gentle[chunk_] = gentle;
    }
    return factors;
  }

  // Operands, and LogUnits.
  __device__ void Gate(Factors& factors) const {
    const int rows = work_.RowsOf(chunk_);
    if (kGatesInSlab && rows < kChunk) ClearRows(raw_gates_, rows);
    // The last dg has been read, which was in the place of LogUnits.
    AwaitTensorStores(lane_);
    if (factors.any_steep) {
      GateRows<true>(rows, factors);
    } else {
      GateRows<false>(rows, factors);
    }
  }

 private:
  using GateT = typename C::Gate;
  using Raw = RawGates<GateT, 8>;
  static constexpr int kLanes = 8;  // of a row
  static constexpr bool kGatesInSlab = sizeof(GateT) == 2;

  __device__ int RowOf(int i) const { return part_ * kPartTokens + i; }
  __device__ Piece* PieceAt(uint8_t (&slab)[kSlabBytes], int i) const {
    return reinterpret_cast<Piece*>(slab + (first_ ^ i % 8 * 16) + i * 128);
  }
  __device__ Raw LoadGates(int i, int rows) const {
    if constexpr (kGatesInSlab) {
      return {*PieceAt(raw_gates_, i)};
    } else {
      const int row = RowOf(i);
      if (row >= rows) return {};
      const int64_t H = params_.args.shape.H;
      return *reinterpret_cast<const Raw*>(
          static_cast<const float*>(params_.args.g) +
          work_.template KeyOffset<C>(H, chunk_) + row * (H * C::K) + channel_);
    }
  }

  // Makes rows zero that the sequence does not have.
  __device__ void ClearRows(uint8_t (&slab)[kSlabBytes], int rows) const {
    const int first = max(rows - RowOf(0), 0);
#pragma unroll 1
    for (int i = first; i < kPartTokens; ++i) *PieceAt(slab, i) = {};
  }

  // Larger magnitudes of x take the place of those in `most`.
  static __device__ void KeepMost(const Piece& x, Piece& most) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      auto& kept = reinterpret_cast<__nv_bfloat162&>(most.pairs[i]);
      kept = __hmax2(
          kept, __habs2(reinterpret_cast<const __nv_bfloat162&>(x.pairs[i])));
    }
  }
  // The exponents that bring numbers up to `most` below 2^16. (Not so small
  // that growth could not be taken from both of a pair at once.)
  static __device__ Piece ExponentsOf(const Piece& most) {
    constexpr uint32_t kHalves = 0x10001;  // for both channels of a pair
    constexpr uint32_t kBias = PartGates::kExponentBias, kFloatBias = 127;
    Piece exponents;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t own = most.pairs[i] >> 7 & 0xff * kHalves;
      exponents.pairs[i] =
          __vminu2(__vmaxu2((15 + kFloatBias + kBias) * kHalves - own,
                            (uint32_t{kMaxPartDecay} + 1) * kHalves),
                   (uint32_t{kMaxOperandExponent} + kBias) * kHalves);
    }
    return exponents;
  }
  // Of all parts.
  static __device__ void TakeLeastOfChunk(Piece& x) {
#pragma unroll
    for (int distance = kLanes; distance < 32; distance *= 2) {
      Piece other;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        other.pairs[i] = __shfl_xor_sync(0xffffffff, x.pairs[i], distance);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x.pairs[i] = __vminu2(x.pairs[i], other.pairs[i]);
      }
    }
  }

  // What gates add up to before part `part`.
  __device__ void LoadSumsAt(int part, Gates& sums) const {
    if (part > 0 && work_.RowsOf(chunk_) > 0) {
      LoadSums(LogDecays(params_.args.log_decays, params_.args.shape,
                         work_.chunk_slot + chunk_, work_.h, work_.slice) +
                   (part - 1) * 64 + channel_,
               sums);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[i] = 0;
    }
  }

  // Sets this lane's PartGates from the decays between references, and what q
  // and k are multiplied by. Returns whether any channel is steep.
  __device__ bool SetPart(bool gentle, const Gates& log_decay,
                          const Exponents& exponents, Factors& factors) const {
    // Of a gentle chunk, all of the decay is behind the last part.
    const bool at_once = gentle && part_ < kChunkParts - 1;
    bool any_steep = false;
    PartGates* const to = &shared_.parts[chunk_][part_][channel_];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t growth[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float log = log_decay[2 * i + j];
        const bool steep = IsSteepPart(log);
        growth[j] = steep ? 0 : __float2uint_ru(-log);
        any_steep |= steep;
      }
      const uint32_t q = exponents.q.pairs[i];
      const uint32_t k = exponents.k.pairs[i] - (growth[0] | growth[1] << 16);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        to[2 * i + j] = {at_once ? 0 : log_decay[2 * i + j],
                         __byte_perm(q, k, j == 0 ? 0x5410 : 0x7632)};
      }
      static_assert(PartGates::kExponentBias == 127, "as in bf16");
      factors.q.pairs[i] = q << 7;
      factors.k.pairs[i] = k << 7;
    }
    return any_steep;
  }

  // Of a row.
  struct Row {
    Raw g;
    Piece q, k;
  };
  __device__ Row Load(int i, int rows) const {
    return {LoadGates(i, rows), *PieceAt(keys_.q, i), *PieceAt(keys_.k, i)};
  }

  // The part's rows: q times e^b, k times e^-b, of steep channels e^(decay -
  // b).
  template <bool kSteep>
  __device__ void GateRows(int rows, Factors& factors) const {
    Gates& b = factors.b;
    Gates shift;
    if constexpr (kSteep) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        shift[i] = shared_.parts[chunk_][part_][channel_ + i].Mid();
      }
    }
    // A row is loaded before the one before it is stored: stores may alias.
    Row row = Load(0, rows);
#pragma unroll 2
    for (int i = 0; i < kPartTokens; ++i) {
      const Row next = Load(min(i + 1, kPartTokens - 1), rows);
      AddGates(row.g, b);
      *PieceAt(keys_.q, i) =
          Scale(row.q, factors.q, [&b](int j) { return b[j]; });
      *PieceAt(keys_.k, i) = Scale(row.k, factors.k, [&b, &shift](int j) {
        return kSteep ? shift[j] - b[j] : -b[j];
      });
      *PieceAt(gates_, i) = LogUnits<ScaledParts::kLogUnits, kSteep>(b);
      row = next;
    }
  }

  // x times its scale and 2^log.
  template <typename Fn>
  static __device__ Piece Scale(const Piece& x, const Piece& scale, Fn log) {
    Piece y;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const __nv_bfloat162 scaled =
          __hmul2(reinterpret_cast<const __nv_bfloat162&>(x.pairs[i]),
                  reinterpret_cast<const __nv_bfloat162&>(scale.pairs[i]));
      const uint32_t pair = reinterpret_cast<const uint32_t&>(scaled);
      y.pairs[i] = PackHalf(LowFloat(pair) * Exp2(log(2 * i)),
                            HighFloat(pair) * Exp2(log(2 * i + 1)));
    }
    return y;
  }

  const GradParams& params_;
  GradShared<C>& shared_;
  typename GradShared<C>::Keys& keys_;
  uint8_t (&raw_gates_)[kSlabBytes];
  uint8_t (&gates_)[kSlabBytes];
  const GradWork& work_;
  const int chunk_, lane_, part_, channel_;
  const uint32_t first_;  // the lane's place in the part's first row of a slab
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_GATES_CUH_
