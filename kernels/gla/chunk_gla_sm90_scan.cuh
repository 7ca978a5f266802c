// The tuned pass of the state over a sequence (ScanForward, ScanReverse).
//
// V / 128 blocks work on one head of one piece, in clusters of kCluster that
// share gated operands; each block holds 128 values of the state in registers,
// all K channels, for the whole piece:
//
//   warpgroups 0, 1 (state)  64 values each. State transposed: accumulator rows
//       are values, columns channels, so that rounded to bf16 it is the A
//       operand of the output product as it lies. Forward, each forms half of
//       the chunk's masked scores.
//   warpgroups 2, 3 (gates)  load x; load q, k, g of the block's share of the
//       channels, gate them, and copy the gated slabs to the other block of the
//       cluster. Forward, they first add up the gates.
// What gates add up to and, with 256 values, scores are stored for the reverse
// pass, which starts from them.
// With 256 channels there is no room for that. Operands, with k' for k^, and
// scores come from chunk_gla_sm90_operands.cuh, and instead of the gates there
// is
//   warpgroup 2 (loads)      one thread loads x and, for both blocks of the
//       cluster, the block's share of the operands.
//
// Forward, per chunk, with A = q~, B = k^ (chunk_gla_sm90.cuh), x = v:
//   scores = mask(A B^T)
//   y^T = S^T A^T + x^T scores^T;   S^T = edge (mid S^T + x^T B)
// Reverse, chunks from the last to the first, with A = k^, B = q~, x = d_o:
//   dS^T = edge dS^T;   y^T = dS^T A^T + x^T scores^T;
//   dS^T = mid dS^T + x^T B
// Forward, where operands are gated here, B of a sequence's last 16 tokens, or
// as many of them as its last chunk has, has a second bf16 part, what rounding
// left of it (KeyRests): where gates are strong, what these add is most of the
// final state. That part is added behind the last step. And scores, with 256
// values those with a chunk's first keys, have a second part in y. Reverse, all
// scores have, and so have both sides of dS^T A^T: A in a chunk's last 16
// tokens, where that is most of y (so of dS only what meets these). And B of
// its first 16, which are most of what it adds to dS (RowRests).
//
// Where only states are wanted (no y, or in the silent steps of a piece that
// catches up) there is neither A nor scores.
//
// Stages hold {A, B, x, edge, mid}, perhaps scores. Barriers, of a stage:
//   full      A, B, RowRests, edge, mid, own scores are there: stored by this
//             block's gate warps, and what the other block sends. Or mid is
//             loaded, and with output A, scores and what rounding left out of
//             them
//   x_full    x is there, and B if it is loaded
//   empty     all that use it in the cluster are done with the stage, and
//             with the step's RowRests; where operands come gated only those
//             of this block
//   a_empty   the same, of what `full` says is loaded
//   other_empty, other_a_empty  the other block is: its loader says so
// of scores that do not come with a stage:
//   scored, scores_empty  both halves are stored, or what the forward pass left
//             is loaded; both warpgroups, and the store, have read them
//   meetings  where the state warpgroups meet for steep channels
// and of what is gated here:
//   g_full    gates, two steps ahead, with what the forward pass added up
//   raw_full  A and B before gating, ahead of their stage
//   rests_full  KeyRests are: stored here, and what the other block sends
// y is transposed in the place of its x; with 256 channels the stage has one
// for it.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_CUH_

#include "kernels/device/dependent_launch_sm90.cuh"
#include "kernels/device/tensor_map_sm90.h"
#include "kernels/gla/chunk_gla_sm90_scan_gates.cuh"
#include "kernels/gla/chunk_gla_sm90_scan_loads.cuh"
#include "kernels/gla/chunk_gla_sm90_scan_state.cuh"

