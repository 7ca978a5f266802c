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
// q~, k^, scores and dA have a second bf16 part, what rounding left of them,
// itself rounded (a *rest*):
//   scores  k^ with its rest; own scores are exact, from the forward pass
//   dv      scores with their rest; k^ with its rest, of 128 channels only the
//           last 16 of 64 tokens', where the product with D counts most
//   dq, dk  k^ and q~ with their rest, dA with its own where query and key are
//           of the same 16 tokens
//   dg      k^ and q~ with their rest
// Of a product of two that of both rests is left out, and dS takes q~ without.
//
//   warpgroups 0, 1 (main)  64 values each of dS and dv, and half of dq, dk and
//       dg: channels, or with 64 channels tokens
//   2 (gates)   <S, D>, then q and k of the next chunk are gated in place
//   3 (copies)  a warp each: q in and dq out, k and dk, gates and dg; v, d_o, S
//       and, with 128 channels, rests of q~
//
// With 128 channels there is no room for two buffers of all rests. Those of k^
// take turns with half of D: gate warps write the next chunk's there when D has
// been read. Those of q~ they write to global memory, to the rows of dq that
// they belong to; a bulk copy brings them back to the place of D's other half.
// dA takes the place of v, and dv that of the scores.
//
// Barriers:
//   raw_full    q, k and gates of a chunk are there (two buffers)
//   gated       their operands, rests, gates and decays are
//   finished    dq, dk, dg are in their place
//   rows_full   v or d_o of a chunk is there (a ring of three; of two)
//   state_full  S is
//   d_full      D is
//   d_read      D and v have been read, and <S, D> is there
//   operands_read  S, d_o and dA have been read too
//   query_rests_full  with 128 channels, rests of q~ are back
//   meetings, group_meeting  where both main warpgroups, and each, meet for
//               steep channels
// Between them, the main warpgroups meet when D is stored, when scores are and
// v has been read, with 128 channels when dA is stored and scores have been
// read, and when all operands have been read.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_CUH_

#include "kernels/device/tensor_map_sm90.h"
#include "kernels/gla/chunk_gla_sm90_backward_copies.cuh"
#include "kernels/gla/chunk_gla_sm90_backward_gates.cuh"
#include "kernels/gla/chunk_gla_sm90_backward_main.cuh"

namespace gla::internal {

template <typename C>
__global__ void __launch_bounds__(C::kThreads, 1)
    BackwardKernel(const __grid_constant__ BackwardParams params) {
  extern __shared__ __align__(1024) uint8_t dynamic[];
  auto& shared = *reinterpret_cast<BackwardShared<C>*>(dynamic);
  if (threadIdx.x == 0) {
    shared.work = FindWork<C>(params.scan);
    for (int b = 0; b < 2; ++b) {
      BarrierInit(SharedAddress(&shared.raw_full[b]), 3);
      BarrierInit(SharedAddress(&shared.gated[b]), 32 * C::kGateWarps);
      BarrierInit(SharedAddress(&shared.finished[b]), C::kMainThreads);
    }
    for (int r = 0; r < C::kRowSlots; ++r) {
      BarrierInit(SharedAddress(&shared.rows_full[r]), 1);
    }
    BarrierInit(SharedAddress(&shared.state_full), 1);
    BarrierInit(SharedAddress(&shared.d_full), C::kMainThreads);
    BarrierInit(SharedAddress(&shared.d_read), 32 * C::kGateWarps + 1);
    BarrierInit(SharedAddress(&shared.operands_read), 1);
    BarrierInit(SharedAddress(&shared.query_rests_full), 1);
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
    BackwardMain<C>(params, shared, group).Run();
  } else if (group == 2) {
    LowerRegisters<C::kGateRegisters>();
    BackwardGates<C>(params, shared).Run();
  } else {
    LowerRegisters<C::kCopyRegisters>();
    BackwardCopies<C>(params, shared).Run();
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
