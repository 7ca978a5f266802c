// The warp of the gradient kernel (chunk_gla_sm90_grad.cuh) that takes items
// and loads steps.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_LOADS_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_LOADS_CUH_

#include "kernels/device/dependent_launch_sm90.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_shared.cuh"

namespace gla::internal {

template <typename C>
class GradLoads {
 public:
  __device__ GradLoads(const GradParams& params, GradShared<C>& shared)
      : params_(params), shared_(shared), rank_(ClusterRank()) {}

  // By one thread.
  __device__ void Run() {
    // Negative: one to be rehearsed.
    int item = static_cast<int>(blockIdx.x / C::kCluster) - params_.rehearsing;
    if (item >= 0 && Find(item).rows == 0) item = Share(item);
    for (int n = 0;; ++n) {
      GradWork work = Find(max(item, 0));
      if (item < 0) work.rows = 0;
      shared_.work(n) = work;
      BarrierArrive(SharedAddress(&shared_.known[n & 1]));
      if (work.rows < 0) break;
      if (work.rows > 0) AwaitKernelBefore();  // D
      int next = -1;
#pragma unroll 1
      for (int i = 0; i < C::kSteps; ++i) {
        // As late as can be, so that clusters that are ahead take more, but
        // under way beside the last loads.
        if (i == C::kSteps - 2 && rank_ == 0 && item >= 0) next = Take();
        Load(work, i * C::kValues);
      }
      item = Share(next);
    }
    AwaitKernelBefore();  // Kernels end in order, also without items.
  }

 private:
  __device__ GradWork Find(int item) const {
    return FindGradWork<C>(params_, item);
  }

  // The first item that no cluster has; there may be none.
  __device__ int Take() const {
    AwaitKernelBefore();
    const int by_place = gridDim.x / C::kCluster - params_.rehearsing;
    return by_place + atomicAdd(params_.args.taken, 1);
  }

  // The cluster's next item: the first block's `item` or, if it is negative or
  // a slot that no segment uses, what that block takes instead.
  __device__ int Share(int item) {
    const uint32_t told = SharedAddress(&shared_.told);
    if (rank_ > 0) {
      BarrierArriveExpect(told, sizeof(shared_.next_item));
      BarrierWait(told, shares_++ & 1);
      return shared_.next_item[0];
    }
    while (item < 0 || Find(item).rows == 0) item = Take();
    shared_.next_item[0] = item;
    FenceAsyncProxy();
    const uint32_t place = SharedAddress(shared_.next_item);
    ClusterCopy(ClusterAddress(place, 1), place, sizeof(shared_.next_item),
                ClusterAddress(told, 1));
    return item;
  }

  // Starts the loads of the next step, of values from `value` on, once its
  // stage is free in both blocks: S and D for this one, and for both either d_o
  // or v.
  __device__ void Load(const GradWork& work, int value) {
    const int index = step_ % C::kStages;
    auto& stage = shared_.stage[index];
    BarrierWait(SharedAddress(&shared_.empty[index]), StepParity<C>(step_) ^ 1);
    ++step_;
    const uint32_t full = SharedAddress(&shared_.full[index]);
    BarrierArriveExpect(full, sizeof(stage));
    TensorLoadMulticast(SharedAddress(rank_ == 0 ? stage.d_o : stage.v),
                        rank_ == 0 ? &params_.d_o : &params_.v,
                        work.h * C::V + value, work.row, full,
                        (1 << C::kCluster) - 1);
    const int row = ((work.slot * params_.args.shape.H + work.h) * C::kSlices +
                     work.slice) *
                        C::V +
                    value;
    const GradArgs& args = params_.args;
    const bool has_state = !work.is_first || args.has_initial_state;
    const bool has_d_state = !work.is_last || args.has_d_final_state;
    // A copy from before the tensor brings zeros.
    TensorLoad(SharedAddress(stage.state), &params_.states, 0,
               has_state ? row : -C::kValues, full);
    TensorLoad(SharedAddress(stage.d_state), &params_.d_states, 0,
               has_d_state ? row : -C::kValues, full);
  }

  const GradParams& params_;
  GradShared<C>& shared_;
  const int rank_;
  int step_ = 0;    // of all items
  int shares_ = 0;  // of which this block was told
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_LOADS_CUH_
