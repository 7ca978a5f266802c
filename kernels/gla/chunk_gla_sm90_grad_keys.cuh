// The warps of the gradient kernel (chunk_gla_sm90_grad.cuh) that load q, k and
// g, gate them and store dq, dk and dg, one a chunk.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_KEYS_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_KEYS_CUH_

#include "kernels/gla/chunk_gla_sm90_grad_gates.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_shared.cuh"

namespace gla::internal {

template <typename C>
class GradKeys {
 public:
  __device__ GradKeys(const GradParams& params, GradShared<C>& shared,
                      int chunk)
      : params_(params),
        shared_(shared),
        chunk_(chunk),
        lane_(Opaque(threadIdx.x % 32)) {}

  __device__ void Run() {
    int n = 0;
    for (; shared_.HasItem(n); ++n) {
      // While the main warpgroups are at the item before.
      const Gates gates(params_, shared_, n, chunk_, lane_);
      const auto decays = gates.LoadDecays();
      BarrierWait(SharedAddress(&shared_.keys_free), (n & 1) ^ 1);
      LoadKeys(n);
      if (n > 0) StoreKeys(n - 1);
      BarrierWait(SharedAddress(&shared_.keys_full[chunk_]), n & 1);
      const auto exponents = gates.FindExponents();
      LoadGates(n);
      if (n > 0) StoreGates(n - 1);
      auto factors = gates.FindFactors(decays, exponents);
      BarrierWait(SharedAddress(&shared_.gates_full[chunk_]), n & 1);
      gates.Gate(factors);
      FenceAsyncProxy();
      BarrierArrive(SharedAddress(&shared_.gated_full));
      FreeScores();
    }
    if (n > 0) {
      StoreKeys(n - 1);
      StoreGates(n - 1);
    }
    AwaitTensorStores(lane_);
  }

 private:
  using Gates = GradGates<C>;

  static constexpr bool kGatesInSlab = sizeof(typename C::Gate) == 2;

  // The chunk's first row of B T and first column of H K.
  __device__ int Row(const GradWork& work) const {
    return work.row + chunk_ * kChunk;
  }
  __device__ int Column(const GradWork& work) const {
    return work.h * C::K + work.slice * 64;
  }

  // q and k of item n, in the place of its operands.
  __device__ void LoadKeys(int n) {
    if (lane_ != 0) return;
    const uint32_t full = SharedAddress(&shared_.keys_full[chunk_]);
    auto& keys = shared_.keys(n, chunk_);
    BarrierArriveExpect(full, sizeof(keys));
    const int column = Column(shared_.work(n)), row = Row(shared_.work(n));
    TensorLoad(SharedAddress(keys.q), &params_.q, column, row, full);
    TensorLoad(SharedAddress(keys.k), &params_.k, column, row, full);
  }

  // 16-bit gates, where the last item's dq was.
  __device__ void LoadGates(int n) {
    if (lane_ != 0) return;
    const uint32_t full = SharedAddress(&shared_.gates_full[chunk_]);
    if (!kGatesInSlab) {
      BarrierArrive(full);
      return;
    }
    TensorStoreWaitRead<1>();  // dk may still be on its way
    BarrierArriveExpect(full, kSlabBytes);
    TensorLoad(SharedAddress(shared_.raw_gates(n, chunk_)), &params_.g,
               Column(shared_.work(n)), Row(shared_.work(n)), full);
  }

  // Starts to store dq and dk of item n, when they are there.
  __device__ void StoreKeys(int n) {
    BarrierWait(SharedAddress(&shared_.keys_finished[chunk_]), n & 1);
    const GradWork& work = shared_.work(n);
    auto& keys = shared_.keys(n, chunk_);
    if (work.RowsOf(chunk_) < kChunk) {
      StoreRows(work, params_.args.dq, keys.q);
      StoreRows(work, params_.args.dk, keys.k);
      FenceAsyncProxy();
      __syncwarp();  // Before the next load.
    } else if (lane_ == 0) {
      const int column = Column(work), row = Row(work);
      TensorStore(&params_.dq, column, row, SharedAddress(keys.q));
      TensorStoreCommit();
      TensorStore(&params_.dk, column, row, SharedAddress(keys.k));
      TensorStoreCommit();
    }
  }

  // The same of dg, if gates are of 16 bits.
  __device__ void StoreGates(int n) {
    BarrierWait(SharedAddress(&shared_.gates_finished[chunk_]), n & 1);
    if (!kGatesInSlab) return;
    const GradWork& work = shared_.work(n);
    auto& d_g = shared_.gates[chunk_];
    if (work.RowsOf(chunk_) < kChunk) {
      StoreRows(work, params_.args.dg, d_g);
      __syncwarp();  // Before LogUnits take its place.
    } else if (lane_ == 0) {
      TensorStore(&params_.d_g, Column(work), Row(work), SharedAddress(d_g));
      TensorStoreCommit();
    }
  }

  // Tells both blocks that of this chunk nothing is in the way of dA any more.
  __device__ void FreeScores() const {
    __syncwarp();
    if (lane_ < C::kCluster) {
      ClusterBarrierArrive(
          ClusterAddress(SharedAddress(&shared_.can_score), lane_));
    }
  }

  // Of a sequence's last chunk, only its own rows: eight lanes a row.
  __device__ void StoreRows(const GradWork& work, void* tensor,
                            const uint8_t (&slab)[kSlabBytes]) {
    const int64_t stride = params_.args.shape.H * C::K;
    const int64_t first =
        work.template KeyOffset<C>(params_.args.shape.H, chunk_) +
        lane_ % 8 * 8;
    for (int r = lane_ / 8; r < work.RowsOf(chunk_); r += 4) {
      *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(tensor) + first +
                                r * stride) =
          *reinterpret_cast<const uint4*>(slab + SlabOffset(r, lane_ % 8));
    }
  }

  const GradParams& params_;
  GradShared<C>& shared_;
  const int chunk_, lane_;
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_KEYS_CUH_
