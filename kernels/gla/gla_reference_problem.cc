#include "kernels/gla/gla_reference_problem.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "gtest/gtest.h"
#include "kernels/base/thread_pool.h"
#include "kernels/gla/gla_reference.h"
#include "kernels/testing/relative_rms.h"

namespace gla {
namespace {

// Copies `tokens` rows of `width` values, `stride` apart in `from`.
std::vector<double> Gather(const float* from, int64_t tokens, int64_t width,
                           int64_t stride) {
  std::vector<double> rows(tokens * width);
  for (int64_t t = 0; t < tokens; ++t) {
    std::copy_n(from + t * stride, width, rows.begin() + t * width);
  }
  return rows;
}

void Scatter(const std::vector<double>& rows, int64_t width, int64_t stride,
             double* to) {
  const int64_t tokens = rows.size() / width;
  for (int64_t t = 0; t < tokens; ++t) {
    std::copy_n(rows.begin() + t * width, width, to + t * stride);
  }
}

void SolveHead(const GlaProblem& problem, int64_t n, int64_t h,
               GlaExpected* expected) {
  const auto& [B, T, H, K, V, cu_seqlens] = problem.shape;
  const int64_t begin = cu_seqlens.empty() ? n * T : cu_seqlens[n];
  const int64_t end = cu_seqlens.empty() ? begin + T : cu_seqlens[n + 1];
  const int64_t tokens = end - begin, row = begin * H + h;
  const int64_t state = (n * H + h) * K * V;
  auto keys = [&](const OwnedTensor<float, 4>& x) {
    return Gather(x.data() + row * K, tokens, K, H * K);
  };
  auto values = [&](const OwnedTensor<float, 4>& x) {
    return Gather(x.data() + row * V, tokens, V, H * V);
  };
  GlaReferenceInput in = {tokens,
                          K,
                          V,
                          problem.scale,
                          keys(problem.q),
                          keys(problem.k),
                          values(problem.v),
                          keys(problem.g),
                          {}};
  std::vector<double> d_final_state;
  if (problem.with_initial_state) {
    in.initial_state =
        Gather(problem.initial_state.data() + state, 1, K * V, 0);
  }
  if (problem.with_d_final_state) {
    d_final_state = Gather(problem.d_final_state.data() + state, 1, K * V, 0);
  }
  const GlaReferenceOutput out = GlaReferenceFwd(in);
  const GlaReferenceGradients grad =
      GlaReferenceBwd(in, values(problem.d_o), d_final_state);
  Scatter(out.o, V, H * V, expected->o.data() + row * V);
  Scatter(out.final_state, K * V, 0, expected->final_state.data() + state);
  Scatter(grad.dq, K, H * K, expected->dq.data() + row * K);
  Scatter(grad.dk, K, H * K, expected->dk.data() + row * K);
  Scatter(grad.dv, V, H * V, expected->dv.data() + row * V);
  Scatter(grad.dg, K, H * K, expected->dg.data() + row * K);
  Scatter(grad.d_initial_state, K * V, 0,
          expected->d_initial_state.data() + state);
}

}  // namespace

GlaProblem::GlaProblem(const GlaShape& shape, double normalizer, uint64_t seed)
    : shape(shape),
      scale(1 / std::sqrt(static_cast<float>(shape.K))),
      q(RandomUniform<4>(shape.keys(), seed, 0, 1)),
      k(RandomUniform<4>(shape.keys(), seed + 1, 0, 1)),
      v(RandomUniform<4>(shape.values(), seed + 2, 0, 1)),
      g(RandomUniform<4>(shape.keys(), seed + 3, 0, 1)),
      d_o(RandomNormal<4>(shape.values(), seed + 4)),
      initial_state(RandomUniform<4>(shape.states(), seed + 5, 0, 1)),
      d_final_state(RandomNormal<4>(shape.states(), seed + 6)) {
  for (size_t i = 0; i < g.size(); ++i) {
    g[i] = -std::log1p(std::exp(-double{g[i]})) / normalizer;
  }
}

GlaResults::GlaResults(const GlaShape& shape)
    : o(PoisonedTensor<4>(shape.values())),
      final_state(PoisonedTensor<4>(shape.states())),
      dq(PoisonedTensor<4>(shape.keys())),
      dk(PoisonedTensor<4>(shape.keys())),
      dv(PoisonedTensor<4>(shape.values())),
      dg(PoisonedTensor<4>(shape.keys())),
      d_initial_state(PoisonedTensor<4>(shape.states())) {}

GlaExpected ComputeExpected(const GlaProblem& problem) {
  GlaExpected expected;
  for (auto* x : {&expected.o, &expected.dv}) x->resize(problem.v.size());
  for (auto* x : {&expected.dq, &expected.dk, &expected.dg}) {
    x->resize(problem.k.size());
  }
  for (auto* x : {&expected.final_state, &expected.d_initial_state}) {
    x->resize(problem.initial_state.size());
  }
  const int64_t H = problem.shape.H;
  ThreadPool threads(std::min(4, HardwareThreads()));
  threads.ParallelFor(problem.shape.num_sequences() * H,
                      [&](int64_t task, int /*worker*/) {
                        SolveHead(problem, task / H, task % H, &expected);
                      });
  return expected;
}

void ExpectGlaResults(double limit, double dg_limit, const GlaResults& results,
                      const GlaExpected& expected) {
  auto expect_within = [](double limit, const char* name,
                          const OwnedTensor<float, 4>& x,
                          const std::vector<double>& want) {
    std::printf(" %s %.1e", name, RelativeRms(x.values(), want));
    EXPECT_TRUE(RelativeRmsAtMost(limit, x.values(), want)) << name;
  };
  auto expect = [&](const char* name, const OwnedTensor<float, 4>& x,
                    const std::vector<double>& want) {
    expect_within(limit, name, x, want);
  };
  std::printf("relative RMS:");
  expect("o", results.o, expected.o);
  expect("final_state", results.final_state, expected.final_state);
  expect("dq", results.dq, expected.dq);
  expect("dk", results.dk, expected.dk);
  expect("dv", results.dv, expected.dv);
  expect_within(dg_limit, "dg", results.dg, expected.dg);
  expect("d_initial_state", results.d_initial_state, expected.d_initial_state);
  std::printf("\n");
}

}  // namespace gla
