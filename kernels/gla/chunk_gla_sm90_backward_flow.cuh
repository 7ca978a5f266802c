// <S, D> in the one-kernel backward pass (chunk_gla_sm90_backward.cuh).
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_FLOW_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_FLOW_CUH_

#include "kernels/device/wgmma_sm90.cuh"

namespace gla::internal {

// <S, D> of a warp's 16 channels: the diagonals of S^T D, in two accumulators
// of 16 x 8, of which one half each is needed.
using ChannelProducts = float[2][4];

// Adds that of 64 values, from slabs of both; `fragment` as in StateTile, of
// the warp's channels.
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

// That of channel lane % 16.
__device__ inline float TakeDiagonal(const ChannelProducts& products,
                                     int lane) {
  const int row = lane % 8, from = 4 * row + row / 2;
  float half[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float own =
        lane / 4 % 2 == 0 ? products[i][2 * i] : products[i][2 * i + 1];
    half[i] = __shfl_sync(0xffffffff, own, from);
  }
  return lane / 8 % 2 == 0 ? half[0] : half[1];
}

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_FLOW_CUH_
