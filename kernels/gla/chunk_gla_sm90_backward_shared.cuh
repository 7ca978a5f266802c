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
  // Whether q~, k^, scores and dA have a second part, what rounding left out,
  // itself rounded. With 128 channels there is no room for it.
  static constexpr bool kRests = kSlabs == 1;
  static constexpr int kParts = kRests ? 2 : 1;
  static constexpr int kScoreRests = kRests ? kChunk : 0;  // columns
  using Scaling = UnscaledParts<kRests>;
  static constexpr int kStateChunks = StateChunks(V);
  // Tokens of a chunk whose dq and dk one main warpgroup forms, for 64
  // channels: the warpgroups share the channels, or with 64 the tokens.
  static constexpr int kTokens = 32 * kSlabs;
  static constexpr int kMainThreads = 256;
  static constexpr int kGateWarps = kSlabs == 2 ? 4 : 8;
  static constexpr int kThreads = kMainThreads + 32 * kGateWarps;
  // Registers of a thread; three warpgroups share 504, four 512.
  static constexpr int kMainRegisters = kSlabs == 2 ? 208 : 176;
  static constexpr int kGateRegisters = kSlabs == 2 ? 88 : 80;
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
  struct alignas(1024) Rests {  // of q~ and k^, as these lie
    uint8_t q[C::kSlabs][kSlabBytes];
    uint8_t k[C::kSlabs][kSlabBytes];
  };
  struct NoRests {};
  // Rows are values, columns channels; [channels / 64][values / 64].
  using State = uint8_t[C::kSlabs][2][kSlabBytes];
  Keys keys[2];
  // v of a chunk, d_o of it, v of the next, ...: three in a ring. dv is
  // transposed in the place of d_o.
  uint8_t rows[3][2][kSlabBytes];
  State state;    // S before the chunk
  State d_state;  // D
  union {
    struct {
      uint8_t scores[C::kParts][kSlabBytes];  // rows are keys, columns queries
      uint8_t d_a[C::kParts][kSlabBytes];     // rows are queries, columns keys
    };
    SteepChannels steep[2];  // where scores are not yet or no longer, beside dA
  };
  static_assert(sizeof(SteepChannels[2]) <= kSlabBytes, "dA stays");
  // dA's diagonal, which its slab has not: what a token's query and key add for
  // each other must not be in the terms of dg, where it cancels, but not
  // exactly.
  float own_d_a[2][kChunk];
  // e^B of a chunk's channels, with the sign bit set if they are steep.
  float decay[2][C::K];
  // Gates that each warp but a slab's last has added up.
  static constexpr int kSlabWarps = C::kGateWarps / C::kSlabs;
  float totals[C::kSlabs][kSlabWarps - 1][64];
  // Where main warpgroups share the tokens: each one's part of the flow out of
  // the chunk, and the flow out of the first one's tokens.
  float flow[C::kSlabs == 1 ? 3 : 1][64];
  int32_t any_steep[2][C::kSlabs];
  uint64_t raw_full[2], gated[2], finished[2];
  uint64_t rows_full[3], state_full, flow_full;
  SteepMeetings meetings;
  uint64_t group_meeting[2];  // of a main warpgroup, for its steep channels
  std::conditional_t<C::kRests, Rests, NoRests> rests[2];
};

// Named barriers.
inline constexpr int kBackwardGateBarrier = 1;
inline constexpr int kBackwardMainBarrier = 4;   // both main warpgroups
inline constexpr int kBackwardRowsBarrier = 5;   // main to the loading warp
inline constexpr int kBackwardFlowBarrier = 6;   // one main to the other
inline constexpr int kBackwardGroupBarrier = 7;  // and 8: one a warpgroup

__device__ inline bool IsSteepDecay(float decay) {
  return __float_as_uint(decay) >> 31;
}

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_SHARED_CUH_
