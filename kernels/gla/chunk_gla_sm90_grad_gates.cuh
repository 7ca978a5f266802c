// The gate warpgroup of the gradient kernel (chunk_gla_sm90_grad.cuh): gated
// operands in, gradients out.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_GATES_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_GATES_CUH_

#include "kernels/gla/chunk_gla_sm90_gating.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_shared.cuh"

namespace gla::internal {

template <typename C>
class GradGates {
 public:
  __device__ GradGates(const GradParams& params, GradShared<C>& shared)
      : params_(params),
        shared_(shared),
        warp_(__shfl_sync(0xffffffff, threadIdx.x / 32 % 4, 0)),
        lane_(threadIdx.x % 32) {}

  __device__ void Run() {
    GradItems<C> items;
    GradWork next;
    bool has_next = items.Next(params_, &next);
    for (int c = 0; c < kSegmentChunks && has_next; ++c) LoadRaw(next, c);
    for (int n = 0; has_next; ++n) {
      work_ = next;
      has_next = items.Next(params_, &next);
      // A warp has 64 channels of a chunk.
      const int slab = warp_ / 2, chunk = warp_ % 2;
      Gates decay = {};
      if (work_.RowsOf(chunk) > 0) LoadDecay(slab, chunk, decay);
      BarrierWait(SharedAddress(&shared_.raw_full[chunk]), n & 1);
      Gate(slab, chunk, decay);
      if (IsLoader()) {
        shared_.work = work_;
        shared_.has_next = has_next;
      }
      FenceAsyncProxy();
      BarrierArrive(SharedAddress(&shared_.gated_full));
      for (int c = kSegmentChunks - 1; c >= 0; --c) {
        BarrierWait(SharedAddress(&shared_.finished[c]), n & 1);
        Store(c);
        if (has_next) LoadRaw(next, c);
      }
    }
  }

 private:
  using GateT = typename C::Gate;
  // A lane has eight channels.
  using Gates = float[8];
  using Raw = RawGates<GateT, 8>;
  using Piece = Bf16Piece<8>;
  static constexpr bool kGatesInSlab = sizeof(GateT) == 2;

  static constexpr int kRows = kChunk / 4;  // of a lane

  __device__ bool IsLoader() const { return warp_ == 0 && lane_ == 0; }
  // The first channel of a slab in a row of H K.
  __device__ int Column(const GradWork& work, int slab) const {
    return work.h * C::K + (work.slice * C::kMains + slab) * 64;
  }

  // q, k and 16-bit gates of an item's chunk, each in the place of what is made
  // of it.
  __device__ void LoadRaw(const GradWork& work, int c) {
    if (!IsLoader()) return;
    const uint32_t full = SharedAddress(&shared_.raw_full[c]);
    constexpr int kTensors = kGatesInSlab ? 3 : 2;
    BarrierArriveExpect(full, C::kMains * kTensors * kSlabBytes);
    const int row = work.row + c * kChunk;
    for (int slab = 0; slab < C::kMains; ++slab) {
      auto& gated = shared_.gated[slab];
      const int column = Column(work, slab);
      TensorLoad(SharedAddress(gated.q[c]), &params_.q, column, row, full);
      TensorLoad(SharedAddress(gated.k[c]), &params_.k, column, row, full);
      if (kGatesInSlab) {
        TensorLoad(SharedAddress(gated.b[c]), &params_.g, column, row, full);
      }
    }
  }

  // What the gates of a chunk add up to, as the forward pass left it.
  __device__ void LoadDecay(int slab, int c, Gates& decay) const {
    LoadSums(params_.args.log_decays +
                 ((work_.slot * kSegmentChunks + c) * params_.args.shape.H +
                  work_.h) *
                     C::K +
                 (work_.slice * C::kMains + slab) * 64 + lane_ % 8 * 8,
             decay);
  }

