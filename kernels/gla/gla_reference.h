// Gated linear attention in float64, one token after the other: what the real
// kernels are tested against. One sequence of one head at a time.
//
//   S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T,    o_t = scale * S_t^T q_t
//
// (GLA, arXiv:2312.06635v6, section 4; fla `naive_recurrent_gla`.)
#ifndef GLA_KERNELS_GLA_GLA_REFERENCE_H_
#define GLA_KERNELS_GLA_GLA_REFERENCE_H_

#include <cstdint>
#include <vector>

namespace gla {

struct GlaReferenceInput {
  int64_t T = 0, K = 0, V = 0;
  double scale = 1;
  std::vector<double> q, k;           // [T, K]
  std::vector<double> v;              // [T, V]
  std::vector<double> g;              // [T, K] log gate, <= 0; -inf resets
  std::vector<double> initial_state;  // [K, V]; empty: zero
};

struct GlaReferenceOutput {
  std::vector<double> o;            // [T, V]
  std::vector<double> final_state;  // [K, V]
};
GlaReferenceOutput GlaReferenceFwd(const GlaReferenceInput& in);

struct GlaReferenceGradients {
  std::vector<double> dq, dk;           // [T, K]
  std::vector<double> dv;               // [T, V]
  std::vector<double> dg;               // [T, K]; 0 where g is -inf
  std::vector<double> d_initial_state;  // [K, V]
};
// Gradients of sum(o * d_o) + sum(final_state * d_final_state). Keeps all T + 1
// states in memory.
GlaReferenceGradients GlaReferenceBwd(
    const GlaReferenceInput& in, const std::vector<double>& d_o,  // [T, V]
    const std::vector<double>& d_final_state);  // [K, V]; empty: zero

}  // namespace gla

#endif  // GLA_KERNELS_GLA_GLA_REFERENCE_H_
