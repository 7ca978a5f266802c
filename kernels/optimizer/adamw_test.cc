#include "kernels/optimizer/adamw.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/relative_rms.h"
#include "kernels/testing/test_context.h"

namespace gla {
namespace {

struct Moments {
  std::vector<double> param, m, v;
};

// The header's formulas in float64, from float32 hyperparameters.
void ReferenceAdamW(const AdamWArgs& a, Moments* state) {
  const double beta1 = a.beta1, beta2 = a.beta2;
  for (int64_t i = 0; i < a.grad.dim(0); ++i) {
    const double g = double{a.grad_scale} * a.grad[i];
    double& m = state->m[i];
    double& v = state->v[i];
    double& param = state->param[i];
    m = beta1 * m + (1 - beta1) * g;
    v = beta2 * v + (1 - beta2) * g * g;
    const double m_hat = m / (1 - std::pow(beta1, a.step));
    const double v_hat = v / (1 - std::pow(beta2, a.step));
    param -= a.learning_rate *
             (m_hat / (std::sqrt(v_hat) + a.eps) + a.weight_decay * param);
  }
}

class AdamWTest : public testing::TestWithParam<int64_t> {};
INSTANTIATE_TEST_SUITE_P(Sizes, AdamWTest,
                         testing::Values(1, 7, 8, 9, 1000, 20011));

TEST_P(AdamWTest, FollowsFloat64OverManySteps) {
  const int64_t n = GetParam();
  auto param = RandomNormal<1>({n}, 1);
  OwnedTensor<float, 1> m({n}), v({n});
  Moments want = {param.AsDouble(), m.AsDouble(), v.AsDouble()};
  TestContext test;
  for (int step = 1; step <= 20; ++step) {
    const auto grad = RandomNormal<1>({n}, 100 + step, /*scale=*/3);
    const AdamWArgs args = {.grad = grad,
                            .param = param,
                            .m = m,
                            .v = v,
                            .learning_rate = 0.05f,
                            .beta1 = 0.9f,
                            .beta2 = 0.95f,
                            .weight_decay = 0.1f,
                            .grad_scale = 0.3f,
                            .step = step};
    ReferenceAdamW(args, &want);
    AdamW(test.ctx(), args);
  }
  EXPECT_TRUE(RelativeRmsAtMost(1e-6, param.values(), want.param));
  EXPECT_TRUE(RelativeRmsAtMost(1e-6, m.values(), want.m));
  EXPECT_TRUE(RelativeRmsAtMost(1e-6, v.values(), want.v));
}

// torch.optim.AdamW(lr=0.1, betas=(0.9, 0.95), weight_decay=0.1): its first
// step moves by lr against the sign of the gradient, after the decay.
TEST(AdamW, FirstStepMovesByTheLearningRate) {
  OwnedTensor<float, 1> param({2}), grad({2}), m({2}), v({2});
  param[0] = 1, param[1] = -2;
  grad[0] = 5, grad[1] = -1e-3f;
  TestContext test;
  AdamW(test.ctx(), {.grad = grad,
                     .param = param,
                     .m = m,
                     .v = v,
                     .learning_rate = 0.1f,
                     .weight_decay = 0.1f});
  EXPECT_NEAR(param[0], 1 * 0.99 - 0.1, 1e-6);
  EXPECT_NEAR(param[1], -2 * 0.99 + 0.1, 2e-6);  // eps shows at 1e-3
}

TEST(AdamW, AZeroGradientOnlyDecays) {
  OwnedTensor<float, 1> param({1}), grad({1}), m({1}), v({1});
  param[0] = 2;
  TestContext test;
  AdamW(test.ctx(), {.grad = grad,
                     .param = param,
                     .m = m,
                     .v = v,
                     .learning_rate = 0.5f,
                     .weight_decay = 0.5f});
  EXPECT_EQ(param[0], 1.5f);
  EXPECT_EQ(m[0], 0);
  EXPECT_EQ(v[0], 0);
}

TEST(AdamW, HasTheSameBitsForAnyThreadCount) {
  constexpr int64_t n = 30001;
  const auto grad = RandomNormal<1>({n}, 1);
  OwnedTensor<float, 1> results[2] = {RandomNormal<1>({n}, 2),
                                      RandomNormal<1>({n}, 2)};
  for (int i = 0; i < 2; ++i) {
    TestContext test(/*num_threads=*/1 + 2 * i);
    OwnedTensor<float, 1> m({n}), v({n});
    AdamW(test.ctx(), {.grad = grad,
                       .param = results[i],
                       .m = m,
                       .v = v,
                       .learning_rate = 0.1f});
  }
  EXPECT_EQ(results[0], results[1]);
}

TEST(AdamW, DiesOnAStepBeforeTheFirst) {
  OwnedTensor<float, 1> x({1});
  TestContext test;
  EXPECT_DEATH(
      AdamW(test.ctx(), {.grad = x, .param = x, .m = x, .v = x, .step = 0}),
      "args.step >= 1");
}

}  // namespace
}  // namespace gla
