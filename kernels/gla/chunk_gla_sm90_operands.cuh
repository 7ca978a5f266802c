// Gated operands and scores of all chunks (GateChunks).
//
// An item is a chunk of a head; a block a multiprocessor takes item after item,
// unit by unit: a unit is 64 channels of an item.
//
//   warps 0 .. 15 (gates)    two teams, every other unit each: from q, k and
//       gates q~ and k', and q~ and k^ in 32 bits
//   warps 16 .. 19 (scores)  mask(q~ k^^T) from these, of which 11 significant
//       bits count: a fifth of the error of rounding scores to bf16
//   warp 20 (loads)          one thread loads q, k, g
//   warp 21 (stores)         one thread stores q~, k' and the decays
//
// Barriers, of a unit's inputs:
//   full   q, k, g are there
//   read   its team has them in registers
// and of its operands:
//   gated  they are there
//   empty  all score warps are done with them, and what is stored has been read
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_OPERANDS_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_OPERANDS_CUH_

#include <algorithm>

#include "kernels/device/dependent_launch_sm90.cuh"
#include "kernels/device/tensor_map_sm90.h"
#include "kernels/gla/chunk_gla_sm90_gating.cuh"
#include "kernels/gla/chunk_gla_sm90_steep.cuh"

namespace gla::internal {

template <int kK, typename GateT>
struct OperandConfig {
  static constexpr int K = kK;
  using Gate = GateT;
  static constexpr int kUnits = K / 64;  // of an item
  static constexpr int kTeams = 2;
  // Units whose inputs are there or under way. Each place belongs to a team:
  // one that waited for every other phase of a barrier could not tell them.
  static constexpr int kInputs = kTeams * (sizeof(GateT) == 4 ? 1 : 2);
  static constexpr int kTeamWarps = 8;
  static constexpr int kGateWarps = kTeams * kTeamWarps;
  static constexpr int kThreads = 32 * (kGateWarps + 4 + 2);
  // Steep channels are noted of so many items: gating may be one ahead.
  static constexpr int kNotes = 2;
};

struct OperandParams {
  OperandArgs args;
  int items;
  CUtensorMap q, k, g;  // [B T, H K]; boxes 64 x 64
};

template <typename C>
struct OperandShared {
  struct Inputs {
    uint8_t q[kSlabBytes];
    uint8_t k[kSlabBytes];
    typename C::Gate g[kChunk][64];
  };
  struct Operands {
    uint8_t q[kSlabBytes];       // q~
    uint8_t late_k[kSlabBytes];  // k'
    // q~ and k^ for the scores: slabs of 32 channels, 32 bits each.
    uint8_t wide_q[2][kSlabBytes];
    uint8_t wide_k[2][kSlabBytes];
  };
  alignas(1024) Inputs inputs[C::kInputs];
  Operands operands[C::kTeams];
  SlabMid decay[C::kTeams];
  // Gates that each warp of a team has added up, of two units in turn.
  float totals[C::kTeams][2][C::kTeamWarps][64];
  bool is_steep[C::kNotes][C::K];
  bool any_steep[C::kNotes][C::kUnits];
  SteepChannels steep;
  uint64_t full[C::kInputs], read[C::kInputs];
  uint64_t gated[C::kTeams], empty[C::kTeams];
};

// Named barriers.
inline constexpr int kOperandScoreBarrier = 1;
inline constexpr int kOperandTeamBarrier = 2;  // and 3: one a team

// The units of a block, one after the other. All roles count them.
template <typename C>
class OperandUnits {
 public:
  __device__ explicit OperandUnits(const OperandParams& params)
      : params_(params), item_(blockIdx.x) {}

  __device__ bool Next() {
    ++count;
    ++unit;
    if (unit % C::kUnits != 0) return true;
    unit = 0;
    ++items;
    while (item_ < params_.items) {
      const int item = item_;
      item_ += gridDim.x;
      if (Find(item)) return true;
    }
    return false;
  }

  // Where a unit's inputs and its operands are, and the parity of how often
  // that place has been used before.
  __device__ int input() const { return count % C::kInputs; }
  __device__ uint32_t input_parity() const { return count / C::kInputs & 1; }
  __device__ int team() const { return count % C::kTeams; }
  __device__ uint32_t team_parity() const { return count / C::kTeams & 1; }
  __device__ int note() const { return items % C::kNotes; }

