// <S, D> in the one-kernel backward pass (chunk_gla_sm90_backward.cuh), by the
// main warpgroups: of the channels whose dg they form.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_FLOW_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_FLOW_CUH_

#include "kernels/gla/chunk_gla_sm90_grad_finish.cuh"

namespace gla::internal {

// Adds <S, D> of 64 values, from slabs of both. A warp has its 16 channels of
// all rows: even lanes the first eight, odd ones the others; the rows of a
// quarter of a warp lie in different banks.
__device__ inline void AddSlabFlow(const uint8_t (&state)[kSlabBytes],
                                   const uint8_t (&d_state)[kSlabBytes],
                                   const GradThread& thread, float (&sums)[8]) {
  const int group = thread.lane / 2;
  const int row = group % 4 * 2 + group / 4 % 2 + group / 8 * 8;
  const uint32_t offset = SlabOffset(row, 2 * thread.warp + thread.lane % 2);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    AddProducts(LoadShared128(SharedAddress(state) + offset + i * 2048),
                LoadShared128(SharedAddress(d_state) + offset + i * 2048),
                sums);
  }
}

// The sums of all lanes, as the flow of this thread's two channels.
__device__ inline void SumSlabFlow(const GradThread& thread, float (&sums)[8],
                                   float (&flow)[2]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int distance = 2; distance < 32; distance *= 2) {
      sums[j] += __shfl_xor_sync(0xffffffff, sums[j], distance);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float x = __shfl_sync(0xffffffff, sums[j], i);
      if (thread.lane / 4 == j) flow[i] = x;
    }
  }
}

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_FLOW_CUH_
