// dq, dk and dg of one segment of one head, 64 channels a block
// (SegmentGradients).
//
// With the operands of chunk_gla_sm90.cuh, per chunk, transposed (rows are
// channels), from the state before the chunk and its gradient after it:
//   dA   = mask(do v^T)
//   dq~^T = S do^T + k^^T dA^T,    S  <- edge (mid S + k^^T v)
//   dk^^T = D v^T + q~^T dA,       D  <- mid D + q~^T do,    D = edge dS
//   dq = scale e^b dq~,  dk = e^-b dk^  (steep: e^(B-b) dk^)
//   dg_t = <S_T, dS_T> + sum over s >= t of (q~_s dq~_s - k^_s dk^_s)
// where T is the end of the segment. So the block goes forward over the
// segment's chunks from the stored S, then backward from the stored dS, and the
// sum is anchored once a segment: products are formed from float32 accumulators
// and the operands as rounded.
//
//   warpgroups 0, 1  half of the values each: V / 2 columns of the state in
//       registers. The halves' dq~, dk^ are added through shared memory; each
//       warpgroup then finishes half of the chunk's tokens.
//   warpgroup 2      loads do and v in steps of 64 values, and forms dA.
//
// At the start all warps of warpgroups 0 and 1 gate the segment's q and k once,
// for both directions. The products q~ dq~ wait in global scratch for the way
// back, in the order of the threads that wrote them.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_CUH_

#include "kernels/device/tensor_map_sm90.h"
#include "kernels/gla/chunk_gla_sm90_grad_loads.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_main.cuh"

namespace gla::internal {

template <typename C>
__global__ void __launch_bounds__(C::kThreads, 1)
    GradKernel(const __grid_constant__ GradParams params) {
  extern __shared__ __align__(1024) uint8_t dynamic[];
  auto& shared = *reinterpret_cast<GradShared<C>*>(dynamic);
  GradWork work;
  if (!FindSegment<C>(params.args, &work)) return;
  if (threadIdx.x == 0) {
    shared.work = work;
    for (int s = 0; s < C::kStages; ++s) {
      BarrierInit(SharedAddress(&shared.full[s]), 1);
      BarrierInit(SharedAddress(&shared.empty[s]), 8);
    }
    for (int c = 0; c < kSegmentChunks; ++c) {
      BarrierInit(SharedAddress(&shared.raw_full[c]), 1);
      BarrierInit(SharedAddress(&shared.scored[c]), 128);
    }
    BarrierInitFence();
  }
  __syncthreads();
  const int group = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
  if (group < 2) {
    RaiseRegisters<C::kMainRegisters>();
    GradMain<C>(params, shared, group).Run();
  } else {
    LowerRegisters<C::kLoadRegisters>();
    GradLoads<C>(params, shared).Run();
  }
}

template <typename C>
cudaError_t LaunchGrad(const GradArgs& args, cudaStream_t stream) {
  const ChunkGlaShape& s = args.shape;
  const int64_t blocks = SegmentSlots(s) * s.H * C::kSlices;
  if (blocks == 0) return cudaSuccess;
  GradParams params;
  params.args = args;
  TensorMapArgs map = {.data = args.d_o,
                       .dtype = DType::kBFloat16,
                       .rows = s.B * s.T,
                       .columns = s.H * s.V,
                       .box_rows = 64,
                       .box_columns = 64,
                       .swizzled = true};
  if (cudaError_t error = MakeTensorMap(map, &params.d_o)) return error;
  map.data = args.v;
  if (cudaError_t error = MakeTensorMap(map, &params.v)) return error;
  map.columns = s.H * s.K;
  map.data = args.q;
  if (cudaError_t error = MakeTensorMap(map, &params.q)) return error;
  map.data = args.k;
  if (cudaError_t error = MakeTensorMap(map, &params.k)) return error;
  map.data = args.g;
  map.dtype = s.gate_dtype;
  map.swizzled = s.gate_dtype == DType::kBFloat16;
  if (cudaError_t error = MakeTensorMap(map, &params.g)) return error;
  constexpr int kBytes = sizeof(GradShared<C>);
  static_assert(kBytes <= 227 * 1024, "more shared memory than a block has");
  if (cudaError_t error = cudaFuncSetAttribute(
          GradKernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes)) {
    return error;
  }
  GradKernel<C><<<blocks, C::kThreads, kBytes, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_CUH_
