#include "kernels/gla/chunk_gla_scores.h"

#include <algorithm>

#include "kernels/base/vector_math.h"
#include "kernels/gla/chunk_gla.h"
#include "kernels/gla/chunk_gla_gemm.h"

namespace gla::internal {
namespace {

float Dot(const float* a, const float* b, int64_t n) {
  __m256 sum = _mm256_setzero_ps();
  ForEachVector(n, [&](int64_t i, auto lanes) {
    sum = _mm256_fmadd_ps(lanes.Load(a + i), lanes.Load(b + i), sum);
  });
  return Sum8(sum);
}

void FrameScores(const GlaBlock& block, const GatedTile& queries,
                 const GatedTile& keys, float* scores) {
  GemmNT(block.tokens, block.tokens, block.K, {queries.value, block.K},
         {keys.value, block.K}, 0, scores, kGlaChunk);
}

// `scores` points at the block's first pair.
void BlockScores(const GlaBlock& block, const ChunkOperands& tiles,
                 float* scores) {
  if (block.tokens == 1) {
    *scores = block.scale * Dot(block.q, block.k, block.K);
    return;
  }
  if (FitsOneFrame(block)) {
    GateQueries(block, tiles.half_queries);
    GateKeysInverse(block, tiles.half_queries.decay, tiles.frame_keys);
    FrameScores(block, tiles.half_queries, tiles.frame_keys, scores);
    return;
  }
  const int64_t middle = block.tokens / 2;
  const GlaBlock first = block.Slice(0, middle);
  const GlaBlock second = block.Slice(middle, block.tokens - middle);
  GateKeys(first, tiles.frame_keys);
  GateQueries(second, tiles.half_queries);
  GemmNT(second.tokens, first.tokens, block.K,
         {tiles.half_queries.value, block.K}, {tiles.frame_keys.value, block.K},
         0, scores + middle * kGlaChunk, kGlaChunk);
  BlockScores(first, tiles, scores);
  BlockScores(second, tiles, scores + middle * (kGlaChunk + 1));
}

void FrameScoreGradients(const GlaBlock& block, const GatedTile& queries,
                         const GatedTile& keys, const ChunkOperands& tiles,
                         const float* d_scores, const GlaGradientTiles& grad) {
  const int64_t n = block.tokens, K = block.K;
  GemmNN(n, K, n, {d_scores, kGlaChunk}, {keys.value, K}, 0, tiles.d_queries,
         K);
  GemmTN(n, K, n, {d_scores, kGlaChunk}, {queries.value, K}, 0, tiles.d_keys,
         K);
  AddFrameGradients(block, queries, tiles.d_queries, keys, tiles.d_keys, grad);
}

// `d_scores` points at the block's first pair.
void BlockScoreGradients(const GlaBlock& block, const ChunkOperands& tiles,
                         const float* d_scores, const GlaGradientTiles& grad) {
  if (block.tokens == 1) return;
  if (FitsOneFrame(block)) {
    GateQueries(block, tiles.half_queries);
    GateKeysInverse(block, tiles.half_queries.decay, tiles.frame_keys);
    FrameScoreGradients(block, tiles.half_queries, tiles.frame_keys, tiles,
                        d_scores, grad);
    return;
  }
  const int64_t middle = block.tokens / 2, K = block.K;
  const GlaBlock first = block.Slice(0, middle);
  const GlaBlock second = block.Slice(middle, block.tokens - middle);
  const float* across = d_scores + middle * kGlaChunk;
  GateKeys(first, tiles.frame_keys);
  GateQueries(second, tiles.half_queries);
  GemmNN(second.tokens, K, first.tokens, {across, kGlaChunk},
         {tiles.frame_keys.value, K}, 0, tiles.d_queries, K);
  GemmTN(first.tokens, K, second.tokens, {across, kGlaChunk},
         {tiles.half_queries.value, K}, 0, tiles.d_keys, K);
  AddKeyGradients(first, tiles.frame_keys, tiles.d_keys, grad);
  AddQueryGradients(second, tiles.half_queries, tiles.d_queries,
                    grad.Slice(middle));
  BlockScoreGradients(first, tiles, d_scores, grad);
  BlockScoreGradients(second, tiles, d_scores + middle * (kGlaChunk + 1),
                      grad.Slice(middle));
}

}  // namespace

void GateChunk(const GlaBlock& chunk, ChunkOperands* operands) {
  GateQueries(chunk, operands->queries);
  GateKeys(chunk, operands->keys);
  operands->one_frame = FitsOneFrame(chunk);
  if (operands->one_frame) {
    GateKeysInverse(chunk, operands->queries.decay, operands->frame_keys);
  }
}

void ComputeScores(const GlaBlock& chunk, const ChunkOperands& operands,
                   float* scores) {
  if (operands.one_frame) {
    FrameScores(chunk, operands.queries, operands.frame_keys, scores);
  } else {
    BlockScores(chunk, operands, scores);
  }
  for (int64_t t = 0; t < chunk.tokens; ++t) {
    float* row = scores + t * kGlaChunk;
    std::fill(row + t + 1, row + chunk.tokens, 0.0f);
  }
}

void AddScoreGradients(const GlaBlock& chunk, const ChunkOperands& operands,
                       const float* d_scores, const GlaGradientTiles& grad) {
  if (operands.one_frame) {
    FrameScoreGradients(chunk, operands.queries, operands.frame_keys, operands,
                        d_scores, grad);
  } else {
    BlockScoreGradients(chunk, operands, d_scores, grad);
  }
}

}  // namespace gla::internal
