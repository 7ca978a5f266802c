// The gate warps of the gradient kernel (chunk_gla_sm90_grad.cuh), one a chunk:
// gated operands in, gradients out.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_GATES_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_GATES_CUH_

#include "kernels/gla/chunk_gla_sm90_gating.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_shared.cuh"

namespace gla::internal {

template <typename C>
class GradGates {
 public:
  __device__ GradGates(const GradParams& params, GradShared<C>& shared,
                       int chunk)
      : params_(params),
        shared_(shared),
        gated_(shared.gated[chunk]),
        chunk_(chunk),
        lane_(threadIdx.x % 32) {}

  __device__ void Run() {
    GradItems<C> items;
    GradWork next;
    bool has_next = items.Next(params_, &next);
    if (has_next) {
      LoadKeys(next);
      LoadGates(next);
    }
    for (int n = 0; has_next; ++n) {
      work_ = next;
      has_next = items.Next(params_, &next);
      Gates decay = {};
      if (Rows() > 0) LoadDecay(decay);
      BarrierWait(SharedAddress(&shared_.raw_full[chunk_]), n & 1);
      // All main warpgroups read decays and the item: none is in the last one.
      for (int c = 0; c < kSegmentChunks; ++c) {
        BarrierWait(SharedAddress(&shared_.finished[c]), (n & 1) ^ 1);
      }
      Gate(decay);
      if (chunk_ == 0 && lane_ == 0) {
        shared_.work = work_;
        shared_.has_next = has_next;
      }
      FenceAsyncProxy();
      BarrierArrive(SharedAddress(&shared_.gated_full));
      BarrierWait(SharedAddress(&shared_.keys_finished[chunk_]), n & 1);
      StoreKeys();
      if (has_next) LoadKeys(next);
      BarrierWait(SharedAddress(&shared_.finished[chunk_]), n & 1);
      StoreGates();
      if (has_next) LoadGates(next);
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

  __device__ int Rows() const { return work_.RowsOf(chunk_); }
  // The first row of B T and the first column of H K of an item's chunk.
  __device__ int Row(const GradWork& work) const {
    return work.row + chunk_ * kChunk;
  }
  static __device__ int Column(const GradWork& work) {
    return work.h * C::K + work.slice * 64;
  }
  // Where this lane's channels of a row are in a [B, T, H, K] tensor.
  __device__ int64_t Offset(int row) const {
    return (Row(work_) + row) * (params_.args.shape.H * C::K) + Column(work_) +
           lane_ % 8 * 8;
  }

  // q and k of an item's chunk, each in the place of what is made of it; 16-bit
  // gates, which LoadGates loads, are expected too.
  __device__ void LoadKeys(const GradWork& work) {
    if (lane_ != 0) return;
    const uint32_t full = SharedAddress(&shared_.raw_full[chunk_]);
    constexpr int kTensors = kGatesInSlab ? 3 : 2;
    BarrierArriveExpect(full, kTensors * kSlabBytes);
    const int column = Column(work), row = Row(work);
    TensorLoad(SharedAddress(gated_.q), &params_.q, column, row, full);
    TensorLoad(SharedAddress(gated_.k), &params_.k, column, row, full);
  }
  __device__ void LoadGates(const GradWork& work) {
    if (!kGatesInSlab || lane_ != 0) return;
    TensorLoad(SharedAddress(gated_.b), &params_.g, Column(work), Row(work),
               SharedAddress(&shared_.raw_full[chunk_]));
  }

  // What the gates of the chunk add up to, as the forward pass left it.
  __device__ void LoadDecay(Gates& decay) const {
    const int64_t slot = work_.chunk_slot + chunk_;
    LoadSums(params_.args.log_decays +
                 (slot * params_.args.shape.H + work_.h) * C::K +
                 work_.slice * 64 + lane_ % 8 * 8,
             decay);
  }

  __device__ void Gate(const Gates& decay) {
    const int first = lane_ / 8 * kRows, rows = Rows();
    // A lane's rows' gates, or zero where there is no row.
    const auto gates = [&](int row) -> Raw {
      if (row >= rows) return {};
      if constexpr (kGatesInSlab) {
        return {*PieceAt(gated_.b, row)};
      } else {
        return *reinterpret_cast<const Raw*>(
            static_cast<const float*>(params_.args.g) + Offset(row));
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
    if (lane_ < 8) StoreSums(decay, &shared_.log_decay[chunk_][8 * lane_]);
    Gates shift;
    bool any = false;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      any |= IsSteep(decay[i]);
      shift[i] = KeyShift(decay[i]);
    }
    any = __any_sync(0xffffffff, any);
    if (lane_ == 0) shared_.any_steep[chunk_] = any;
    constexpr int kBatch = 2;  // rows whose loads are issued together
#pragma unroll 1
    for (int r = first; r < first + kRows; r += kBatch) {
      Raw g[kBatch];
      Piece q[kBatch], k[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        g[i] = gates(r + i);
        q[i] = *PieceAt(gated_.q, r + i);
        k[i] = *PieceAt(gated_.k, r + i);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        AddGates(g[i], b);
        if (r + i >= rows) q[i] = k[i] = {};
        Gates x;
        GateQuery(q[i], b, params_.args.scale, x);
        *PieceAt(gated_.q, r + i) = Round(x);
        GateKey(k[i], b, shift, x);
        *PieceAt(gated_.k, r + i) = Round(x);
        *PieceAt(gated_.b, r + i) = LogUnits(b);
      }
    }
  }

  __device__ Piece* PieceAt(uint8_t (&slab)[kSlabBytes], int row) const {
    return reinterpret_cast<Piece*>(slab + SlabOffset(row, lane_ % 8));
  }

  // dq and dk of the chunk.
  __device__ void StoreKeys() {
    if (Rows() < kChunk) {
      StoreRows(params_.args.dq, gated_.q);
      StoreRows(params_.args.dk, gated_.k);
    } else if (lane_ == 0) {
      const int column = Column(work_), row = Row(work_);
      TensorStore(&params_.dq, column, row, SharedAddress(gated_.q));
      TensorStore(&params_.dk, column, row, SharedAddress(gated_.k));
      TensorStoreCommit();
      TensorStoreWaitRead();
    }
  }

  // dg, where gates are of 16 bits.
  __device__ void StoreGates() {
    if (!kGatesInSlab) return;
    if (Rows() < kChunk) {
      StoreRows(params_.args.dg, gated_.b);
    } else if (lane_ == 0) {
      TensorStore(&params_.d_g, Column(work_), Row(work_),
                  SharedAddress(gated_.b));
      TensorStoreCommit();
      TensorStoreWaitRead();
    }
  }

  // Of a sequence's last chunk, only its own rows: eight lanes a row.
  __device__ void StoreRows(void* tensor, const uint8_t (&slab)[kSlabBytes]) {
    for (int r = lane_ / 8; r < Rows(); r += 4) {
      *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(tensor) +
                                Offset(r)) =
          *reinterpret_cast<const uint4*>(slab + SlabOffset(r, lane_ % 8));
    }
    FenceAsyncProxy();
    __syncwarp();  // Before the next load.
  }

  const GradParams& params_;
  GradShared<C>& shared_;
  typename GradShared<C>::Gated& gated_;
  const int chunk_, lane_;
  GradWork work_;
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_GATES_CUH_
