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
  // Whether shared memory has room for rests of q~ and k^ in two buffers. Else
  // rests go to the places of dq and dk in global memory, which are still free,
  // and come back when there is room; and dA takes the place of v.
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
  // v of a chunk, d_o of it, v of the next, ...: a ring. If kRoomy, dv is
  // transposed in the place of d_o.
  uint8_t rows[C::kRowSlots][2][kSlabBytes];
  State state;  // S before the chunk
  // D. If not kRoomy, then each main warpgroup's rests of q~, in [0], and its
  // dv, in [1].
  State d_state;
  // Scores (rows are keys, columns queries) and their rest; if kRoomy, dA (rows
  // are queries, columns keys) and its rest behind. Steep channels where scores
  // are not yet or no longer.
  uint8_t scores[C::kRoomy ? 4 : 2][kSlabBytes];
  std::conditional_t<C::kRoomy, BothRests, KeyRests> rests[C::kRoomy ? 2 : 1];
  // dA's diagonal, which its slab has not: what a token's query and key add for
  // each other must not be in the terms of dg, where it cancels, but not
  // exactly.
  float own_d_a[2][kChunk];
  float own_scores[2][kChunk];  // of a token with itself
  // e^B of a chunk's channels, with the sign bit set if they are steep.
  float decay[2][C::K];
  // Gates that each warp but a slab's last has added up, if they are not known.
  static constexpr int kSlabWarps = C::kGateWarps / C::kSlabs;
  float totals[C::kSlabs][kSlabWarps - 1][64];
  // Where main warpgroups share the tokens: each one's part of the flow out of
  // the chunk, and the flow out of the first one's tokens.
  float flow[C::kSlabs == 1 ? 3 : 1][64];
  int32_t any_steep[2][C::kSlabs];
  uint64_t raw_full[2], gated[2], finished[2];
  uint64_t rows_full[C::kRowSlots], state_full, flow_full;
  uint64_t key_rests_full, query_rests_full, rests_read;
  SteepMeetings meetings;
  uint64_t group_meeting[2];  // of a main warpgroup, for its steep channels
  ScanWork work;  // to be read where it is needed: registers are full

  using Slab = uint8_t[kSlabBytes];
  // Of what keys[stage] has.
  __device__ Slab& KeyRest(int stage, int slab) {
    return rests[C::kRoomy ? stage : 0].k[slab];
  }
  __device__ Slab& QueryRest(int stage, int slab) {
    if constexpr (C::kRoomy) {
      return rests[stage].q[slab];
    } else {
      return d_state[0][slab];
    }
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
  // The same for gradients, of a main warpgroup: scores are no longer there.
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
