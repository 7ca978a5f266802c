// Speed of chunk_gla on this machine, as a share of what its matrix products
// could reach.
#ifndef GLA_KERNELS_GLA_GLA_BENCHMARK_H_
#define GLA_KERNELS_GLA_GLA_BENCHMARK_H_

#include <cstdint>

#include "kernels/base/execution_context.h"

namespace gla {

struct ChunkGlaBenchmarkShape {
  int64_t B, T, H, K, V;
  double normalizer = 16;  // g = log_sigmoid(normal) / normalizer
};

// Medians over the rounds; every round runs sgemm, forward and backward once,
// so that all three see the same machine.
struct ChunkGlaTiming {
  double fwd_seconds = 0;
  double bwd_seconds = 0;
  // Counting, per token and head, 4KV + 2C(K + V) forward and
  // 10KV + 2C(3K + 2V) backward, C = kGlaChunk.
  double fwd_flops = 0;
  double bwd_flops = 0;
  // [2048, 2048] products, one row slice per thread of the context.
  double sgemm_flops_per_second = 0;
  // Median over the rounds of the op's rate over sgemm's in the same round.
  double fwd_share = 0;
  double step_share = 0;  // forward + backward
};

// Times calls without initial state and final state, as in training. `rounds`
// >= 1 are measured, after one that is not.
ChunkGlaTiming MeasureChunkGla(const ExecutionContext& ctx,
                               const ChunkGlaBenchmarkShape& shape, int rounds);

}  // namespace gla

#endif  // GLA_KERNELS_GLA_GLA_BENCHMARK_H_
