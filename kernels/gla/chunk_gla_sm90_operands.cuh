// Gated operands and scores of all chunks (GateChunks).
//
// An item is a chunk of a head; a block a multiprocessor takes item after item,
// unit by unit: a unit is 64 channels of an item.
//
//   warps 0 .. 15 (gates)    two teams, every other unit each: from q, k and
//       gates q~ and k', and q~ and k^ in 32 bits
//   warps 16 .. 19 (scores)  mask(q~ k^^T) from these, of which 11 significant
//       bits count: a fifth of the error of rounding scores to bf16
//   warp 20 (loads)          one thread finds items, and loads q, k, g
//   warp 21 (stores)         one thread stores q~, k' and the decays
//
// Barriers, of a unit's inputs:
//   full   q, k, g are there, and which item it is of; or that there is none
//   read   its team has them in registers
// and of its operands:
//   gated  they are there, or there is no such item
//   empty  all score warps are done with them, and what is stored has been read
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_OPERANDS_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_OPERANDS_CUH_

#include <algorithm>

#include "kernels/device/dependent_launch_sm90.cuh"
#include "kernels/device/tensor_map_sm90.h"
#include "kernels/gla/chunk_gla_sm90_gating.cuh"
#include "kernels/gla/chunk_gla_sm90_operands_shared.cuh"

namespace gla::internal {

template <typename C>
class OperandKernelRoles {
 public:
  __device__ OperandKernelRoles(const OperandParams& params,
                                OperandShared<C>& shared)
      : params_(params),
        args_(params.args),
        shared_(shared),
        warp_(__shfl_sync(0xffffffff, threadIdx.x / 32, 0)),
        lane_(threadIdx.x % 32) {}

  // --- Copies.

  __device__ void Load() {
    if (lane_ != 0) return;
    int next = blockIdx.x;
    bool any = true;
#pragma unroll 1
    for (int i = 0; any; ++i) {
      AwaitRead({i, 0});  // So no role is still at item i - kItems.
      OperandItem& item = shared_.items[i % C::kItems];
      any = FindItem(next, item);
      // That there is none is told to each team.
      const int units = any ? C::kUnits : C::kTeams;
#pragma unroll 1
      for (int u = 0; u < units; ++u) {
        const Unit unit{i, u};
        AwaitRead(unit);
        if (any) {
          LoadUnit(unit, item);
        } else {
          BarrierArrive(SharedAddress(&shared_.full[unit.input()]));
        }
      }
    }
  }

  __device__ void Store() {
    if (lane_ != 0) return;
#pragma unroll 1
    for (int i = 0;; ++i) {
#pragma unroll 1
      for (int u = 0; u < C::kUnits; ++u) {
        const Unit unit{i, u};
        if (!AwaitGated(unit)) return;
        StoreUnit(unit);
        TensorStoreWaitRead();
        BarrierArrive(SharedAddress(&shared_.empty[unit.team()]));
      }
    }
  }

  // --- Gates.

  __device__ void Gate() {
#pragma unroll 1
    for (int i = 0;; ++i) {
#pragma unroll 1
      for (int u = warp_ / C::kTeamWarps; u < C::kUnits; u += C::kTeams) {
        const Unit unit{i, u};
        BarrierWait(SharedAddress(&shared_.full[unit.input()]),
                    unit.input_parity());
        const bool any = ItemOf(unit).rows > 0;
        if (any) {
          GateUnit(unit);
        } else {
          AwaitEmpty(unit);  // None misses the phase before.
        }
        FenceAsyncProxy();
        BarrierArrive(SharedAddress(&shared_.gated[unit.team()]));
        if (!any) return;
      }
    }
  }

  // --- Scores.

