// dq, dk and dg from the stored states (SegmentGradients), of heads of more
// than 128 values.
//
// An item is a segment of three chunks of one head, 64 channels for each block
// of a cluster of two. With S before the segment, D = e^B dS after it (e^B of
// the last chunk may have been applied before it was stored, see
// ScanArgs::states), transposed (rows are channels, columns tokens):
//   q~ = q e^b,   k^ = k e^-b,   dA_cj = scale mask(do_c v_j^T)
//   dq~_c = scale S_c do_c^T + k^_c dA_cc^T
//   dk^_c = D_c v_c^T + q~_c dA_cc
// where S_0 = S, D_2 = D, and what is between is not formed, but
//   S_(c+1) do^T = e^B_c (S_c do^T + k^_c (do v_c^T)^T)
//   D_(c-1) v^T = e^B_(c-1) (D_c v^T + q~_c (do_c v^T))
// (a segment of fewer chunks ends earlier). Then
//   dq = e^b dq~,  dk = e^-b dk^
//   dg_t = flow + sum over s >= t of (q~_s dq~_s - k^_s dk^_s)
// where flow, out of the segment, is <S, D> with all decays, plus the sum of k^
// times the D term of dk^. The same float32 accumulators and rounded operands
// in sum and flow: what flows from keys to D cancels.
//
// q~, k^ and dA are fp16, with references and scales as told in
// chunk_gla_sm90_grad_shared.cuh: of chunks that are not gentle, what is said
// of chunks above holds for their parts, 16 tokens. A channel whose part decays
// by more is *steep* there, k^ = k e^(B-b) with B of the part, and terms within
// the part are formed one by one (GradSteep).
//
//   warpgroups 0, 1, 2 (main)  a chunk each; dq~ and dk^ in registers
//   warpgroup 3 (scores)       forms half of dA, which it sends to the other
//                              block, and <S, D>
//   warps 16, 17, 18 (keys)    a chunk each: load q, k, g and gate them during
//                              the steps; store dq, dk, dg
//   warp 19 (loads)            takes items; loads S, D and either do or v for
//                              both blocks, in steps of 32 values, as far ahead
//                              as there is room
//
// The first item takes twice as long as others, for its code comes from memory.
// So the kernel starts while the reverse pass ends (a dependent launch), and
// two clusters, if there are multiprocessors free that early, *rehearse*: go
// through an item without rows. Others then find the code in the L2 cache. The
// loads of steps, and all that comes of them, wait for the reverse pass; what a
// rehearsal loads may be half written, and counts for nothing.
//
// A cluster has its first item by its place, and then takes one after the other
// from a common count: they are not all as long, nor clusters as fast.
// Barriers:
//   full, empty  of a stage, one step: loaded; read by main and scores of both
//                blocks
//   keys_full    q and k of a chunk are there
//   gates_full   its g is there
//   told         the other block knows what the first one has taken
//   known        [n % 2]: item n is in `works`, or that there is none
//   gated_full   q~, k^ and gates of all chunks are in their place
//   can_score    dA may be stored, here and in the other block: what had its
//                place (dq, dk, then g) has been read in both
//   scored       dA and <S, D> are stored, the other block's half too
//   sent         the other block has this one's half
//   keys_free    dA is no more needed: the next item's q and k are loaded there
//   keys_finished   a chunk's dq and dk are in the place of q~ and k^; the next
//                item's g is loaded where dq was
//   gates_finished  its dg is in the place of gates, or stored if they have 32
//                bits; it needs no more of <S, D>
//   steep_meeting   where a main warpgroup meets for steep channels
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_CUH_

#include <algorithm>

#include "kernels/base/ceil_div.h"
#include "kernels/device/dependent_launch_sm90.cuh"
#include "kernels/device/tensor_map_sm90.h"
#include "kernels/gla/chunk_gla_sm90_grad_keys.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_loads.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_main.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_scores.cuh"

