// The whole backward pass of heads of 128 values in one kernel (ScanBackward):
// dS runs back over a sequence, and with S before each chunk from the forward
// pass a block has all that dq, dk, dv and dg of the chunk need.
//
// A block works on a piece of a head. Per chunk, with the operands of
// chunk_gla_sm90.cuh and D = edge dS (transposed in registers: rows are values,
// columns channels):
//   scores = mask(q~ k^^T);  dA = mask(d_o v^T), its diagonal apart
//   dv  = k^ D + scores^T d_o
//   dk^ = v D^T + dA^T q~;   dk = e^-b dk^  (steep: e^(B-b) dk^)
//   dq~ = d_o S^T + dA k^;   dq = scale e^b dq~
//   dg_t = flow + sum over s >= t of (q~_s dq~_s - k^_s dk^_s)
//   dS  = mid D + q~^T d_o
// where flow, out of the chunk, is mid <S, D> plus the sum of k^ v D^T: from
// the same float32 accumulators and rounded operands as the sum, so that what
// flows from keys to D cancels exactly. dA's diagonal is apart, in float32:
// what it adds to dq~ and dk^ is added when the terms of dg have been formed,
// for there it cancels, but rounded would outweigh what strong gates leave.
//
// With 64 channels q~, k^, scores and dA have two bf16 parts, a number rounded
// and the rest that rounding left (BackwardConfig::kRests). Of a product of two
// that of both rests is left out, and dS takes q~ without its rest.
//
//   warpgroups 0, 1 (main)  64 values each of dS and dv, and half of dq, dk and
//       dg: channels, or with 64 channels tokens. One thread loads v, d_o, S.
//   the others (gates)      load q, k, g, gate them in place, a chunk ahead;
//       store dq, dk, dg
//
// Barriers:
//   raw_full    q, k, g of a chunk are there (two buffers)
//   gated       their operands, gates and decays are
//   finished    dq, dk, dg are in their place
//   rows_full   v or d_o of a chunk is there (a ring of three)
//   state_full  S is
//   flow_full   with 64 channels, both parts of the flow are stored
//   meetings, group_meeting  where both main warpgroups, and each, meet for
//               steep channels
// Between them, the main warpgroups meet when scores, dA and D are stored, when
// v has been read, and when all operands have been read.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_CUH_

#include "kernels/device/tensor_map_sm90.h"
#include "kernels/gla/chunk_gla_sm90_backward_gates.cuh"
#include "kernels/gla/chunk_gla_sm90_backward_main.cuh"

namespace gla::internal {

template <typename C>
__global__ void __launch_bounds__(C::kThreads, 1)
    BackwardKernel(const __grid_constant__ BackwardParams params) {
  extern __shared__ __align__(1024) uint8_t dynamic[];
  auto& shared = *reinterpret_cast<BackwardShared<C>*>(dynamic);
  const ScanWork work = FindWork<C>(params.scan);
  if (threadIdx.x == 0) {
    for (int b = 0; b < 2; ++b) {
      BarrierInit(SharedAddress(&shared.raw_full[b]), 1);
      BarrierInit(SharedAddress(&shared.gated[b]), 32 * C::kGateWarps);
      BarrierInit(SharedAddress(&shared.finished[b]), C::kMainThreads);
    }
    for (int r = 0; r < 3; ++r) {
      BarrierInit(SharedAddress(&shared.rows_full[r]), 1);
    }
    BarrierInit(SharedAddress(&shared.state_full), 1);
    BarrierInit(SharedAddress(&shared.flow_full), C::kMainThreads);
    shared.meetings.Init();
    for (uint64_t& meeting : shared.group_meeting) {
      BarrierInit(SharedAddress(&meeting), 128);
    }
    BarrierInitFence();
  }
  __syncthreads();
  const int group = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
  if (group < 2) {
    RaiseRegisters<C::kMainRegisters>();
    BackwardMain<C>(params, work, shared, group).Run();
  } else {
    LowerRegisters<C::kGateRegisters>();
    BackwardGates<C>(params, work, shared).Run();
  }
}

template <typename C>
cudaError_t MakeBackwardParams(const ScanArgs& scan, const GradArgs& grad,
                               BackwardParams* params) {
  params->scan = scan;
  params->grad = grad;
  const ChunkGlaShape& s = grad.shape;
  const auto make = [](const void* data, int64_t rows, int64_t columns,
                       CUtensorMap* map) {
    return MakeTensorMap({.data = data,
                          .dtype = DType::kBFloat16,
                          .rows = rows,
                          .columns = columns,
                          .box_rows = kChunk,
                          .box_columns = 64,
                          .swizzled = true},
                         map);
  };
  const int64_t rows = s.B * s.T, keys = s.H * C::K, values = s.H * C::V;
  if (auto e = make(grad.q, rows, keys, &params->q)) return e;
  if (auto e = make(grad.k, rows, keys, &params->k)) return e;
  if (auto e = make(grad.dq, rows, keys, &params->dq)) return e;
  if (auto e = make(grad.dk, rows, keys, &params->dk)) return e;
  if (auto e = make(grad.v, rows, values, &params->v)) return e;
  if (auto e = make(grad.d_o, rows, values, &params->d_o)) return e;
  if (auto e = make(scan.y, rows, values, &params->dv)) return e;
  constexpr int kStateRows = C::K * C::V / 64;
  if (auto e = MakeTensorMap({.data = grad.states,
                              .dtype = DType::kBFloat16,
                              .rows = StateSlots(s) * s.H * kStateRows,
                              .columns = 64,
                              .box_rows = kStateRows,
                              .box_columns = 64,
                              .swizzled = false},
                             &params->states)) {
    return e;
  }
  if (s.gate_dtype != DType::kBFloat16) return cudaSuccess;  // no tensor copies
  if (auto e = make(grad.g, rows, keys, &params->g)) return e;
  return make(grad.dg, rows, keys, &params->d_g);
}

template <typename C>
cudaError_t LaunchBackward(const ScanArgs& scan, const GradArgs& grad,
                           cudaStream_t stream) {
  const ChunkGlaShape& s = grad.shape;
  const int64_t blocks = s.N * s.H * scan.pieces;
  if (blocks == 0) return cudaSuccess;
  BackwardParams params;
  if (auto e = MakeBackwardParams<C>(scan, grad, &params)) return e;
  constexpr int kBytes = sizeof(BackwardShared<C>);
  static_assert(kBytes <= 227 * 1024, "more shared memory than a block has");
  if (cudaError_t error = cudaFuncSetAttribute(
          BackwardKernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize,
          kBytes)) {
    return error;
  }
  BackwardKernel<C><<<blocks, C::kThreads, kBytes, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_CUH_
