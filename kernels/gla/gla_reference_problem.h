// Test problems for the GLA ops: inputs, the float64 answer, the comparison.
#ifndef GLA_KERNELS_GLA_GLA_REFERENCE_PROBLEM_H_
#define GLA_KERNELS_GLA_GLA_REFERENCE_PROBLEM_H_

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/testing/random_tensor.h"

namespace gla {

struct GlaShape {
  int64_t B = 1, T = 1, H = 1, K = 1, V = 1;
  std::vector<int32_t> cu_seqlens = {};

  int64_t num_sequences() const {
    return cu_seqlens.empty() ? B : cu_seqlens.size() - 1;
  }
  std::array<int64_t, 4> keys() const { return {B, T, H, K}; }
  std::array<int64_t, 4> values() const { return {B, T, H, V}; }
  std::array<int64_t, 4> states() const { return {num_sequences(), H, K, V}; }
};

// Inputs of forward and backward. The distributions are those of fla's own
// tests: q, k, v uniform in [0, 1); d_o, d_final_state normal;
// g = log_sigmoid(uniform [0, 1)) / normalizer; scale = 1 / sqrt(K).
struct GlaProblem {
  GlaProblem(const GlaShape& shape, double normalizer, uint64_t seed);

  GlaShape shape;
  float scale;
  OwnedTensor<float, 4> q, k, v, g, d_o;
  OwnedTensor<float, 4> initial_state, d_final_state;
  bool with_initial_state = true;  // false: start from zero
  bool with_d_final_state = true;  // false: the loss is sum(o * d_o)
};

// What an op computed; NaN at first.
struct GlaResults {
  explicit GlaResults(const GlaShape& shape);

  OwnedTensor<float, 4> o, final_state;
  OwnedTensor<float, 4> dq, dk, dv, dg, d_initial_state;
};

// The answer in float64, laid out as in GlaResults.
struct GlaExpected {
  std::vector<double> o, final_state;
  std::vector<double> dq, dk, dv, dg, d_initial_state;
};
GlaExpected ComputeExpected(const GlaProblem& problem);

// Expects dg within `dg_limit` relative RMS, every other tensor within `limit`,
// and prints the figures.
void ExpectGlaResults(double limit, double dg_limit, const GlaResults& results,
                      const GlaExpected& expected);
inline void ExpectGlaResults(double limit, const GlaResults& results,
                             const GlaExpected& expected) {
  ExpectGlaResults(limit, limit, results, expected);
}

}  // namespace gla

#endif  // GLA_KERNELS_GLA_GLA_REFERENCE_PROBLEM_H_
