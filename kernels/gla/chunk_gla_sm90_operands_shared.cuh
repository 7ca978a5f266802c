// What the roles of the operand kernel share: configuration, shared memory,
// items and units. chunk_gla_sm90_operands.cuh says how they work together.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_OPERANDS_SHARED_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_OPERANDS_SHARED_CUH_

#include "kernels/device/tensor_map_sm90.h"
#include "kernels/gla/chunk_gla_sm90.cuh"
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
  // Items are known of so many: the loads may be two ahead of the scores.
  static constexpr int kItems = 4;
};

struct OperandParams {
  OperandArgs args;
  int items;
  CUtensorMap q, k, g;  // [B T, H K]; boxes 64 x 64
};

// A chunk of a head: what the thread that loads finds for all roles.
struct OperandItem {
  int64_t row;     // the chunk's first of the B T
  int64_t output;  // the index of its operands
  int rows;        // that the sequence has of it; 0 if there are no more items
  int chunk, h;
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
  OperandItem items[C::kItems];
  uint64_t full[C::kInputs], read[C::kInputs];
  uint64_t gated[C::kTeams], empty[C::kTeams];
};

// Named barriers.
inline constexpr int kOperandScoreBarrier = 1;
inline constexpr int kOperandTeamBarrier = 2;  // and 3: one a team

// One of a block's units: `unit` of the block's item number `item`. All roles
// count them.
template <typename C>
struct OperandUnit {
  int item, unit;

  // Where its inputs and its operands are, and the parity of how often that
  // place has been used before.
  __device__ int count() const { return item * C::kUnits + unit; }
  __device__ int input() const { return count() % C::kInputs; }
  __device__ uint32_t input_parity() const { return count() / C::kInputs & 1; }
  __device__ int team() const { return count() % C::kTeams; }
  __device__ uint32_t team_parity() const { return count() / C::kTeams & 1; }
  __device__ int note() const { return item % C::kNotes; }
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_OPERANDS_SHARED_CUH_
