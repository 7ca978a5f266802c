// <S, D> in the one-kernel backward pass (chunk_gla_sm90_backward.cuh), by the
// main warpgroups: of the channels whose dg they form.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_FLOW_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_FLOW_CUH_

#include "kernels/gla/chunk_gla_sm90_grad_finish.cuh"

namespace gla::internal {

// <S, D> of a warp's 16 channels: the diagonals of S^T D, in two accumulators
// of 16 x 8, of which one half each is needed.
using ChannelProducts = float[2][4];

// Adds that of 64 values, from slabs of both; `fragment` as in StateTile.
__device__ inline void AddSlabFlow(const uint8_t (&state)[kSlabBytes],
                                   const uint8_t (&d_state)[kSlabBytes],
                                   uint32_t fragment,
                                   ChannelProducts& products) {
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    uint32_t a[4], b[4];
    LoadMatrixTransposed(SharedAddress(state) + fragment + 2048 * step, a);
    LoadMatrixTransposed(SharedAddress(d_state) + fragment + 2048 * step, b);
    Mma(a, b[0], b[2], products[0]);
    Mma(a, b[1], b[3], products[1]);
  }
}

// The diagonals, as the flow of this thread's two channels.
__device__ inline void TakeDiagonals(const ChannelProducts& products,
                                     const GradThread& thread,
                                     float (&flow)[2]) {
  const int row = thread.lane / 4;
  const int from = (thread.lane & ~3) + row / 2;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float own =
        row % 2 == 0 ? products[i][2 * i] : products[i][2 * i + 1];
    flow[i] = __shfl_sync(0xffffffff, own, from);
  }
}

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_FLOW_CUH_