  __device__ void Gate(int slab, int c, const Gates& decay) {
    auto& gated = shared_.gated[slab];
    const int piece = lane_ % 8, first = lane_ / 8 * kRows;
    const int rows = work_.RowsOf(c);
    // A lane's rows' gates, or zero where there is no row.
    const auto gates = [&](int row) -> Raw {
      if (row >= rows) return {};
      if constexpr (kGatesInSlab) {
        return {*PieceAt(gated.b[c], row)};
      } else {
        const int64_t offset =
            (work_.row + c * kChunk + row) * (params_.args.shape.H * C::K) +
            Column(work_, slab) + 8 * piece;
        return *reinterpret_cast<const Raw*>(
            static_cast<const float*>(params_.args.g) + offset);
      }
    };
    Gates b = {}, all;
#pragma unroll 1
    for (int r = first; r < first + kRows; r += 4) {
      Raw g[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) g[i] = gates(r + i);
#pragma unroll
      for (int i = 0; i < 4; ++i) AddGates(g[i], b);
    }
    SumRowGroups(b, b, all);
    if (lane_ < 8) {
      StoreSums(decay, &shared_.log_decay[c][slab * 64 + 8 * piece]);
    }
    Gates shift;
    bool any = false;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      any |= IsSteep(decay[i]);
      shift[i] = KeyShift(decay[i]);
    }
    any = __any_sync(0xffffffff, any);
    if (lane_ == 0) shared_.any_steep[slab][c] = any;
    constexpr int kBatch = 2;  // rows whose loads are issued together
#pragma unroll 1
    for (int r = first; r < first + kRows; r += kBatch) {
      Raw g[kBatch];
      Piece q[kBatch], k[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        g[i] = gates(r + i);
        q[i] = *PieceAt(gated.q[c], r + i);
        k[i] = *PieceAt(gated.k[c], r + i);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        AddGates(g[i], b);
        if (r + i >= rows) q[i] = k[i] = {};
        Gates x;
        GateQuery(q[i], b, params_.args.scale, x);
        *PieceAt(gated.q[c], r + i) = Round(x);
        GateKey(k[i], b, shift, x);
        *PieceAt(gated.k[c], r + i) = Round(x);
        *PieceAt(gated.b[c], r + i) = LogUnits(b);
      }
    }
  }

  __device__ Piece* PieceAt(uint8_t (&slab)[kSlabBytes], int row) const {
    return reinterpret_cast<Piece*>(slab + SlabOffset(row, lane_ % 8));
  }

  // The gradients of a chunk.
  __device__ void Store(int c) {
    if (work_.RowsOf(c) < kChunk) {
      StoreRows(c);
    } else if (IsLoader()) {
      const int row = work_.row + c * kChunk;
      for (int slab = 0; slab < C::kMains; ++slab) {
        auto& gated = shared_.gated[slab];
        const int column = Column(work_, slab);
        TensorStore(&params_.dq, column, row, SharedAddress(gated.q[c]));
        TensorStore(&params_.dk, column, row, SharedAddress(gated.k[c]));
        if (kGatesInSlab) {
          TensorStore(&params_.d_g, column, row, SharedAddress(gated.b[c]));
        }
      }
      TensorStoreCommit();
      TensorStoreWaitRead();
    }
  }

  // Of a sequence's last chunk, only its own rows: eight threads a row.
  __device__ void StoreRows(int c) {
    const int piece = lane_ % 8;
    for (int slab = 0; slab < C::kMains; ++slab) {
      const auto& gated = shared_.gated[slab];
      for (int r = warp_ * 4 + lane_ / 8; r < work_.RowsOf(c); r += 16) {
        const uint32_t place = SlabOffset(r, piece);
        const int64_t offset =
            (work_.row + c * kChunk + r) * (params_.args.shape.H * C::K) +
            Column(work_, slab) + piece * 8;
        const auto store = [place, offset](void* tensor, const uint8_t* from) {
          *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(tensor) +
                                    offset) =
              *reinterpret_cast<const uint4*>(from + place);
        };
        store(params_.args.dq, gated.q[c]);
        store(params_.args.dk, gated.k[c]);
        if (kGatesInSlab) store(params_.args.dg, gated.b[c]);
      }
    }
    FenceAsyncProxy();
    NamedBarrier(kGradGateBarrier, 128);  // Before the next load.
  }

  const GradParams& params_;
  GradShared<C>& shared_;
  GradWork work_;
  const int warp_, lane_;
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_GATES_CUH_