  __device__ void Score() {
#pragma unroll 1
    for (int i = 0;; ++i) {
      float p[32] = {};
#pragma unroll 1
      for (int u = 0; u < C::kUnits; ++u) {
        const Unit unit{i, u};
        if (!AwaitGated(unit)) return;
        AddUnit(shared_.operands[unit.team()], p);
        if (lane_ == 0) {
          BarrierArrive(SharedAddress(&shared_.empty[unit.team()]));
        }
      }
      const Unit unit{i, 0};
      AddSteep(unit, p);
      StoreScores(unit, p);
    }
  }

 private:
  using GateT = typename C::Gate;
  using Unit = OperandUnit<C>;
  using Inputs = typename OperandShared<C>::Inputs;
  using Operands = typename OperandShared<C>::Operands;
  static constexpr int kChannels = 4;            // of a lane
  static constexpr int kLanes = 64 / kChannels;  // of a row
  static constexpr int kRows = kChunk / (32 / kLanes) / C::kTeamWarps;
  using Gates = float[kChannels];
  using LaneGates = RawGates<GateT, kChannels>;
  using Piece = Bf16Piece<kChannels>;
  // The scores' products drop all bits of a number but the first 11: 0.72 x
  // 2^-11 of it in the mean, by which it is multiplied up. (Numbers of up to 11
  // bits stay what they are.)
  static constexpr float kUp = 1 + 0.72f / 2048;
  static constexpr float kLog2Up = 0.72f / 2048 * kLog2E;

  __device__ int Thread() const { return threadIdx.x % 128; }

  __device__ const OperandItem& ItemOf(const Unit& unit) const {
    return shared_.items[unit.item % C::kItems];
  }

  // Waits for the place of a unit's inputs.
  __device__ void AwaitRead(const Unit& unit) {
    BarrierWait(SharedAddress(&shared_.read[unit.input()]),
                unit.input_parity() ^ 1);
  }
  // Waits for a unit's operands; whether there is such an item.
  __device__ bool AwaitGated(const Unit& unit) {
    BarrierWait(SharedAddress(&shared_.gated[unit.team()]), unit.team_parity());
    return ItemOf(unit).rows != 0;
  }
  // Waits for the place of a unit's operands.
  __device__ void AwaitEmpty(const Unit& unit) {
    BarrierWait(SharedAddress(&shared_.empty[unit.team()]),
                unit.team_parity() ^ 1);
  }

  // The block's next item with rows, from slot `next` on, if there is one.
  __device__ bool FindItem(int& next, OperandItem& item) const {
    const ChunkGlaShape& s = args_.shape;
    const int H = s.H;
    while (next < params_.items) {
      const int index = next;
      next += gridDim.x;
      const int chunk = index / H;
      const int n =
          FindSequenceOfSlot<kChunk>(args_.cu_seqlens, s.T, s.N, chunk);
      const SequenceRows sequence = FindSequence(args_.cu_seqlens, s.T, n);
      const int64_t before =
          (chunk - FirstSlot<kChunk>(args_.cu_seqlens, s.T, n)) * kChunk;
      const int64_t rows = min(int64_t{kChunk}, sequence.length - before);
      if (rows <= 0) continue;
      item = {.row = sequence.first + before,
              .output = index,
              .rows = static_cast<int>(rows),
              .chunk = chunk,
              .h = index % H};
      return true;
    }
    item.rows = 0;
    return false;
  }

  __device__ void LoadUnit(const Unit& unit, const OperandItem& item) {
    auto& to = shared_.inputs[unit.input()];
    const uint32_t full = SharedAddress(&shared_.full[unit.input()]);
    const int column = item.h * C::K + unit.unit * 64;
    BarrierArriveExpect(full,
                        2 * kSlabBytes + kChunk * 64 * int{sizeof(GateT)});
    TensorLoad(SharedAddress(to.g), &params_.g, column, item.row, full);
    TensorLoad(SharedAddress(to.q), &params_.q, column, item.row, full);
    TensorLoad(SharedAddress(to.k), &params_.k, column, item.row, full);
  }

