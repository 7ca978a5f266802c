// dq, dk and dg from the stored states (SegmentGradients), of heads of more
// than 128 values.
//
// An item is 128 channels of a segment of two chunks of one head. With S
// before the segment, D = edge_1 dS after it (times edge_1 here or before it
// was stored, see ScanArgs::states) and the operands q~, k^ of
// chunk_gla_sm90.cuh, transposed (rows are channels, columns tokens):
//   dA_cj = mask(do_c v_j^T)
//   dq~_0 = S do_0^T + k^_0 dA_00^T
//   dq~_1 = edge_0 (mid_0 S do_1^T + k^_0 dA_10^T) + k^_1 dA_11^T
//   dk^_1 = D v_1^T + q~_1 dA_11
//   dk^_0 = edge_0 (mid_1 D v_0^T + q~_1 dA_10) + q~_0 dA_00
//   dq = scale e^b dq~,  dk = e^-b dk^  (steep: e^(B-b) dk^)
//   dg_t = flow + sum over s >= t of (q~_s dq~_s - k^_s dk^_s)
// where flow, out of the segment, is e^B_0 mid_1 <S, D> plus the sum of k^
// times the D term of dk^. The same float32 accumulators and rounded operands
// in sum and flow: what flows from keys to D cancels exactly.
//
//   warpgroups 0, 1 (main)  64 channels each; dq~ and dk^ of 128 tokens in
//                           registers
//   warpgroup 2 (scores)    loads do, v, S, D in steps of 32 values; forms dA
//                           and <S, D>
//   warpgroup 3 (gates)     loads q, k, g and gates them during the steps;
//                           writes dq, dk, dg
//
// One block a multiprocessor takes item after item; do, v, S and D are loaded
// ahead as far as there is room, but after an item's last step dA comes first.
// Barriers:
//   full, empty  of a stage, one step: loaded; read by main and scores
//   raw_full     q, k, g of a chunk are there
//   gated_full   q~, k^ and gates are in their place; the item is known
//   scored       dA and <S, D> are stored
//   finished     a chunk's dq, dk, dg are in the place of q~, k^ and gates
//                (and of chunk 0: dA and <S, D> have been read)
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_CUH_

#include <algorithm>

#include "kernels/device/tensor_map_sm90.h"
#include "kernels/gla/chunk_gla_sm90_grad_gates.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_main.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_scores.cuh"

namespace gla::internal {

template <typename C>
__global__ void __launch_bounds__(C::kThreads, 1)
    GradKernel(const __grid_constant__ GradParams params) {
  extern __shared__ __align__(1024) uint8_t dynamic[];
  auto& shared = *reinterpret_cast<GradShared<C>*>(dynamic);
  if (threadIdx.x == 0) {
    for (int s = 0; s < C::kStages; ++s) {
      BarrierInit(SharedAddress(&shared.full[s]), 1);
      BarrierInit(SharedAddress(&shared.empty[s]), 4 * (C::kMains + 1));
    }
    for (int c = 0; c < kSegmentChunks; ++c) {
      BarrierInit(SharedAddress(&shared.raw_full[c]), 1);
      BarrierInit(SharedAddress(&shared.finished[c]), 128 * C::kMains);
    }
    BarrierInit(SharedAddress(&shared.gated_full), 128);
    BarrierInit(SharedAddress(&shared.scored), 128);
    BarrierInitFence();
  }
  __syncthreads();
  const int group = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
  if (group < C::kMains) {
    RaiseRegisters<C::kMainRegisters>();
    GradMain<C>(params, shared, group).Run();
  } else if (group == C::kMains) {
    LowerRegisters<C::kScoreRegisters>();
    GradScores<C>(params, shared).Run();
  } else {
    LowerRegisters<C::kGateRegisters>();
    GradGates<C>(params, shared).Run();
  }
}

template <typename C>
cudaError_t MakeGradParams(const GradArgs& args, GradParams* params) {
  params->args = args;
  const ChunkGlaShape& s = args.shape;
  params->items = SegmentSlots(s) * s.H * C::kSlices;
  constexpr DType kBf16 = DType::kBFloat16;
  const auto make = [&s](const void* data, int64_t columns, uint32_t box_rows,
                         uint32_t box_columns, CUtensorMap* map) {
    return MakeTensorMap({.data = data,
                          .dtype = kBf16,
                          .rows = s.B * s.T,
                          .columns = s.H * columns,
                          .box_rows = box_rows,
                          .box_columns = box_columns,
                          .swizzled = true},
                         map);
  };
  const auto make_values = [&make](const void* data, CUtensorMap* map) {
    return make(data, C::V, kSegment, C::kValues, map);
  };
  const auto make_keys = [&make](const void* data, CUtensorMap* map) {
    return make(data, C::K, kChunk, 64, map);
  };
  if (auto e = make_values(args.d_o, &params->d_o)) return e;
  if (auto e = make_values(args.v, &params->v)) return e;
  if (auto e = make_keys(args.q, &params->q)) return e;
  if (auto e = make_keys(args.k, &params->k)) return e;
  if (auto e = make_keys(args.dq, &params->dq)) return e;
  if (auto e = make_keys(args.dk, &params->dk)) return e;
  const auto make_states = [&s](const void* data, CUtensorMap* map) {
    return MakeTensorMap({.data = data,
                          .dtype = kBf16,
                          .rows = StateSlots(s) * s.H * (C::K / 64) * C::V,
                          .columns = 64,
                          .box_rows = C::kValues,
                          .box_columns = 64,
                          .swizzled = false},
                         map);
  };
  if (auto e = make_states(args.states, &params->states)) return e;
  if (auto e = make_states(args.d_states, &params->d_states)) return e;
  if (s.gate_dtype != kBf16) return cudaSuccess;  // not moved as tensors
  if (auto e = make_keys(args.g, &params->g)) return e;
  return make_keys(args.dg, &params->d_g);
}

template <typename C>
cudaError_t LaunchGrad(const GradArgs& args, cudaStream_t stream) {
  GradParams params;
  if (cudaError_t error = MakeGradParams<C>(args, &params)) return error;
  if (params.items == 0) return cudaSuccess;
  constexpr int kBytes = sizeof(GradShared<C>);
  static_assert(kBytes <= 227 * 1024, "more shared memory than a block has");
  if (cudaError_t error = cudaFuncSetAttribute(
          GradKernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes)) {
    return error;
  }
  const int64_t blocks = std::min<int64_t>(params.items, kMultiprocessors);
  GradKernel<C><<<blocks, C::kThreads, kBytes, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_CUH_
