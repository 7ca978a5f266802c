// Internal to chunk_gla: a run of tokens of one head ("block"), its gated
// operands, and the elementwise half of its gradients.
//
// A block's tokens relate to the state before it and the state after it by
//
//   query_decay_t = exp(g_1 + ... + g_t)        state before -> token t
//   key_decay_t   = exp(g_{t+1} + ... + g_n)    token t -> state after
//
// over the block's own tokens 1..n. All exponents are sums of log gates, <= 0:
// nothing overflows and -inf needs no special case.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_BLOCK_H_
#define GLA_KERNELS_GLA_CHUNK_GLA_BLOCK_H_

#include <cstdint>

namespace gla::internal {

// Rows of the op's inputs: consecutive tokens of one head.
struct GlaBlock {
  int64_t tokens;  // n
  int64_t K, V;
  int64_t qk_stride, v_stride;  // floats from token to token
  const float* q;
  const float* k;
  const float* v;
  const float* g;
  float scale;

  // The block of `count` tokens from the `first` on.
  GlaBlock Slice(int64_t first, int64_t count) const;
};

// Tiles of [tokens, K] floats, rows contiguous.
struct GatedTile {
  float* decay;
  float* value;
};

// decay = query_decay, value = scale * q * decay.
void GateQueries(const GlaBlock& block, const GatedTile& queries);

// decay = key_decay, value = k * decay.
void GateKeys(const GlaBlock& block, const GatedTile& keys);

// Keys in the frame of the queries: decay = 1 / query_decay, value = k * decay,
// so that query_t . key_u = scale * sum q_t k_u exp(g_{u+1} + ... + g_t).
// REQUIRES: FitsOneFrame(block).
void GateKeysInverse(const GlaBlock& block, const float* query_decay,
                     const GatedTile& keys);

// Whether no channel's log gates add up to less than -kMaxLogDecay, so that
// products in one frame neither overflow nor underflow in float32.
inline constexpr float kMaxLogDecay = 60;
bool FitsOneFrame(const GlaBlock& block);

// Gradients of one chunk, tiles of [tokens, K]. Each path from a key (or the
// state before) to a query (or the state after) adds its part; dg_t takes every
// path that crosses the gate of token t.
struct GlaGradientTiles {
  float* dq;
  float* dk;
  float* dg;
  int64_t K;

  GlaGradientTiles Slice(int64_t first) const {
    return {dq + first * K, dk + first * K, dg + first * K, K};
  }
};

// Paths that come from before the block and end in its queries, given d_value,
// the gradient of queries.value:
//   dq_t += scale * decay_t * d_value_t,   dg_t += sum_{s >= t} value_s
//   d_value_s
void AddQueryGradients(const GlaBlock& block, const GatedTile& queries,
                       const float* d_value, const GlaGradientTiles& grad);

// Paths that start in the block's keys and leave it:
//   dk_t += decay_t * d_value_t,   dg_t += sum_{u < t} value_u d_value_u
void AddKeyGradients(const GlaBlock& block, const GatedTile& keys,
                     const float* d_value, const GlaGradientTiles& grad);

// Paths that start and end in the block, in one frame (GateKeysInverse):
//   dq, dk as above,  dg_t += sum_{s >= t} (query_s d_query_s - key_s d_key_s)
void AddFrameGradients(const GlaBlock& block, const GatedTile& queries,
                       const float* d_query, const GatedTile& keys,
                       const float* d_key, const GlaGradientTiles& grad);

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_BLOCK_H_
