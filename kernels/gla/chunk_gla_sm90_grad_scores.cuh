// The score warpgroup of the gradient kernel (chunk_gla_sm90_grad.cuh): loads
// all steps, and forms dA and <S, D>.
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
    if (IsLoader()) shared_.loads = GradCursor<C>(params_);
    for (int i = 0; i + 1 < C::kStages; ++i) LoadNext();
    GradItems<C> items;
    GradWork work;
    for (int n = 0; items.Next(params_, &work); ++n) {
      float d_a[3][32] = {};  // as GradShared has them
      float flow[8] = {};
#pragma unroll 1
      for (int step = 0; step < C::kSteps; ++step) {
        AddStep(step + 1 == C::kSteps, d_a, flow);
      }
      // The main warpgroups are done with those of the item before.
      BarrierWait(SharedAddress(&shared_.finished[0]), (n & 1) ^ 1);
      StoreFlow(flow);
      Store(work.rows, d_a[0], 0, 0);
      Store(work.rows, d_a[1], 1, 0);
      Store(work.rows, d_a[2], 1, 1);
      FenceAsyncProxy();
      BarrierArrive(SharedAddress(&shared_.scored));
      LoadNext();
    }
  }

 private:
  __device__ bool IsLoader() const { return warp_ == 0 && lane_ == 0; }

  // Starts the loads of the next step, if there is one, once its stage is free.
  __device__ void LoadNext() {
    if (!IsLoader() || !shared_.loads.Next(params_)) return;
    const GradWork& work = shared_.loads.work;
    const int index = load_count_ % C::kStages;
    auto& stage = shared_.stage[index];
    BarrierWait(SharedAddress(&shared_.empty[index]),
                StepParity<C>(load_count_) ^ 1);
    ++load_count_;
    const uint32_t full = SharedAddress(&shared_.full[index]);
    BarrierArriveExpect(full, sizeof(stage));
    const int first_value = shared_.loads.step * C::kValues;
    const int column = work.h * C::V + first_value;
    TensorLoad(SharedAddress(stage.d_o), &params_.d_o, column, work.row, full);
    TensorLoad(SharedAddress(stage.v), &params_.v, column, work.row, full);
    const int64_t slice =
        (work.slot * params_.args.shape.H + work.h) * C::kSlices + work.slice;
#pragma unroll
    for (int i = 0; i < C::kMains; ++i) {
      const int row = (slice * C::kMains + i) * C::V + first_value;
      TensorLoad(SharedAddress(stage.state[i]), &params_.states, 0, row, full);
      TensorLoad(SharedAddress(stage.d_state[i]), &params_.d_states, 0, row,
                 full);
    }
  }

  // dA += do v^T and flow += <S, D> of a step's values. Meanwhile starts the
  // next loads, into the stage of the step before; not after an item's last
  // step, when dA comes first.
  __device__ void AddStep(bool is_last, float (&d_a)[3][32], float (&flow)[8]) {
    constexpr Contract kAlong = Contract::kAlongColumns;
    constexpr int kNextChunk = kSlabBytes / 2 >> 4;  // in a descriptor
    const int index = step_ % C::kStages;
    BarrierWait(SharedAddress(&shared_.full[index]), StepParity<C>(step_));
    ++step_;
    const auto& stage = shared_.stage[index];
    const uint64_t d_o = HalfSlabDescriptor(SharedAddress(stage.d_o));
    const uint64_t v = HalfSlabDescriptor(SharedAddress(stage.v));
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < C::kValues / 16; ++i) {
      const uint64_t b = StepDescriptor<kAlong>(v, i);
      Wgmma<kAlong, kAlong>(d_a[0], StepDescriptor<kAlong>(d_o, i), b, true);
      Wgmma<kAlong, kAlong>(
          d_a[1], d_a[2], StepDescriptor<kAlong>(d_o + kNextChunk, i), b, true);
    }
    WgmmaCommit();
    if (!is_last) LoadNext();
    AddFlow(stage, flow);
    WgmmaWait<0>();
    Touch(d_a[0]);
    Touch(d_a[1]);
    Touch(d_a[2]);
    __syncwarp();
    if (lane_ == 0) BarrierArrive(SharedAddress(&shared_.empty[index]));
  }

  // A warp has 32 channels of <S, D>, a lane eight of them and every eighth row
  // (value). The pieces of a quarter of a warp lie in different banks.
  __device__ void AddFlow(const typename GradShared<C>::Stage& stage,
                          float (&flow)[8]) const {
    const int lane = Opaque(lane_), group = lane / 4, slab = warp_ / 2;
    const uint32_t offset =
        SlabOffset(group % 2 * 4 + group / 2, warp_ % 2 * 4 + lane % 4);
    const uint32_t state = SharedAddress(stage.state[slab]) + offset;
    const uint32_t d_state = SharedAddress(stage.d_state[slab]) + offset;
#pragma unroll
    for (int i = 0; i < C::kValues / 8; ++i) {
      AddProducts(state + i * 1024, d_state + i * 1024, flow);
    }
  }
  // Adds up the rows, and halves the channels of a lane with each step.
  __device__ void StoreFlow(float (&flow)[8]) {
    const int lane = Opaque(lane_);
    int channel = 32 * warp_ + 8 * (lane % 4);
#pragma unroll
    for (int size = 4; size >= 1; size /= 2) {
      const bool upper = lane & (4 * size);
#pragma unroll
      for (int j = 0; j < size; ++j) {
        const float kept = upper ? flow[j + size] : flow[j];
        const float sent = upper ? flow[j] : flow[j + size];
        flow[j] = kept + __shfl_xor_sync(0xffffffff, sent, 4 * size);
      }
      if (upper) channel += size;
    }
    shared_.flow[channel] = flow[0];
  }

  // Stores a block of dA: queries of chunk `c`, keys of chunk `key`. Zero where
  // the key is later and where there is no query.
  __device__ void Store(int rows, const float (&d_a)[32], int c, int key) {
    const int lane = Opaque(lane_);
    const int row = warp_ * 16 + lane / 4, column = lane % 4 * 2;
    const uint32_t slab = SharedAddress(shared_.d_a[c + key]);
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int t = row + i % 2 * 8, u = column + 8 * (j + i / 2);
        const int e = 4 * (j + i / 2) + i % 2 * 2;
        // Without branches; `last` is the query's last key.
        const int last = c * kChunk + t < rows ? t + (c - key) * kChunk : -1;
        pairs[i] =
            PackBf16(u <= last ? d_a[e] : 0, u + 1 <= last ? d_a[e + 1] : 0);
      }
      // Matrices: rows 0 .. 7 and 8 .. 15 of eight columns, then of the next.
      StoreMatrix(slab + SlabOffset(warp_ * 16 + lane % 16, j + lane / 16),
                  pairs);
    }
  }

  const GradParams& params_;
  GradShared<C>& shared_;
  const int warp_, lane_;
  int load_count_ = 0;  // steps loaded
  int step_ = 0;        // of all items
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_SCORES_CUH_