  __device__ ChunkOperands<C::K>& OutputOf(const Unit& unit) const {
    return static_cast<ChunkOperands<C::K>*>(
        args_.operands)[ItemOf(unit).output];
  }

  __device__ void StoreUnit(const Unit& unit) {
    auto& from = shared_.operands[unit.team()];
    auto& to = OutputOf(unit);
    BulkStore(to.q[unit.unit], SharedAddress(from.q), kSlabBytes);
    BulkStore(to.k[unit.unit], SharedAddress(from.late_k), kSlabBytes);
    BulkStore(&to.decay[unit.unit], SharedAddress(&shared_.decay[unit.team()]),
              sizeof(SlabMid));
    TensorStoreCommit();
  }

  __device__ void GateUnit(const Unit& unit) {
    const Inputs& from = shared_.inputs[unit.input()];
    const OperandItem& item = ItemOf(unit);
    const int rows = item.rows;
    const int channel = lane_ % kLanes * kChannels;
    const int team = unit.team(), part = warp_ % C::kTeamWarps;
    const int first = (part * (32 / kLanes) + lane_ / kLanes) * kRows;
    Gates sums[kRows], own, before, all;
    AddGateRows(from, first, channel, rows, sums, own);
    SumSlab(own, shared_.totals[team][unit.team_parity()], part,
            kOperandTeamBarrier + team, 32 * C::kTeamWarps, before, all);
    if (args_.log_decays != nullptr) {
      StoreLogDecays<kRows>(before, all, first, channel,
                            LogDecays(args_.log_decays, args_.shape, item.chunk,
                                      item.h, unit.unit));
    }
    Piece q[kRows], k[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int element = SlabElement(first + r, channel);
      q[r] = reinterpret_cast<const Piece&>(from.q[element]);
      k[r] = reinterpret_cast<const Piece&>(from.k[element]);
    }
    if (rows < kChunk) [[unlikely]] {
      ZeroFrom(rows - first, q);
      ZeroFrom(rows - first, k);
    }
    FenceAsyncProxy();  // Before the next load writes there.
    BarrierArrive(SharedAddress(&shared_.read[unit.input()]));
    AwaitEmpty(unit);
    if (first == 0) Note(unit, channel, all);
    GateRows(q, k, before, sums, all, first, channel, shared_.operands[team]);
  }

  // What a lane's gates add up to, up to each of its rows and all.
  static __device__ void AddGateRows(const Inputs& from, int first, int channel,
                                     int rows, Gates (&sums)[kRows],
                                     Gates& all) {
    LaneGates g[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      g[r] = reinterpret_cast<const LaneGates&>(from.g[first + r][channel]);
    }
    if (rows < kChunk) [[unlikely]]
      ZeroFrom(rows - first, g);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) all[c] = 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      AddGates(g[r], all);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) sums[r][c] = all[c];
    }
  }

  // Zeros from this of a lane's rows on.
  template <typename T>
  static __device__ void ZeroFrom(int row, T (&x)[kRows]) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= row) x[r] = {};
    }
  }

  // Gates a lane's rows, from what its channels' gates add up to `before` them,
  // within them (`sums`) and in `all` of the chunk.
  __device__ void GateRows(const Piece (&q)[kRows], const Piece (&k)[kRows],
                           const Gates& before, const Gates (&sums)[kRows],
                           const Gates& all, int first, int channel,
                           Operands& to) {
    Gates shift, late;  // k' is k^ times `late`
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      shift[c] = KeyShift(all[c]) + kLog2Up;
      late[c] = Exp2(all[c] - shift[c]);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = first + r, element = SlabElement(row, channel);
      Gates x, up, sum;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) sum[c] = before[c] + sums[r][c];
      GateQuery(q[r], sum, args_.scale, x);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) up[c] = x[c] * kUp;
      reinterpret_cast<Piece&>(to.q[element]) = Round(x);
      StoreWide(up, to.wide_q, row, channel);
      GateKey(k[r], sum, shift, x);
      StoreWide(x, to.wide_k, row, channel);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) x[c] *= late[c];
      reinterpret_cast<Piece&>(to.late_k[element]) = Round(x);
    }
  }

  // Stores operands of the scores' products.
  static __device__ void StoreWide(const Gates& x,
                                   uint8_t (&slabs)[2][kSlabBytes], int row,
                                   int channel) {
    uint8_t* const to = slabs[channel / 32] + SlabOffset(row, channel % 32 / 4);
    *reinterpret_cast<float4*>(to) = {x[0], x[1], x[2], x[3]};
  }

  // The decays of a unit's channels, and which of them are steep.
  __device__ void Note(const Unit& unit, int channel, const Gates& all) {
    Gates decay;
    bool any = false;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      decay[c] = Exp2(all[c]);
      any |= IsSteep(all[c]);
    }
    StoreFactors(decay, channel, shared_.decay[unit.team()].mid);
    any = __any_sync((1u << kLanes) - 1, any);
    bool* const is_steep =
        &shared_.is_steep[unit.note()][unit.unit * 64 + channel];
