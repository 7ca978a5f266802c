// The loading warpgroup of the gradient kernel (chunk_gla_sm90_grad.cuh).
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_LOADS_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_LOADS_CUH_

#include "kernels/gla/chunk_gla_sm90_grad_shared.cuh"

namespace gla::internal {

template <typename C>
class GradLoads {
 public:
  __device__ GradLoads(const GradParams& params, GradShared<C>& shared)
      : params_(params),
        shared_(shared),
        warp_(__shfl_sync(0xffffffff, threadIdx.x / 32 % 4, 0)),
        lane_(threadIdx.x % 32) {}

  __device__ void Run() {
    constexpr int kChunkSteps = 2 * C::kBlocks;
    const int forward_steps = shared_.work.chunks * kChunkSteps;
    const int steps = 2 * forward_steps;
    LoadRaw();
    // 32-bit gates lie where the steps go until they have been read.
    if (sizeof(Gate) == 4) NamedBarrier(kAllBarrier, C::kThreads);
    for (int n = 0; n < C::kStages - 1 && n < steps; ++n) Load(n);
    if (sizeof(Gate) == 2) NamedBarrier(kAllBarrier, C::kThreads);
    float d_a[32];
#pragma unroll 1
    for (int n = 0; n < steps; ++n) {
      const int stage = n % C::kStages;
      BarrierWait(SharedAddress(&shared_.full[stage]), n / C::kStages & 1);
      if (n < forward_steps) {
        if (n % kChunkSteps == 0) {
#pragma unroll
          for (int i = 0; i < 32; ++i) d_a[i] = 0;
        }
        AddScores(stage, d_a);
        if (n % kChunkSteps == kChunkSteps - 1) {
          StoreScores(n / kChunkSteps, d_a);
        }
      }
      __syncwarp();
      if (lane_ == 0) BarrierArrive(SharedAddress(&shared_.empty[stage]));
      if (n + C::kStages - 1 < steps) Load(n + C::kStages - 1);
    }
  }

 private:
  using Gate = typename C::Gate;

  // q, k and g of all chunks, each in the place of its gated operand.
  __device__ void LoadRaw() {
    if (warp_ != 0 || lane_ != 0) return;
    for (int c = 0; c < shared_.work.chunks; ++c) {
      const uint32_t full = SharedAddress(&shared_.raw_full[c]);
      BarrierArriveExpect(full, (2 + sizeof(Gate) / 2) * kSlabBytes);
      const int column = shared_.work.h * C::K + shared_.work.slice * 64;
      const int row =
          shared_.work.rows.first + (shared_.work.first_chunk + c) * kChunk;
      TensorLoad(SharedAddress(shared_.q[c]), &params_.q, column, row, full);
      TensorLoad(SharedAddress(shared_.k[c]), &params_.k, column, row, full);
      TensorLoad(sizeof(Gate) == 2 ? SharedAddress(shared_.b[c])
                                   : SharedAddress(&shared_.step[c]),
                 &params_.g, column, row, full);
    }
  }

  // Step n: chunk, block of 64 values, and warpgroup, fastest last; chunks
  // forward, then backward.
  __device__ void Load(int n) {
    if (warp_ != 0 || lane_ != 0) return;
    constexpr int kChunkSteps = 2 * C::kBlocks;
    const int stage = n % C::kStages;
    int chunk = n / kChunkSteps;
    if (chunk >= shared_.work.chunks) {
      chunk = 2 * shared_.work.chunks - 1 - chunk;
    }
    const int block = n % kChunkSteps / 2, group = n % 2;
    BarrierWait(SharedAddress(&shared_.empty[stage]), (n / C::kStages & 1) ^ 1);
    const uint32_t full = SharedAddress(&shared_.full[stage]);
    BarrierArriveExpect(full, 2 * kSlabBytes);
    const int column =
        shared_.work.h * C::V + (group * C::kBlocks + block) * 64;
    const int row =
        shared_.work.rows.first + (shared_.work.first_chunk + chunk) * kChunk;
    TensorLoad(SharedAddress(shared_.step[stage].d_o), &params_.d_o, column,
               row, full);
    TensorLoad(SharedAddress(shared_.step[stage].v), &params_.v, column, row,
               full);
  }

  __device__ void AddScores(int stage, float (&d_a)[32]) {
    const uint64_t d_o = SlabDescriptor(SharedAddress(shared_.step[stage].d_o));
    const uint64_t v = SlabDescriptor(SharedAddress(shared_.step[stage].v));
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      Wgmma<Contract::kAlongColumns, Contract::kAlongColumns>(
          d_a, StepDescriptor<Contract::kAlongColumns>(d_o, step),
          StepDescriptor<Contract::kAlongColumns>(v, step), true);
    }
    WgmmaCommit();
    WgmmaWait<0>();
    Touch(d_a);
  }

  __device__ void StoreScores(int chunk, const float (&d_a)[32]) {
    const int row = warp_ * 16 + lane_ / 4, column = lane_ % 4 * 2;
    const int rows =
        shared_.work.rows.length - (shared_.work.first_chunk + chunk) * kChunk;
    const uint32_t element =
        SharedAddress(shared_.d_a[chunk]) + SlabElement(row, column);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int t = row + 8 * i, u = column + 8 * j;
        const float low = u <= t && t < rows ? d_a[4 * j + 2 * i] : 0;
        const float high = u + 1 <= t && t < rows ? d_a[4 * j + 2 * i + 1] : 0;
        StoreShared32((element ^ (j << 4)) + i * 1024, PackBf16(low, high));
      }
    }
    FenceAsyncProxy();
    BarrierArrive(SharedAddress(&shared_.scored[chunk]));
  }

  const GradParams& params_;
  GradShared<C>& shared_;
  const int warp_, lane_;
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_LOADS_CUH_