namespace gla::internal {

template <typename C>
__global__ void __cluster_dims__(C::kCluster) __launch_bounds__(C::kThreads, 1)
    GradKernel(const __grid_constant__ GradParams params) {
  extern __shared__ __align__(1024) uint8_t dynamic[];
  auto& shared = *reinterpret_cast<GradShared<C>*>(dynamic);
  if (threadIdx.x == 0) {
    for (int s = 0; s < C::kStages; ++s) {
      BarrierInit(SharedAddress(&shared.full[s]), 1);
      BarrierInit(SharedAddress(&shared.empty[s]),
                  4 * (kSegmentChunks + 1) * C::kCluster);
    }
    for (int c = 0; c < kSegmentChunks; ++c) {
      BarrierInit(SharedAddress(&shared.keys_full[c]), 1);
      BarrierInit(SharedAddress(&shared.gates_full[c]), 1);
      BarrierInit(SharedAddress(&shared.keys_finished[c]), 128);
      BarrierInit(SharedAddress(&shared.gates_finished[c]), 128);
      BarrierInit(SharedAddress(&shared.steep_meeting[c]), 128);
    }
    BarrierInit(SharedAddress(&shared.gated_full), 32 * kSegmentChunks);
    BarrierInit(SharedAddress(&shared.can_score), kSegmentChunks * C::kCluster);
    BarrierInit(SharedAddress(&shared.scored), 128);
    BarrierInit(SharedAddress(&shared.sent), 1);
    BarrierInit(SharedAddress(&shared.known[0]), 1);
    BarrierInit(SharedAddress(&shared.known[1]), 1);
    BarrierInit(SharedAddress(&shared.told), 1);
    BarrierInit(SharedAddress(&shared.keys_free), 128 * kSegmentChunks);
    BarrierInitFence();
  }
  __syncthreads();
  ClusterStart();
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  if (warp < 4 * kSegmentChunks) {
    GradMain<C>(params, shared, warp / 4).Run();
  } else if (warp < 4 * (kSegmentChunks + 1)) {
    RaiseRegisters<C::kScoreRegisters>();
    GradScores<C>(params, shared).Run();
  } else {
    LowerRegisters<C::kKeyRegisters>();
    const int chunk = warp % 4;
    if (chunk < kSegmentChunks) {
      GradKeys<C>(params, shared, chunk).Run();
    } else {
      if (threadIdx.x % 32 == 0) GradLoads<C>(params, shared).Run();
      __syncwarp();
    }
  }
  // The other block's arrivals and copies.
  ClusterSync();
}

template <typename C>
cudaError_t MakeGradParams(const GradArgs& args, GradParams* params) {
  params->args = args;
  const ChunkGlaShape& s = args.shape;
  const int64_t segments = args.cu_seqlens == nullptr
                               ? s.N * CeilDiv(s.T, kSegment)
                               : SegmentSlots(s);
  params->items = segments * s.H * (C::kSlices / C::kCluster);
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

// How many of `clusters` rehearse: two, if they find multiprocessors free
// before the last blocks of the reverse pass end, and not all clusters have
// something to do in the last round of items: else these would be late. (Of
// packed sequences, if that is so by and large.)
template <typename C>
int Rehearsing(const GradParams& params, int clusters) {
  constexpr int kRehearsing = 2;
  const auto leaves_room = [](int64_t items, int64_t places, int room) {
    const int64_t last_round = items % places;
    return last_round > 0 && last_round <= places - room;
  };
  return leaves_room(params.args.reverse_blocks, kMultiprocessors,
                     kRehearsing * C::kCluster) &&
                 leaves_room(params.items, clusters, kRehearsing)
             ? kRehearsing
             : 0;
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
  const int64_t blocks =
      std::min(int64_t{C::kCluster} * params.items, kMultiprocessors);
  params.rehearsing = Rehearsing<C>(params, blocks / C::kCluster);
  return LaunchKernel(/*dependent=*/true, blocks, C::kThreads, kBytes, stream,
                      GradKernel<C>, params);
}

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_CUH_