#pragma unroll
    for (int c = 0; c < kChannels; ++c) is_steep[c] = IsSteep(all[c]);
    if (channel == 0) {
      shared_.any_steep[unit.note()][unit.unit] = any;
    }
  }

  // p += q~ k^^T of a unit.
  __device__ void AddUnit(const Operands& operands, float (&p)[32]) {
    Touch(p);
    WgmmaFence();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint64_t a = SlabDescriptor(SharedAddress(operands.wide_q[half]));
      const uint64_t b = SlabDescriptor(SharedAddress(operands.wide_k[half]));
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        constexpr auto kAlong = Contract::kAlongColumns;
        WgmmaWide(p, StepDescriptor<kAlong>(a, step),
                  StepDescriptor<kAlong>(b, step));
      }
    }
    WgmmaCommit();
    WgmmaWait<0>();
    Touch(p);
  }

  // This thread's first element of the scores.
  __device__ int Row() const { return Thread() / 32 * 16 + lane_ / 4; }
  __device__ int Column() const { return lane_ % 4 * 2; }

  // Adds the terms q k e^(b_t - b_u) of the item's steep channels. (What their
  // gated operands add to the products is below 2^-kMaxLog2Decay of that.)
  __device__ void AddSteep(const Unit& unit, float (&p)[32]) {
    bool any = false;
    for (int i = 0; i < C::kUnits; ++i) {
      any |= shared_.any_steep[unit.note()][i];
    }
    if (!any) return;
    const bool* const is_steep = shared_.is_steep[unit.note()];
    const OperandItem& item = ItemOf(unit);
#pragma unroll 1
    for (int first = 0; first < C::K; first += 8) {
      bool some = false;
#pragma unroll 1
      for (int c = 0; c < 8; ++c) some |= is_steep[first + c];
      if (!some) continue;
      NamedBarrier(kOperandScoreBarrier, 128);
      const int t = Thread() / 2;
      const bool valid = t < item.rows;
      const int64_t offset =
          ((item.row + (valid ? t : 0)) * args_.shape.H + item.h) * C::K +
          first;
      LoadSteepChannels<GateT>(args_, Thread(), valid, offset, shared_.steep);
      NamedBarrier(kOperandScoreBarrier, 128);
      AccumulateGates(Thread(), shared_.steep);
      NamedBarrier(kOperandScoreBarrier, 128);
#pragma unroll 1
      for (int c = 0; c < 8; ++c) {
        if (!is_steep[first + c]) continue;
        AddSteepTerms</*kReverse=*/false>(shared_.steep, c, args_.scale, Row(),
                                          Column(), p);
      }
    }
  }

  __device__ void StoreScores(const Unit& unit, const float (&p)[32]) {
    auto& to = OutputOf(unit);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = Row() + i / 2 * 8, first = i % 2 * 4;
      uint32_t words[4];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const int j = first + m, column = Column() + 8 * j;
        const float* const pair = &p[4 * j + i / 2 * 2];
        words[m] = PackBf16(column <= row ? pair[0] : 0,
                            column + 1 <= row ? pair[1] : 0);
        if (column == (row & ~1)) {
          to.own_rest[row] = row == column ? pair[0] - LowFloat(words[m])
                                           : pair[1] - HighFloat(words[m]);
        }
      }
      // Eight keys a lane.
      TransposeQuad(words);
      if (i % 2 == 1 && row < 32) continue;  // later keys than these queries
      const int before = i % 2 == 1 ? kEarlyScoreBytes - 32 * 64 : 0;
      *reinterpret_cast<uint4*>(to.scores + before +
                                HalfSlabOffset(row, lane_ % 4)) =
          make_uint4(words[0], words[1], words[2], words[3]);
    }
  }

  const OperandParams& params_;
  const OperandArgs& args_;
  OperandShared<C>& shared_;
  const int warp_, lane_;
};

