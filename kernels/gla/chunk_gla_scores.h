// Internal to chunk_gla: the gated scores of a chunk,
//
//   scores[t, u] = scale * sum_i q_ti k_ui exp(g_{u+1,i} + ... + g_{t,i})
//                                                   for u <= t, else 0,
//
// as matrix products, for any gates. The decay between two tokens splits into a
// factor for the query and one for the key once a reference in time is chosen.
// Where the chunk's gates are mild (FitsOneFrame) one reference, its start,
// serves all pairs. Otherwise the chunk is halved: pairs across the middle take
// the middle as the reference, which makes both factors <= 1, and each half is
// treated in the same way, down to single tokens. Nothing is approximated.
// (The binary form of secondary chunking, arXiv:2312.06635v6 section 4.3.)
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SCORES_H_
#define GLA_KERNELS_GLA_CHUNK_GLA_SCORES_H_

#include "kernels/gla/chunk_gla_block.h"

namespace gla::internal {

// A chunk's gated operands and the space to compute with them.
struct ChunkOperands {
  bool one_frame;          // FitsOneFrame(chunk)
  GatedTile queries;       // GateQueries(chunk)
  GatedTile keys;          // GateKeys(chunk)
  GatedTile frame_keys;    // GateKeysInverse(chunk) if one_frame, else scratch
  GatedTile half_queries;  // scratch
  float* d_queries;        // [kGlaChunk, K] scratch, backward only
  float* d_keys;           // the same
};

// Fills one_frame, queries, keys and, if one_frame, frame_keys.
void GateChunk(const GlaBlock& chunk, ChunkOperands* operands);

// Overwrites scores, [tokens, tokens] with rows kGlaChunk apart.
void ComputeScores(const GlaBlock& chunk, const ChunkOperands& operands,
                   float* scores);

// Adds to `grad` what scores contribute to dq, dk and dg through pairs of
// different tokens. d_scores: gradient of scores / scale, rows kGlaChunk apart,
// 0 on and above the diagonal.
void AddScoreGradients(const GlaBlock& chunk, const ChunkOperands& operands,
                       const float* d_scores, const GlaGradientTiles& grad);

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SCORES_H_
