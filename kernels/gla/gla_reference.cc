#include "kernels/gla/gla_reference.h"

#include <algorithm>
#include <cmath>
#include <memory>

namespace gla {
namespace {

// next = diag(exp(g_t)) state + k_t v_t^T; next may be state.
void Step(const GlaReferenceInput& in, int64_t t, const double* state,
          double* next) {
  const double* v = &in.v[t * in.V];
  for (int64_t i = 0; i < in.K; ++i) {
    const double decay = std::exp(in.g[t * in.K + i]);
    const double k = in.k[t * in.K + i];
    for (int64_t j = 0; j < in.V; ++j) {
      next[i * in.V + j] = decay * state[i * in.V + j] + k * v[j];
    }
  }
}

std::vector<double> StateOrZero(const GlaReferenceInput& in,
                                const std::vector<double>& state) {
  return state.empty() ? std::vector<double>(in.K * in.V) : state;
}

}  // namespace

GlaReferenceOutput GlaReferenceFwd(const GlaReferenceInput& in) {
  GlaReferenceOutput out;
  out.o.resize(in.T * in.V);
  std::vector<double>& state = out.final_state;
  state = StateOrZero(in, in.initial_state);
  for (int64_t t = 0; t < in.T; ++t) {
    Step(in, t, state.data(), state.data());
    double* o = &out.o[t * in.V];
    for (int64_t i = 0; i < in.K; ++i) {
      const double q = in.scale * in.q[t * in.K + i];
      for (int64_t j = 0; j < in.V; ++j) o[j] += q * state[i * in.V + j];
    }
  }
  return out;
}

GlaReferenceGradients GlaReferenceBwd(
    const GlaReferenceInput& in, const std::vector<double>& d_o,
    const std::vector<double>& d_final_state) {
  const int64_t T = in.T, K = in.K, V = in.V;
  // states[t]: before token t.
  std::unique_ptr<double[]> states(new double[(T + 1) * K * V]);
  const std::vector<double> initial = StateOrZero(in, in.initial_state);
  std::copy(initial.begin(), initial.end(), states.get());
  for (int64_t t = 0; t < T; ++t) {
    Step(in, t, &states[t * K * V], &states[(t + 1) * K * V]);
  }

  GlaReferenceGradients grad;
  grad.dq.resize(T * K);
  grad.dk.resize(T * K);
  grad.dv.resize(T * V);
  grad.dg.resize(T * K);
  std::vector<double>& d_state = grad.d_initial_state;
  d_state = StateOrZero(in, d_final_state);
  for (int64_t t = T - 1; t >= 0; --t) {
    const double* go = &d_o[t * V];
    const double* v = &in.v[t * V];
    double* dv = &grad.dv[t * V];
    for (int64_t i = 0; i < K; ++i) {
      const double* before = &states[(t * K + i) * V];
      const double* after = before + K * V;
      double* ds = &d_state[i * V];
      const double q = in.scale * in.q[t * K + i], k = in.k[t * K + i];
      const double decay = std::exp(in.g[t * K + i]);
      double dq = 0, dk = 0, d_decay = 0;
      for (int64_t j = 0; j < V; ++j) {
        ds[j] += q * go[j];
        dq += after[j] * go[j];
        dk += ds[j] * v[j];
        dv[j] += ds[j] * k;
        d_decay += before[j] * ds[j];
        ds[j] *= decay;
      }
      grad.dq[t * K + i] = in.scale * dq;
      grad.dk[t * K + i] = dk;
      grad.dg[t * K + i] = decay * d_decay;
    }
  }
  return grad;
}

}  // namespace gla
