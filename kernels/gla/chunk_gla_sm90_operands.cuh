// Gated operands and scores of all chunks (GateChunks).
//
// An item is a chunk of a head; a block a multiprocessor takes item after item,
// unit by unit: a unit is 64 channels of an item, in one of kSlots slots of
// shared memory.
//
//   warps 0 .. 15 (gates)    two teams, every other unit each: q~, k^ and what
//       rounding left out of both, and k', in the place of q, k and gates
//   warps 16 .. 19 (scores)  mask(q~ k^^T), with q~ and k^ in two bf16 parts:
//       scores are as good as from float32 operands (the product of the small
//       parts is left out)
//   warp 20 (copies)         one thread loads q, k, g and stores q~ and k'
//
// Barriers, of a slot:
//   full   q, k, g are there
//   gated  the operands are
//   empty  all score warps are done with them
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
  static constexpr int kSlots = sizeof(GateT) == 4 ? 4 : 5;
  static constexpr int kTeams = 2;
  static constexpr int kTeamWarps = 8;
  static constexpr int kGateWarps = kTeams * kTeamWarps;
  static constexpr int kThreads = 32 * (kGateWarps + 4 + 1);
  // Steep channels are noted of so many items: gating may be two ahead.
  static constexpr int kNotes = 4;
};

struct OperandParams {
  OperandArgs args;
  int items;
  CUtensorMap q, k, g;  // [B T, H K]; boxes 64 x 64
};

template <typename C>
struct OperandShared {
  // Gates are read before anything takes their place.
  struct Slot {
    uint8_t q[kSlabBytes];
    uint8_t k[kSlabBytes];
    uint8_t q_rest[kSlabBytes];
    uint8_t k_rest[kSlabBytes];
    union {
      uint8_t late_k[kSlabBytes];  // k'
      typename C::Gate g[kChunk][64];
    };
  };
  Slot slot[C::kSlots];
  SlabMid decay[C::kSlots];
  // Gates that each warp of a team has added up, of two units in turn.
  float totals[C::kTeams][2][C::kTeamWarps][64];
  bool is_steep[C::kNotes][C::K];
  bool any_steep[C::kNotes][C::kUnits];
  SteepChannels steep;
  uint64_t full[C::kSlots], gated[C::kSlots], empty[C::kSlots];
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

  __device__ int slot() const { return count % C::kSlots; }
  __device__ uint32_t parity() const { return count / C::kSlots & 1; }
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

  __device__ void Copy() {
    if (lane_ != 0) return;
    Units loads(params_), stores(params_);
    bool more = true;
    for (int i = 0; i < C::kSlots && more; ++i) {
      more = loads.Next();
      if (more) Load(loads);
    }
    while (stores.Next()) {
      BarrierWait(SharedAddress(&shared_.gated[stores.slot()]),
                  stores.parity());
      Store(stores);
      // The slot of the unit before goes to the next load.
      if (stores.count == 0 || !more) continue;
      more = loads.Next();
      if (!more) continue;
      BarrierWait(SharedAddress(&shared_.empty[loads.slot()]),
                  loads.parity() ^ 1);
      TensorStoreWaitRead<1>();
      Load(loads);
    }
    TensorStoreWaitRead();
  }

  // --- Gates.

