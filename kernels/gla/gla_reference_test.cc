#include "kernels/gla/gla_reference.h"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kernels/testing/finite_difference.h"

namespace gla {
namespace {

std::vector<double> Normal(int64_t n, uint32_t seed) {
  std::mt19937 bits(seed);
  std::normal_distribution<double> normal;
  std::vector<double> x(n);
  for (double& value : x) value = normal(bits);
  return x;
}

GlaReferenceInput SmallInput() {
  GlaReferenceInput in;
  in.T = 5;
  in.K = 3;
  in.V = 2;
  in.scale = 0.7;
  in.q = Normal(in.T * in.K, 1);
  in.k = Normal(in.T * in.K, 2);
  in.v = Normal(in.T * in.V, 3);
  in.g = Normal(in.T * in.K, 4);
  for (double& g : in.g) g = -std::abs(g);
  in.initial_state = Normal(in.K * in.V, 5);
  return in;
}

TEST(GlaReference, ForwardMatchesTwoStepsByHand) {
  GlaReferenceInput in;
  in.T = 2;
  in.K = in.V = 1;
  in.scale = 2;
  in.q = {3, 5};
  in.k = {7, 11};
  in.v = {13, 17};
  in.g = {std::log(0.5), std::log(0.25)};
  in.initial_state = {4};
  const GlaReferenceOutput out = GlaReferenceFwd(in);
  const double first = 0.5 * 4 + 7 * 13, second = 0.25 * first + 11 * 17;
  EXPECT_DOUBLE_EQ(out.o[0], 2 * 3 * first);
  EXPECT_DOUBLE_EQ(out.o[1], 2 * 5 * second);
  EXPECT_DOUBLE_EQ(out.final_state[0], second);
}

TEST(GlaReference, GradientsMatchFiniteDifferences) {
  GlaReferenceInput in = SmallInput();
  const std::vector<double> d_o = Normal(in.T * in.V, 6);
  const std::vector<double> d_final_state = Normal(in.K * in.V, 7);
  auto loss = [&] {
    const GlaReferenceOutput out = GlaReferenceFwd(in);
    double sum = 0;
    for (size_t i = 0; i < d_o.size(); ++i) sum += out.o[i] * d_o[i];
    for (size_t i = 0; i < d_final_state.size(); ++i) {
      sum += out.final_state[i] * d_final_state[i];
    }
    return sum;
  };
  const GlaReferenceGradients grad = GlaReferenceBwd(in, d_o, d_final_state);
  auto expect = [&](const char* name, std::vector<double>& x,
                    const std::vector<double>& gradient) {
    const std::vector<double> numeric =
        FiniteDifferenceGradient(absl::MakeSpan(x), 1e-5, loss);
    ASSERT_EQ(gradient.size(), numeric.size()) << name;
    for (size_t i = 0; i < numeric.size(); ++i) {
      EXPECT_NEAR(gradient[i], numeric[i], 1e-8) << name << "[" << i << "]";
    }
  };
  expect("q", in.q, grad.dq);
  expect("k", in.k, grad.dk);
  expect("v", in.v, grad.dv);
  expect("g", in.g, grad.dg);
  expect("initial_state", in.initial_state, grad.d_initial_state);
}

TEST(GlaReference, ResetForgetsThePast) {
  GlaReferenceInput in = SmallInput();
  const double inf = std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < in.K; ++i) in.g[2 * in.K + i] = -inf;
  const GlaReferenceOutput out = GlaReferenceFwd(in);
  for (double& x : in.initial_state) x += 1;
  in.v[0] += 1;
  const GlaReferenceOutput other = GlaReferenceFwd(in);
  for (int64_t i = 2 * in.V; i < in.T * in.V; ++i) {
    EXPECT_EQ(out.o[i], other.o[i]);
  }
  const GlaReferenceGradients grad =
      GlaReferenceBwd(in, Normal(in.T * in.V, 6), {});
  for (int64_t i = 0; i < in.K; ++i) {
    EXPECT_EQ(grad.dg[2 * in.K + i], 0);
  }
}

}  // namespace
}  // namespace gla