  int count = -1, items = -1;  // before this unit, this item
  int unit = -1;               // of the item
  int chunk, h;
  int64_t row;     // the chunk's first of the B T
  int rows;        // that the sequence has of it
  int64_t output;  // the index of the item's operands

 private:
  __device__ bool Find(int item) {
    const ChunkGlaShape& s = params_.args.shape;
    const int32_t* const cu_seqlens = params_.args.cu_seqlens;
    const int H = s.H;
    output = item;
    h = item % H;
    chunk = item / H;
    const int n = FindSequenceOfSlot<kChunk>(cu_seqlens, s.T, s.N, chunk);
    const SequenceRows sequence = FindSequence(cu_seqlens, s.T, n);
    const int64_t before =
        (chunk - FirstSlot<kChunk>(cu_seqlens, s.T, n)) * kChunk;
    row = sequence.first + before;
    rows = min(int64_t{kChunk}, sequence.length - before);
    return rows > 0;
  }

  const OperandParams& params_;
  int item_;
};

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
    Units units(params_);
    while (units.Next()) {
      BarrierWait(SharedAddress(&shared_.read[units.input()]),
                  units.input_parity() ^ 1);
      LoadUnit(units);
    }
  }

  __device__ void Store() {
    if (lane_ != 0) return;
    Units units(params_);
    while (units.Next()) {
      BarrierWait(SharedAddress(&shared_.gated[units.team()]),
                  units.team_parity());
      StoreUnit(units);
      TensorStoreWaitRead();
      BarrierArrive(SharedAddress(&shared_.empty[units.team()]));
    }
  }

  // --- Gates.

  __device__ void Gate() {
    Units units(params_);
    while (units.Next()) {
      if (units.team() != warp_ / C::kTeamWarps) continue;
      BarrierWait(SharedAddress(&shared_.full[units.input()]),
                  units.input_parity());
      GateUnit(units);
      FenceAsyncProxy();
      BarrierArrive(SharedAddress(&shared_.gated[units.team()]));
    }
  }

  // --- Scores.

  __device__ void Score() {
    Units units(params_);
    float p[32];
    while (units.Next()) {
      if (units.unit == 0) {
#pragma unroll
        for (int i = 0; i < 32; ++i) p[i] = 0;
      }
      BarrierWait(SharedAddress(&shared_.gated[units.team()]),
                  units.team_parity());
      AddUnit(shared_.operands[units.team()], p);
      if (lane_ == 0) {
        BarrierArrive(SharedAddress(&shared_.empty[units.team()]));
      }
      if (units.unit == C::kUnits - 1) {
        AddSteep(units, p);
        StoreScores(units, p);
      }
    }
  }

 private:
  using GateT = typename C::Gate;
  using Units = OperandUnits<C>;
  using Operands = typename OperandShared<C>::Operands;
  static constexpr int kChannels = 4;            // of a lane
  static constexpr int kLanes = 64 / kChannels;  // of a row
  static constexpr int kRows = kChunk / (32 / kLanes) / C::kTeamWarps;
  using Gates = float[kChannels];
  using LaneGates = RawGates<GateT, kChannels>;
  using Piece = Bf16Piece<kChannels>;

  __device__ int Thread() const { return threadIdx.x % 128; }

  __device__ void LoadUnit(const Units& unit) {
    auto& to = shared_.inputs[unit.input()];
    const uint32_t full = SharedAddress(&shared_.full[unit.input()]);
    const int column = unit.h * C::K + unit.unit * 64;
    BarrierArriveExpect(full,
                        2 * kSlabBytes + kChunk * 64 * int{sizeof(GateT)});
    TensorLoad(SharedAddress(to.g), &params_.g, column, unit.row, full);
    TensorLoad(SharedAddress(to.q), &params_.q, column, unit.row, full);
    TensorLoad(SharedAddress(to.k), &params_.k, column, unit.row, full);
  }

  __device__ ChunkOperands<C::K>& OutputOf(const Units& unit) const {
    return static_cast<ChunkOperands<C::K>*>(args_.operands)[unit.output];
  }

  __device__ void StoreUnit(const Units& unit) {
    auto& from = shared_.operands[unit.team()];
    auto& to = OutputOf(unit);
    BulkStore(to.q[unit.unit], SharedAddress(from.q), kSlabBytes);
    BulkStore(to.k[unit.unit], SharedAddress(from.late_k), kSlabBytes);
    BulkStore(&to.decay[unit.unit], SharedAddress(&shared_.decay[unit.team()]),
              sizeof(SlabMid));
    TensorStoreCommit();
  }

  __device__ void GateUnit(const Units& unit) {
    auto& from = shared_.inputs[unit.input()];
    auto& to = shared_.operands[unit.team()];
    const int channel = lane_ % kLanes * kChannels;
    const int team = unit.team(), part = warp_ % C::kTeamWarps;
    const int first = (part * (32 / kLanes) + lane_ / kLanes) * kRows;
    const auto piece = [&](uint8_t(&slab)[kSlabBytes], int r) -> Piece& {
      return reinterpret_cast<Piece&>(slab[SlabElement(first + r, channel)]);
    };
    const bool is_partial = unit.rows < kChunk;
    Gates sums[kRows], own = {}, b, all;  // sums of this lane's gates so far
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      LaneGates g = reinterpret_cast<LaneGates&>(from.g[first + r][channel]);
      if (is_partial && first + r >= unit.rows) g = {};
      AddGates(g, own);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) sums[r][c] = own[c];
    }
    SumSlab(own, shared_.totals[team][unit.count / C::kTeams % 2], part,
            kOperandTeamBarrier + team, 32 * C::kTeamWarps, b, all);
    Gates shift, late;  // k' is k^ times `late`
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      shift[c] = KeyShift(all[c]);
      late[c] = Exp2(all[c] - shift[c]);
    }
    if (args_.log_decays != nullptr) {
      StoreLogDecays<kRows>(b, all, first, channel,
                            LogDecays(args_.log_decays, args_.shape, unit.chunk,
                                      unit.h, unit.unit));
    }
    Piece q[kRows], k[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      q[r] = piece(from.q, r);
      k[r] = piece(from.k, r);
      if (is_partial && first + r >= unit.rows) q[r] = k[r] = {};
    }
    FenceAsyncProxy();  // Before the next load writes there.
    BarrierArrive(SharedAddress(&shared_.read[unit.input()]));
    BarrierWait(SharedAddress(&shared_.empty[team]), unit.team_parity() ^ 1);
    if (first == 0) Note(unit, channel, all);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      Gates x, sum;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) sum[c] = b[c] + sums[r][c];
      GateQuery(q[r], sum, args_.scale, x);
      piece(to.q, r) = Round(x);
      StoreWide(x, to.wide_q, first + r, channel);
      GateKey(k[r], sum, shift, x);
      StoreWide(x, to.wide_k, first + r, channel);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) x[c] *= late[c];
      piece(to.late_k, r) = Round(x);
    }
  }

  // Stores operands of products that drop all bits but the first 11: 0.72 x
  // 2^-11 of a number in the mean, which is added first. (Numbers of up to 11
  // bits stay what they are.)
  static __device__ void StoreWide(const Gates& x,
                                   uint8_t (&slabs)[2][kSlabBytes], int row,
                                   int channel) {
    constexpr float kUp = 1 + 0.72f / 2048;
    uint8_t* const to = slabs[channel / 32] + SlabOffset(row, channel % 32 / 4);
    *reinterpret_cast<float4*>(to) = {x[0] * kUp, x[1] * kUp, x[2] * kUp,
                                      x[3] * kUp};
  }

  // The decays of a unit's channels, and which of them are steep.
  __device__ void Note(const Units& unit, int channel, const Gates& all) {
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
  __device__ void AddSteep(const Units& unit, float (&p)[32]) {
    bool any = false;
    for (int i = 0; i < C::kUnits; ++i) {
      any |= shared_.any_steep[unit.note()][i];
    }
    if (!any) return;
    const bool* const is_steep = shared_.is_steep[unit.note()];
#pragma unroll 1
    for (int first = 0; first < C::K; first += 8) {
      bool some = false;
#pragma unroll 1
      for (int c = 0; c < 8; ++c) some |= is_steep[first + c];
      if (!some) continue;
      NamedBarrier(kOperandScoreBarrier, 128);
      const int t = Thread() / 2;
      const bool valid = t < unit.rows;
      const int64_t offset =
          ((unit.row + (valid ? t : 0)) * args_.shape.H + unit.h) * C::K +
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

  __device__ void StoreScores(const Units& unit, const float (&p)[32]) {
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