  __device__ void Gate() {
    Units units(params_);
    while (units.Next()) {
      // Every unit, not only the team's: a wait that leaves out phases of a
      // barrier takes an older one for its own.
      BarrierWait(SharedAddress(&shared_.full[units.slot()]), units.parity());
      if (units.count % C::kTeams != warp_ / C::kTeamWarps) continue;
      GateUnit(units);
      FenceAsyncProxy();
      BarrierArrive(SharedAddress(&shared_.gated[units.slot()]));
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
      BarrierWait(SharedAddress(&shared_.gated[units.slot()]), units.parity());
      AddUnit(shared_.slot[units.slot()], p);
      if (lane_ == 0) {
        BarrierArrive(SharedAddress(&shared_.empty[units.slot()]));
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
  static constexpr int kChannels = 4;            // of a lane
  static constexpr int kLanes = 64 / kChannels;  // of a row
  static constexpr int kRows = kChunk / (32 / kLanes) / C::kTeamWarps;
  using Gates = float[kChannels];
  using LaneGates = RawGates<GateT, kChannels>;
  using Piece = Bf16Piece<kChannels>;

  __device__ int Thread() const { return threadIdx.x % 128; }

  __device__ void Load(const Units& unit) {
    auto& slot = shared_.slot[unit.slot()];
    const uint32_t full = SharedAddress(&shared_.full[unit.slot()]);
    const int column = unit.h * C::K + unit.unit * 64;
    BarrierArriveExpect(full,
                        2 * kSlabBytes + kChunk * 64 * int{sizeof(GateT)});
    TensorLoad(SharedAddress(slot.g), &params_.g, column, unit.row, full);
    TensorLoad(SharedAddress(slot.q), &params_.q, column, unit.row, full);
    TensorLoad(SharedAddress(slot.k), &params_.k, column, unit.row, full);
  }

  __device__ ChunkOperands<C::K>& OutputOf(const Units& unit) const {
    return static_cast<ChunkOperands<C::K>*>(args_.operands)[unit.output];
  }

  __device__ void Store(const Units& unit) {
    auto& slot = shared_.slot[unit.slot()];
    auto& to = OutputOf(unit);
    BulkStore(to.q[unit.unit], SharedAddress(slot.q), kSlabBytes);
    BulkStore(to.k[unit.unit], SharedAddress(slot.late_k), kSlabBytes);
    BulkStore(&to.decay[unit.unit], SharedAddress(&shared_.decay[unit.slot()]),
              sizeof(SlabMid));
    TensorStoreCommit();
  }

  __device__ void GateUnit(const Units& unit) {
    auto& slot = shared_.slot[unit.slot()];
    const int channel = lane_ % kLanes * kChannels;
    const int team = warp_ / C::kTeamWarps, part = warp_ % C::kTeamWarps;
    const int first = (part * (32 / kLanes) + lane_ / kLanes) * kRows;
    const auto piece = [&](uint8_t(&slab)[kSlabBytes], int r) -> Piece& {
      return reinterpret_cast<Piece&>(slab[SlabElement(first + r, channel)]);
    };
    LaneGates g[kRows];
    Gates own = {}, b, all;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      g[r] = reinterpret_cast<LaneGates&>(slot.g[first + r][channel]);
      if (first + r >= unit.rows) g[r] = {};
      AddGates(g[r], own);
    }
    SumSlab(own, shared_.totals[team][unit.count / C::kTeams % 2], part,
            kOperandTeamBarrier + team, 32 * C::kTeamWarps, b, all);
    Gates shift, late;  // k' is k^ times `late`
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      shift[c] = KeyShift(all[c]);
      late[c] = Exp2(all[c] - shift[c]);
    }
    if (first == 0) Note(unit, channel, all);
    if (args_.log_decays != nullptr) {
      StoreLogDecays<kRows>(b, all, first, channel,
                            LogDecays(args_.log_decays, args_.shape, unit.chunk,
                                      unit.h, unit.unit));
    }
    Piece q[kRows], k[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      q[r] = piece(slot.q, r);
      k[r] = piece(slot.k, r);
      if (first + r >= unit.rows) q[r] = k[r] = {};
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      AddGates(g[r], b);
      Gates x;
      GateQuery(q[r], b, args_.scale, x);
      q[r] = Round(x);
      piece(slot.q, r) = q[r];
      piece(slot.q_rest, r) = RoundRest(x, q[r]);
      GateKey(k[r], b, shift, x);
      k[r] = Round(x);
      piece(slot.k, r) = k[r];
      piece(slot.k_rest, r) = RoundRest(x, k[r]);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) x[c] *= late[c];
      piece(slot.late_k, r) = Round(x);
    }
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
    StoreFactors(decay, channel, shared_.decay[unit.slot()].mid);
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
  template <typename Slot>
  __device__ void AddUnit(const Slot& slot, float (&p)[32]) {
    const auto descriptor = [](const uint8_t(&slab)[kSlabBytes]) {
      return SlabDescriptor(SharedAddress(slab));
    };
    constexpr Contract kAlong = Contract::kAlongColumns;
    const auto add = [&p](uint64_t a, uint64_t b) {
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        Wgmma<kAlong, kAlong>(p, StepDescriptor<kAlong>(a, step),
                              StepDescriptor<kAlong>(b, step), true);
      }
    };
    Touch(p);
    WgmmaFence();
    add(descriptor(slot.q_rest), descriptor(slot.k));
    add(descriptor(slot.q), descriptor(slot.k_rest));
    add(descriptor(slot.q), descriptor(slot.k));
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
    for (int s = 0; s < C::kSlots; ++s) {
      BarrierInit(SharedAddress(&shared.full[s]), 1);
      BarrierInit(SharedAddress(&shared.gated[s]), 32 * C::kTeamWarps);
      BarrierInit(SharedAddress(&shared.empty[s]), 4);
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
  } else {
    roles.Copy();
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
