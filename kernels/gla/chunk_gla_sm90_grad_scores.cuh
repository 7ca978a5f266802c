// The score warpgroup of the gradient kernel (chunk_gla_sm90_grad.cuh): forms
// dA and <S, D>.
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
        rank_(ClusterRank()),
        warp_(__shfl_sync(0xffffffff, threadIdx.x / 32 % 4, 0)),
        lane_(threadIdx.x % 32) {}

  __device__ void Run() {
    GradItems<C> items;
    GradWork work;
    for (int n = 0; items.Next(params_, &work); ++n) {
      float d_a[3][32] = {};
      float flow[8] = {};
#pragma unroll 1
      for (int step = 0; step < C::kSteps; ++step) {
        AddStep(d_a, flow);
        if (step == C::kSteps / 2) AwaitMains(n);
      }
      NamedBarrierArrive(kGradLastStepBarrier, C::kThreads - 128);
      BarrierWait(SharedAddress(&shared_.can_score), n & 1);
      Store(work.rows, d_a[0], Single(), Single());
      Store(work.rows, d_a[1], Pair(), 0);
      Store(work.rows, d_a[2], Pair(), 1);
      StoreFlow(flow);
      if (IsSender()) {
        BarrierArriveExpect(SharedAddress(&shared_.scored), 3 * kSlabBytes);
      } else {
        BarrierArrive(SharedAddress(&shared_.scored));
      }
    }
  }

 private:
  // The blocks of dA that are formed here, the others being the other block's:
  // one of a chunk with itself, and one chunk's with the first two.
  __device__ int Single() const { return rank_ == 0 ? 0 : 2; }
  __device__ int Pair() const { return rank_ == 0 ? 2 : 1; }

  __device__ bool IsSender() const { return warp_ == 0 && lane_ == 0; }

  // Waits until the main warpgroups are done with dA and <S, D> of item n - 1,
  // and tells the other block.
  __device__ void AwaitMains(int n) {
#pragma unroll 1
    for (int c = 0; c < kSegmentChunks; ++c) {
      BarrierWait(SharedAddress(&shared_.finished[c]), (n & 1) ^ 1);
    }
    if (IsSender()) {
      ClusterBarrierArrive(
          ClusterAddress(SharedAddress(&shared_.can_score), rank_ ^ 1));
    }
  }

  // dA += do v^T and flow += <S, D> of a step's values.
  __device__ void AddStep(float (&d_a)[3][32], float (&flow)[8]) {
    constexpr Contract kAlong = Contract::kAlongColumns;
    const int index = step_ % C::kStages;
    BarrierWait(SharedAddress(&shared_.full[index]), StepParity<C>(step_));
    const auto& stage = shared_.stage[index];
    const uint64_t d_o_single =
        HalfSlabDescriptor(SharedAddress(stage.d_o[Single()]));
    const uint64_t v_single =
        HalfSlabDescriptor(SharedAddress(stage.v[Single()]));
    const uint64_t d_o_pair =
        HalfSlabDescriptor(SharedAddress(stage.d_o[Pair()]));
    const uint64_t v = HalfSlabDescriptor(SharedAddress(stage.v));
    FlowPieces pieces;
    LoadFlow(stage, pieces);
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < C::kValues / 16; ++i) {
      Wgmma<kAlong, kAlong>(d_a[0], StepDescriptor<kAlong>(d_o_single, i),
                            StepDescriptor<kAlong>(v_single, i), true);
      Wgmma<kAlong, kAlong>(d_a[1], d_a[2], StepDescriptor<kAlong>(d_o_pair, i),
                            StepDescriptor<kAlong>(v, i), true);
    }
    WgmmaCommit();
    AddFlow(pieces, flow);
    WgmmaWait<0>();
    Touch(d_a[0]);
    Touch(d_a[1]);
    Touch(d_a[2]);
    ReleaseStep<C>(shared_, step_);
    ++step_;
  }

  // A lane has eight channels of <S, D> and every sixteenth row (value).
  static constexpr int kFlowRows = C::kValues / 16;
  using FlowPieces = uint4[kFlowRows][2];
  __device__ void LoadFlow(const typename GradShared<C>::Stage& stage,
                           FlowPieces& pieces) const {
    const int lane = Opaque(lane_);
    const uint32_t offset = SlabOffset(4 * warp_ + lane / 8, lane % 8);
#pragma unroll
    for (int i = 0; i < kFlowRows; ++i) {
      pieces[i][0] =
          LoadShared128(SharedAddress(stage.state) + offset + i * 2048);
      pieces[i][1] =
          LoadShared128(SharedAddress(stage.d_state) + offset + i * 2048);
    }
  }
  static __device__ void AddFlow(const FlowPieces& pieces, float (&flow)[8]) {
#pragma unroll
    for (int i = 0; i < kFlowRows; ++i) {
      AddProducts(pieces[i][0], pieces[i][1], flow);
    }
  }
  // Adds up a warp's rows, and halves the channels of a lane with each step.
  __device__ void StoreFlow(float (&flow)[8]) {
    const int lane = Opaque(lane_);
    int channel = 8 * (lane % 8);
#pragma unroll
    for (int size = 4; size >= 2; size /= 2) {
      const bool upper = lane & (4 * size);
#pragma unroll
      for (int j = 0; j < size; ++j) {
        const float kept = upper ? flow[j + size] : flow[j];
        const float sent = upper ? flow[j] : flow[j + size];
        flow[j] = kept + __shfl_xor_sync(0xffffffff, sent, 4 * size);
      }
      if (upper) channel += size;
    }
    shared_.flow[warp_][channel] = flow[0];
    shared_.flow[warp_][channel + 1] = flow[1];
  }

  // Stores a block of dA, here and in the other block: queries of chunk `c`,
  // keys of chunk `key`. Zero where the key is later and where there is no
  // query.
  __device__ void Store(int rows, const float (&d_a)[32], int c, int key) {
    const int lane = Opaque(lane_);
    const int row = warp_ * 16 + lane / 4, column = lane % 4 * 2;
    const uint32_t slab = SharedAddress(shared_.d_a[ScoreBlock(c, key)]);
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
    FenceAsyncProxy();
    NamedBarrier(kGradScoreBarrier, 128);
    if (IsSender()) {
      ClusterCopy(ClusterAddress(slab, rank_ ^ 1), slab, kSlabBytes,
                  ClusterAddress(SharedAddress(&shared_.scored), rank_ ^ 1));
    }
  }

  const GradParams& params_;
  GradShared<C>& shared_;
  const int rank_, warp_, lane_;
  int step_ = 0;  // of all items
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_SCORES_CUH_
