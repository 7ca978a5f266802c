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
    for (int n = 0; shared_.HasItem(n); ++n) {
      const int rows = shared_.work(n).rows;
      float d_a[3][32] = {};
      float flow[8] = {};
#pragma unroll 1
      for (int step = 0; step < C::kSteps; ++step) {
        AddStep(d_a, flow);
      }
      NamedBarrierArrive(kGradLastStepBarrier, C::kThreads - 128);
      Mask(rows, Single(), Single(), d_a[0]);
      Mask(rows, Pair(), 0, d_a[1]);
      Mask(rows, Pair(), 1, d_a[2]);
      float exponent[3];
      FindExponents(d_a, exponent);
      BarrierWait(SharedAddress(&shared_.can_score), n & 1);
      Store(n, d_a[0], exponent[0], ScoreBlock(Single(), Single()));
      Store(n, d_a[1], exponent[1], ScoreBlock(Pair(), 0));
      Store(n, d_a[2], exponent[2], ScoreBlock(Pair(), 1));
      StoreFlow(flow);
      if (IsSender()) {
        BarrierArriveExpect(SharedAddress(&shared_.scored),
                            3 * (kSlabBytes + kExponentBytes));
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
    FenceAsyncProxy();  // S and D have been read.
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

  // Of a block of dA, queries of chunk `c` and keys of chunk `key`: zero where
  // the key is later and where there is no query.
  __device__ void Mask(int rows, int c, int key, float (&d_a)[32]) const {
    if (c != key && (c + 1) * kChunk <= rows) return;
    const int lane = Opaque(lane_);
    const int row = warp_ * 16 + lane / 4, column = lane % 4 * 2;
#pragma unroll
    for (int e = 0; e < 32; ++e) {
      const int t = row + e / 2 % 2 * 8, u = column + e / 4 * 8 + e % 2;
      if (c * kChunk + t >= rows || (c == key && u > t)) d_a[e] = 0;
    }
  }

  // What each block of dA is scaled by.
  __device__ void FindExponents(const float (&d_a)[3][32],
                                float (&exponent)[3]) const {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      float mosts[4] = {0, 0, 0, 0};  // side by side
#pragma unroll
      for (int e = 0; e < 32; ++e) {
        mosts[e % 4] = fmaxf(mosts[e % 4], fabsf(d_a[i][e]));
      }
      const float most =
          fmaxf(fmaxf(mosts[0], mosts[1]), fmaxf(mosts[2], mosts[3]));
      // Positive numbers are in the order of their bits.
      const uint32_t all = __reduce_max_sync(0xffffffff, __float_as_uint(most));
      if (lane_ == 0) shared_.most_score[i][warp_] = __uint_as_float(all);
    }
    NamedBarrier(kGradScoreBarrier, 128);
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const float4 most =
          *reinterpret_cast<const float4*>(shared_.most_score[i]);
      exponent[i] =
          ExponentOf(fmaxf(fmaxf(most.x, most.y), fmaxf(most.z, most.w)) *
                     fabsf(params_.args.scale));
    }
  }

  // The power of two that brings numbers up to `most` as close to the end of
  // fp16 as is safe.
  static __device__ float ExponentOf(float most) {
    constexpr float kRoundingUp = 1.0005f;  // 2^16 is past the end
    const int exponent = (__float_as_int(most * kRoundingUp) >> 23) - 127;
    return most == 0 ? 0 : min(15 - exponent, kMaxScoreExponent);
  }

  // Stores a block of dA of item n, times args.scale and its own scale, here
  // and in the other block.
  __device__ void Store(int n, const float (&d_a)[32], float exponent,
                        int block) {
    const int lane = Opaque(lane_);
    const uint32_t slab = SharedAddress(shared_.d_a(n, block));
    const float scale = params_.args.scale * Exp2(exponent);
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int e = 4 * (j + i / 2) + i % 2 * 2;
        pairs[i] = PackHalf(d_a[e] * scale, d_a[e + 1] * scale);
      }
      // Matrices: rows 0 .. 7 and 8 .. 15 of eight columns, then of the next.
      StoreMatrix(slab + SlabOffset(warp_ * 16 + lane % 16, j + lane / 16),
                  pairs);
    }
    if (IsSender()) {
      *reinterpret_cast<float4*>(shared_.score_exponent[block]) = {exponent};
    }
    FenceAsyncProxy();
    NamedBarrier(kGradScoreBarrier, 128);
    if (IsSender()) {
      Send(slab, kSlabBytes);
      Send(SharedAddress(shared_.score_exponent[block]), kExponentBytes);
    }
  }

  static constexpr int kExponentBytes = 16;

  // Copies shared memory to the same place of the other block.
  __device__ void Send(uint32_t from, int bytes) const {
    ClusterCopy(ClusterAddress(from, rank_ ^ 1), from, bytes,
                ClusterAddress(SharedAddress(&shared_.scored), rank_ ^ 1));
  }

  const GradParams& params_;
  GradShared<C>& shared_;
  const int rank_, warp_, lane_;
  int step_ = 0;  // of all items
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_SCORES_CUH_
