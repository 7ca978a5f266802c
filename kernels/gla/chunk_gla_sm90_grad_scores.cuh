// The score warpgroup of the gradient kernel (chunk_gla_sm90_grad.cuh): loads
// all steps, and forms dA.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_SCORES_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_SCORES_CUH_

#include "kernels/gla/chunk_gla_sm90_grad_shared.cuh"

namespace gla::internal {

template <typename C>
class GradScores {
 public:
  __device__ GradScores(const GradParams& params, GradShared<C>& shared)
      : params_(params),
        shared_(shared),
        warp_(__shfl_sync(0xffffffff, threadIdx.x / 32 % 4, 0)),
        lane_(threadIdx.x % 32) {}

  __device__ void Run() {
    if (IsLoader()) {
      shared_.loads = GradCursor<C>();
      for (int i = 0; i < C::kStages; ++i) LoadNext();
    }
    GradItems<C> items;
    GradWork work;
    while (items.Next(params_, &work)) {
      float d_a[3][32] = {};  // as GradShared has them
#pragma unroll 1
      for (int step = 0; step < C::kSteps; ++step) {
        AddStep(d_a);
        if (step + 1 < C::kSteps && IsLoader()) {
          LoadNext();
          LoadNext();
        }
      }
      Store(work.rows, d_a[0], 0, 0);
      Store(work.rows, d_a[1], 1, 0);
      Store(work.rows, d_a[2], 1, 1);
      FenceAsyncProxy();
      BarrierArrive(SharedAddress(&shared_.scored));
      if (IsLoader()) {
        LoadNext();
        LoadNext();
      }
    }
  }

 private:
  __device__ bool IsLoader() const { return warp_ == 0 && lane_ == 0; }

  // Starts the loads of the next half step, if there is one, once its stage is
  // free.
  __device__ void LoadNext() {
    if (!shared_.loads.Next(params_)) return;
    const GradWork& work = shared_.loads.work;
    const int step = shared_.loads.half / 2;
    const bool second = shared_.loads.half % 2;
    const int index = load_count_ % C::kStages;
    auto& stage = shared_.stage[index];
    BarrierWait(SharedAddress(&shared_.empty[index]),
                HalfStepParity<C>(load_count_) ^ 1);
    ++load_count_;
    const uint32_t full = SharedAddress(&shared_.full[index]);
    BarrierArriveExpect(full, sizeof(stage));
    TensorLoad(SharedAddress(stage.rows), second ? &params_.v : &params_.d_o,
               work.h * C::V + step * 64, work.row, full);
    const int64_t slab =
        ((work.slot * params_.args.shape.H + work.h) * (C::K / 64) +
         work.slice * C::kMains) *
            C::kSteps +
        step;
#pragma unroll
    for (int i = 0; i < C::kMains; ++i) {
      TensorLoad(SharedAddress(stage.state[i]),
                 second ? &params_.d_states : &params_.states, 0,
                 (slab + i * C::kSteps) * kSlabRows, full);
    }
  }

  __device__ uint64_t WaitForRows() {
    const int index = half_step_ % C::kStages;
    BarrierWait(SharedAddress(&shared_.full[index]),
                HalfStepParity<C>(half_step_));
    ++half_step_;
    return SlabDescriptor(SharedAddress(shared_.stage[index].rows));
  }
  __device__ void Release(int half_step) {
    if (lane_ == 0) {
      BarrierArrive(SharedAddress(&shared_.empty[half_step % C::kStages]));
    }
  }

  // dA += do v^T of 64 values.
  __device__ void AddStep(float (&d_a)[3][32]) {
    constexpr Contract kAlong = Contract::kAlongColumns;
    constexpr int kChunkSlab = kSlabBytes >> 4;  // in a descriptor
    const uint64_t d_o = WaitForRows();
    const uint64_t v = WaitForRows();
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint64_t b = StepDescriptor<kAlong>(v, i);
      Wgmma<kAlong, kAlong>(d_a[0], StepDescriptor<kAlong>(d_o, i), b, true);
      Wgmma<kAlong, kAlong>(
          d_a[1], d_a[2], StepDescriptor<kAlong>(d_o + kChunkSlab, i), b, true);
    }
    WgmmaCommit();
    WgmmaWait<0>();
    Touch(d_a[0]);
    Touch(d_a[1]);
    Touch(d_a[2]);
    __syncwarp();
    Release(half_step_ - 2);
    Release(half_step_ - 1);
  }

  // Stores a block of dA: queries of chunk `c`, keys of chunk `key`. Zero where
  // the key is later and where there is no query.
  __device__ void Store(int rows, const float (&d_a)[32], int c, int key) {
    const int row = warp_ * 16 + lane_ / 4, column = lane_ % 4 * 2;
    const uint32_t element =
        SharedAddress(shared_.d_a[c + key]) + SlabElement(row, column);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int t = c * kChunk + row + 8 * i;
        const int u = key * kChunk + column + 8 * j;
        const float low = u <= t && t < rows ? d_a[4 * j + 2 * i] : 0;
        const float high = u + 1 <= t && t < rows ? d_a[4 * j + 2 * i + 1] : 0;
        StoreShared32((element ^ (j << 4)) + i * 1024, PackBf16(low, high));
      }
    }
  }

  const GradParams& params_;
  GradShared<C>& shared_;
  const int warp_, lane_;
  int load_count_ = 0;  // half steps loaded
  int half_step_ = 0;
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_SCORES_CUH_
