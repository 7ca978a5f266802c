// The warp of the gradient kernel (chunk_gla_sm90_grad.cuh) that loads steps.
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
    GradItems<C> items(params_);
    GradWork work;
    while (items.Next(params_, &work)) {
      if (work.rows > 0) AwaitKernelBefore();  // D
#pragma unroll 1
      for (int i = 0; i < C::kSteps; ++i) Load(work, i * C::kValues);
    }
    AwaitKernelBefore();  // Kernels end in order, also without items.
  }

 private:
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
  int step_ = 0;  // of all items
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_LOADS_CUH_