template <typename C>
__global__ void __launch_bounds__(C::kThreads, 1)
    OperandKernel(const __grid_constant__ OperandParams params) {
  extern __shared__ __align__(1024) uint8_t dynamic[];
  auto& shared = *reinterpret_cast<OperandShared<C>*>(dynamic);
  if (threadIdx.x == 0) {
    for (int i = 0; i < C::kInputs; ++i) {
      BarrierInit(SharedAddress(&shared.full[i]), 1);
      BarrierInit(SharedAddress(&shared.read[i]), 32 * C::kTeamWarps);
    }
    for (int i = 0; i < C::kTeams; ++i) {
      BarrierInit(SharedAddress(&shared.gated[i]), 32 * C::kTeamWarps);
      BarrierInit(SharedAddress(&shared.empty[i]), 4 + 1);
    }
    BarrierInitFence();
  }
  __syncthreads();
  LetNextKernelStart();
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  OperandKernelRoles<C> roles(params, shared);
  if (warp < C::kGateWarps) {
    roles.Gate();
  } else if (warp < C::kGateWarps + 4) {
    roles.Score();
  } else if (warp == C::kGateWarps + 4) {
    roles.Load();
  } else {
    roles.Store();
  }
}

template <typename C>
cudaError_t LaunchOperands(const OperandArgs& args, cudaStream_t stream) {
  const ChunkGlaShape& s = args.shape;
  OperandParams params;
  params.args = args;
  params.items = ChunkSlots(s) * s.H;
  if (params.items == 0) return cudaSuccess;
  const auto make = [&s](const void* data, DType dtype, bool swizzled,
                         CUtensorMap* map) {
    return MakeTensorMap({.data = data,
                          .dtype = dtype,
                          .rows = s.B * s.T,
                          .columns = s.H * C::K,
                          .box_rows = kChunk,
                          .box_columns = 64,
                          .swizzled = swizzled},
                         map);
  };
  constexpr DType kBf16 = DType::kBFloat16;
  if (auto e = make(args.q, kBf16, true, &params.q)) return e;
  if (auto e = make(args.k, kBf16, true, &params.k)) return e;
  if (auto e = make(args.g, s.gate_dtype, false, &params.g)) return e;
  constexpr int kBytes = sizeof(OperandShared<C>);
  static_assert(kBytes <= 227 * 1024, "more shared memory than a block has");
  if (cudaError_t error = cudaFuncSetAttribute(
          OperandKernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize,
          kBytes)) {
    return error;
  }
  const int64_t blocks = std::min<int64_t>(params.items, kMultiprocessors);
  OperandKernel<C><<<blocks, C::kThreads, kBytes, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_OPERANDS_CUH_