namespace gla::internal {

template <typename C>
constexpr int ScanSharedBytes() {
  constexpr int kBytes = sizeof(ScanShared<C>);
  static_assert(kBytes <= 227 * 1024, "more shared memory than a block has");
  return kBytes;
}

template <typename C>
__global__ void __cluster_dims__(C::kCluster) __launch_bounds__(C::kThreads, 1)
    ScanKernel(const __grid_constant__ ScanParams params) {
  extern __shared__ __align__(1024) uint8_t dynamic[];
  auto& shared = *reinterpret_cast<ScanShared<C>*>(dynamic);
  ScanWork work = FindWork<C>(params.args);
  const int rank = C::kCluster > 1 ? ClusterRank() : 0;
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  if (threadIdx.x == C::kLoader) {
    PrefetchMap(&params.x);
    if (C::kOutput) PrefetchMap(&params.y);
    for (int s = 0; s < C::kStages; ++s) {
      BarrierInit(SharedAddress(&shared.full[s]), C::kFullArrivals);
      if (!C::kGates) {
        BarrierInit(SharedAddress(&shared.a_empty[s]), 256);
        BarrierInit(SharedAddress(&shared.other_a_empty[s]), 1);
        BarrierInit(SharedAddress(&shared.other_empty[s]), 1);
      }
      BarrierInit(SharedAddress(&shared.x_full[s]), 1);
      BarrierInit(SharedAddress(&shared.empty[s]), C::kEmptyArrivals);
    }
    BarrierInit(SharedAddress(&shared.scored), C::kFormsScores ? 256 : 1);
    BarrierInit(SharedAddress(&shared.scores_empty), 8);
    BarrierInit(SharedAddress(&shared.g_full[0]), 1);
    BarrierInit(SharedAddress(&shared.g_full[1]), 1);
    for (int r = 0; r < C::kRaws; ++r) {
      BarrierInit(SharedAddress(&shared.raw_full[r]), 1);
    }
    if constexpr (C::kFormsScores) shared.meetings.Init();
    if constexpr (C::kKeyRests) {
      BarrierInit(SharedAddress(&shared.rests_full),
                  32 * C::kGateWarps + (C::kCluster > 1));
    }
    BarrierInitFence();
    if constexpr (C::kGates) {
      ScanGates<C>(params, work, shared, rank, warp).StartLoads();
    }
  }
  if constexpr (C::kOutput && !C::kReverse && !C::kGates) {
    ZeroBeforeLateScores<C>(shared);
  }
  if (!C::kBeforeGradients) LetNextKernelStart();
  AwaitKernelBefore();
  if (C::kBeforeGradients && blockIdx.x == 0 && threadIdx.x == 0) {
    *params.args.taken = 0;
  }
  __syncthreads();
  if constexpr (!C::kOutput && !C::kGates) {
    LeaveOutForgotten<C>(params.args, work);
  }
  if (C::kCluster > 1) ClusterStart();
  if (warp < 8) {
    RaiseRegisters<C::kStateRegisters>();
    ScanState<C>(params, work, shared, warp / 4).Run();
  } else {
    LowerRegisters<C::kOtherRegisters>();
    if constexpr (C::kGates) {
      ScanGates<C>(params, work, shared, rank, warp).Run();
    } else {
      ScanLoads<C>(params, work, shared, rank).Run();
    }
  }
  // Shared memory must outlive the copies from it to the other block, and what
  // arrives. (Without gates nothing is copied from it, and what arrives is
  // waited for.)
  if (C::kCluster > 1 && C::kGates) ClusterSync();
}

template <typename C>
cudaError_t MakeScanParams(const ScanArgs& args, ScanParams* params) {
  params->args = args;
  const ChunkGlaShape& s = args.shape;
  const auto make = [&s](const void* data, DType dtype, int64_t columns,
                         bool swizzled, CUtensorMap* map) {
    return MakeTensorMap({.data = data,
                          .dtype = dtype,
                          .rows = s.B * s.T,
                          .columns = columns,
                          .box_rows = 64,
                          .box_columns = 64,
                          .swizzled = swizzled},
                         map);
  };
  const int64_t keys = s.H * C::K, values = s.H * C::V;
  constexpr DType kBf16 = DType::kBFloat16;
  if constexpr (C::kGates) {
    const void* const a = C::kReverse ? args.k : args.q;
    const void* const b = C::kReverse ? args.q : args.k;
    if (auto e = make(a, kBf16, keys, false, &params->a)) return e;
    if (auto e = make(b, kBf16, keys, false, &params->b)) return e;
    if (auto e = make(args.g, s.gate_dtype, keys, false, &params->g)) return e;
  }
  if (auto e = make(args.x, kBf16, values, true, &params->x)) return e;
  if (!C::kOutput) return cudaSuccess;
  return make(args.y, kBf16, values, true, &params->y);
}

template <typename C>
cudaError_t LaunchScan(const ScanArgs& args, cudaStream_t stream) {
  const int pieces = args.pieces - !C::kOutput;  // FindWork
  const int64_t blocks = args.shape.N * args.shape.H * pieces * (C::V / 128);
  if (blocks == 0) return cudaSuccess;
  ScanParams params;
  if (cudaError_t error = MakeScanParams<C>(args, &params)) return error;
  constexpr int kBytes = ScanSharedBytes<C>();
  if (cudaError_t error = cudaFuncSetAttribute(
          ScanKernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes)) {
    return error;
  }
  return LaunchKernel(args.follows, dim3(blocks), C::kThreads, kBytes, stream,
                      ScanKernel<C>, params);
}

template <bool kReverse, bool kOutput, typename Gate>
cudaError_t LaunchScanForShape(const ScanArgs& args, cudaStream_t stream) {
  if (args.shape.V == 256) {
    if constexpr (!kReverse && kOutput) {
      if (args.scores != nullptr) {
        return LaunchScan<ScanConfig<128, 256, false, true, Gate, true>>(
            args, stream);
      }
    }
    return LaunchScan<ScanConfig<128, 256, kReverse, kOutput, Gate>>(args,
                                                                     stream);
  }
  if constexpr (kReverse && kOutput && HasScanBackward(128)) {
    return cudaErrorInvalidValue;  // ScanBackward's
  } else if (args.shape.K == 128) {
    return LaunchScan<ScanConfig<128, 128, kReverse, kOutput, Gate>>(args,
                                                                     stream);
  } else {
    return LaunchScan<ScanConfig<64, 128, kReverse, kOutput, Gate>>(args,
                                                                    stream);
  }
}

template <bool kReverse, bool kOutput>
cudaError_t LaunchScanForGates(const ScanArgs& args, cudaStream_t stream) {
  if (HasOperands(args.shape.K)) {
    return LaunchScan<ScanConfig<256, 512, kReverse, kOutput, void>>(args,
                                                                     stream);
  }
  return args.shape.gate_dtype == DType::kFloat32
             ? LaunchScanForShape<kReverse, kOutput, float>(args, stream)
             : LaunchScanForShape<kReverse, kOutput, __nv_bfloat16>(args,
                                                                    stream);
}

template <bool kReverse>
cudaError_t LaunchScan(const ScanArgs& args, cudaStream_t stream) {
  return args.y != nullptr ? LaunchScanForGates<kReverse, true>(args, stream)
                           : LaunchScanForGates<kReverse, false>(args, stream);
}

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_CUH_
