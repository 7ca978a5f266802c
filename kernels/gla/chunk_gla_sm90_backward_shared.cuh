// What the roles of the one-kernel backward pass share: configuration, shared
// memory. chunk_gla_sm90_backward.cuh says how they work together.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_SHARED_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_SHARED_CUH_

#include "kernels/device/tensor_map_sm90.h"
#include "kernels/gla/chunk_gla_sm90_grad_steep.cuh"
#include "kernels/gla/chunk_gla_sm90_scan_shared.cuh"

namespace gla::internal {

template <int kK, typename GateT>
struct BackwardConfig {
  static constexpr int K = kK;
  static constexpr int V = 128;
  static constexpr bool kReverse = true;
  static constexpr bool kOutput = true;
  using Gate = GateT;
  static constexpr int kSlabs = K / 64;
  // Whether shared memory has room for all rests, dA and a third buffer of v
  // and d_o. Else rests of q~ go to the place of dq in global memory, which is
  // still free, and come back when D has been read; rests of k^ take turns with
  // half of D, and dA takes the place of v.
  static constexpr bool kRoomy = kSlabs == 1;
  using Scaling = UnscaledParts;
  static constexpr int kRowSlots = kRoomy ? 3 : 2;
  static constexpr int kStateChunks = StateChunks(V);
  // Tokens of a chunk whose dq and dk one main warpgroup forms, for 64
  // channels: the warpgroups share the channels, or with 64 the tokens.
  static constexpr int kTokens = 32 * kSlabs;
  static constexpr int kMainThreads = 256;
  static constexpr int kGateWarps = 4;
  static constexpr int kCopyWarps = 4;
  static constexpr int kThreads =
      kMainThreads + 32 * kGateWarps + 32 * kCopyWarps;
  // Registers of a thread; four warpgroups share 512.
  static constexpr int kMainRegisters = 208;
  static constexpr int kGateRegisters = 72;
  static constexpr int kCopyRegisters = 24;
};

struct BackwardParams {
  ScanArgs scan;
  GradArgs grad;
  CUtensorMap q, k, g, dq, dk, d_g;  // [B T, H K]; boxes 64 x 64
  CUtensorMap v, d_o, dv;            // [B T, H V]; boxes 64 x 64
  CUtensorMap states;                // [., 64]; boxes of a stored state
};

template <typename C>
struct BackwardShared {
  struct Keys {                        // of a chunk
    uint8_t q[C::kSlabs][kSlabBytes];  // q~, then dq
    uint8_t k[C::kSlabs][kSlabBytes];  // k^, then dk
    uint8_t b[C::kSlabs][kSlabBytes];  // LogUnits, then dg
  };
  struct alignas(1024) BothRests {  // of q~ and k^, as these lie
    uint8_t q[C::kSlabs][kSlabBytes];
    uint8_t k[C::kSlabs][kSlabBytes];
  };
  struct alignas(1024) KeyRests {
    uint8_t k[C::kSlabs][kSlabBytes];
  };
  // Rows are values, columns channels; [channels / 64][values / 64].
  using State = uint8_t[C::kSlabs][2][kSlabBytes];
  Keys keys[2];
  // v of a chunk, d_o of it, v of the next, ...: a ring.
  uint8_t rows[C::kRowSlots][2][kSlabBytes];
  State state;  // S before the chunk
  // D of the first 64 channels; if not kRoomy, then rests of q~.
  uint8_t d_state[2][kSlabBytes];
  // Scores (rows are keys, columns queries) and their rest, then dv; if kRoomy,
  // dA (rows are queries, columns keys) and its rest behind. Steep channels
  // before the scores and after dv.
  uint8_t scores[C::kRoomy ? 4 : 2][kSlabBytes];
  // If not kRoomy, the next chunk's are where D of the other channels was.
  std::conditional_t<C::kRoomy, BothRests, KeyRests> rests[2];
  // dA's diagonal, which its slab has not: what a token's query and key add for
  // each other must not be in the terms of dg, where it cancels, but not
  // exactly.
  float own_d_a[kChunk];
  float own_scores[2][kChunk];  // of a token with itself
  // e^B of a chunk's channels, with the sign bit set if they are steep.
  float decay[2][C::K];
  // With 64 channels, gates that each warp but the last has added up.
  static constexpr int kSlabWarps = C::kGateWarps / C::kSlabs;
  float totals[C::kRoomy ? kSlabWarps - 1 : 1][C::kRoomy ? 64 : 1];
  // mid <S, D>.
  float state_flow[C::K];
  // Where main warpgroups share the tokens: what the first one's keys add to
  // the flow out of the chunk, and the flow out of its tokens.
  float flow[C::kSlabs == 1 ? 2 : 1][C::kSlabs == 1 ? 64 : 1];
  int32_t any_steep[2][C::kSlabs];
  uint64_t raw_full[2], gated[2], finished[2];
  uint64_t rows_full[C::kRowSlots], state_full, d_full;
  uint64_t d_read, operands_read, query_rests_full;
  SteepMeetings meetings;
  uint64_t group_meeting[2];  // of a main warpgroup, for its steep channels
  ScanWork work;  // to be read where it is needed: registers are full

  using Slab = uint8_t[kSlabBytes];
  // Of what keys[stage] has.
  __device__ Slab& KeyRest(int stage, int slab) { return rests[stage].k[slab]; }
  __device__ Slab& QueryRest(int stage, int slab) {
    if constexpr (C::kRoomy) {
      return rests[stage].q[slab];
    } else {
      return d_state[slab];
    }
  }
  // D of 64 channels, for the chunk that keys[stage] has; a slab for 64 values.
  __device__ auto& StateGradient(int stage, int slab) {
    if constexpr (!C::kRoomy) {
      if (slab == 1) return rests[1 - stage].k;
    }
    return d_state;
  }
  // dA, or its rest.
  __device__ Slab& ScoreGradients(int part) {
    return C::kRoomy ? scores[C::kRoomy ? 2 + part : 0] : rows[0][part];
  }
  // Steep channels, for scores, which are not there yet.
  __device__ SteepChannels& SteepOfScores() {
    static_assert(sizeof(SteepChannels) <= kSlabBytes);
    return *reinterpret_cast<SteepChannels*>(scores[0]);
  }
  // The same for gradients, of a main warpgroup, when its dv has left.
  __device__ SteepChannels& SteepOfGradients(int group) {
    return *reinterpret_cast<SteepChannels*>(scores[group]);
  }
};

// Named barriers.
inline constexpr int kBackwardGateBarrier = 1;
inline constexpr int kBackwardMainBarrier = 4;   // both main warpgroups
inline constexpr int kBackwardFlowBarrier = 6;   // one main to the other
inline constexpr int kBackwardGroupBarrier = 7;  // and 8: one a warpgroup

__device__ inline bool IsSteepDecay(float decay) {
  return __float_as_uint(decay) >> 31;
}

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_SHARED_CUH_
