#include "kernels/loss/linear_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>
#include <vector>

#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kernels/testing/finite_difference.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/relative_rms.h"
#include "kernels/testing/test_context.h"

namespace gla {
namespace {

constexpr double kLimit = 1e-5;

struct Reference {
  std::vector<double> loss, dx, dweight;
};

// The header's formulas in float64; gradients of grad_scale * sum(loss).
Reference ReferenceLoss(int64_t M, int64_t D, int64_t vocab_size,
                        absl::Span<const double> x,
                        absl::Span<const double> weight,
                        const OwnedTensor<int32_t, 1>& labels,
                        double grad_scale) {
  Reference r = {std::vector<double>(M), std::vector<double>(M * D),
                 std::vector<double>(vocab_size * D)};
  for (int64_t m = 0; m < M; ++m) {
    if (labels[m] == kIgnoreLabel) continue;
    std::vector<double> p(vocab_size);
    for (int64_t w = 0; w < vocab_size; ++w) {
      p[w] = std::inner_product(&x[m * D], &x[m * D] + D, &weight[w * D], 0.0);
    }
    const double label_logit = p[labels[m]];
    const double max = *std::max_element(p.begin(), p.end());
    double sum = 0;
    for (double& value : p) sum += value = std::exp(value - max);
    r.loss[m] = std::log(sum) + max - label_logit;
    for (int64_t w = 0; w < vocab_size; ++w) {
      const double dlogit = grad_scale * (p[w] / sum - (w == labels[m]));
      for (int64_t d = 0; d < D; ++d) {
        r.dx[m * D + d] += dlogit * weight[w * D + d];
        r.dweight[w * D + d] += dlogit * x[m * D + d];
      }
    }
  }
  return r;
}

// Labels spread over the vocabulary; every fifth one is ignored.
OwnedTensor<int32_t, 1> Labels(int64_t M, int64_t vocab_size) {
  OwnedTensor<int32_t, 1> labels({M});
  for (int64_t m = 0; m < M; ++m) {
    labels[m] = m % 5 == 4 ? kIgnoreLabel : (m * 7 + 2) % vocab_size;
  }
  return labels;
}

class LinearCrossEntropyTest
    : public testing::TestWithParam<std::tuple<int64_t, int64_t, int64_t>> {};
INSTANTIATE_TEST_SUITE_P(Shapes, LinearCrossEntropyTest,
                         testing::Values(std::tuple(1, 1, 1),
                                         std::tuple(1, 5, 13),
                                         std::tuple(5, 3, 2),
                                         std::tuple(37, 16, 64),
                                         std::tuple(600, 7, 19),  // two slices
                                         std::tuple(1025, 4, 8)));

TEST_P(LinearCrossEntropyTest, MatchesFloat64) {
  const auto [M, D, vocab_size] = GetParam();
  const auto x = RandomNormal<2>({M, D}, 1);
  const auto weight = RandomNormal<2>({vocab_size, D}, 2);
  const auto labels = Labels(M, vocab_size);
  const Reference want = ReferenceLoss(M, D, vocab_size, x.AsDouble(),
                                       weight.AsDouble(), labels, 0.25);
  TestContext test;
  auto loss = PoisonedTensor<1>({M});
  auto dx = PoisonedTensor<2>({M, D});
  OwnedTensor<float, 2> dweight({vocab_size, D});
  LinearCrossEntropy(test.ctx(), {.x = x,
                                  .weight = weight,
                                  .labels = labels,
                                  .grad_scale = 0.25f,
                                  .loss = loss,
                                  .dx = dx,
                                  .dweight = dweight});
  EXPECT_TRUE(RelativeRmsAtMost(kLimit, loss.values(), want.loss));
  EXPECT_TRUE(RelativeRmsAtMost(kLimit, dx.values(), want.dx));
  EXPECT_TRUE(RelativeRmsAtMost(kLimit, dweight.values(), want.dweight));
}

TEST(LinearCrossEntropy, GradientsMatchFiniteDifferencesOfTheReference) {
  constexpr int64_t M = 6, D = 3, vocab_size = 5;
  const auto x = RandomNormal<2>({M, D}, 1);
  const auto weight = RandomNormal<2>({vocab_size, D}, 2);
  const auto labels = Labels(M, vocab_size);
  std::vector<double> x64 = x.AsDouble(), weight64 = weight.AsDouble();
  auto total_loss = [&] {
    const Reference r =
        ReferenceLoss(M, D, vocab_size, x64, weight64, labels, 1);
    return std::accumulate(r.loss.begin(), r.loss.end(), 0.0);
  };
  TestContext test;
  OwnedTensor<float, 1> loss({M});
  OwnedTensor<float, 2> dx({M, D}), dweight({vocab_size, D});
  LinearCrossEntropy(test.ctx(), {.x = x,
                                  .weight = weight,
                                  .labels = labels,
                                  .loss = loss,
                                  .dx = dx,
                                  .dweight = dweight});
  EXPECT_TRUE(RelativeRmsAtMost(
      kLimit, dx.values(),
      FiniteDifferenceGradient(absl::MakeSpan(x64), 1e-5, total_loss)));
  EXPECT_TRUE(RelativeRmsAtMost(
      kLimit, dweight.values(),
      FiniteDifferenceGradient(absl::MakeSpan(weight64), 1e-5, total_loss)));
}

// Evaluation and training must report the same loss.
TEST(LinearCrossEntropy, LossHasTheSameBitsWithoutGradients) {
  const auto x = RandomNormal<2>({700, 9}, 1);
  const auto weight = RandomNormal<2>({33, 9}, 2);
  const auto labels = Labels(700, 33);
  auto with = PoisonedTensor<1>({700}), without = PoisonedTensor<1>({700});
  OwnedTensor<float, 2> dx({700, 9}), dweight({33, 9});
  TestContext test;
  LinearCrossEntropyArgs args = {
      .x = x, .weight = weight, .labels = labels, .loss = without};
  LinearCrossEntropy(test.ctx(), args);
  args.loss = with, args.dx = dx, args.dweight = dweight;
  LinearCrossEntropy(test.ctx(), args);
  EXPECT_EQ(with, without);
}

TEST(LinearCrossEntropy, AccumulatesTheWeightGradientOnly) {
  const auto x = RandomNormal<2>({3, 4}, 1);
  const auto weight = RandomNormal<2>({6, 4}, 2);
  const auto labels = Labels(3, 6);
  OwnedTensor<float, 1> loss({3});
  OwnedTensor<float, 2> dx({3, 4}), dweight({6, 4});
  TestContext test;
  const LinearCrossEntropyArgs args = {.x = x,
                                       .weight = weight,
                                       .labels = labels,
                                       .loss = loss,
                                       .dx = dx,
                                       .dweight = dweight};
  LinearCrossEntropy(test.ctx(), args);
  const auto first_dx = dx, first_dweight = dweight;
  LinearCrossEntropy(test.ctx(), args);
  EXPECT_EQ(dx, first_dx);
  for (size_t i = 0; i < dweight.size(); ++i) {
    EXPECT_NEAR(dweight[i], 2 * first_dweight[i], 1e-6);
  }
}

// Logits of +-1e30 and of 1000: softmax is 0 or 1, nothing overflows.
TEST(LinearCrossEntropy, IsSafeForExtremeLogits) {
  OwnedTensor<float, 2> x({3, 1}), weight({3, 1}), dx({3, 1}), dweight({3, 1});
  weight[0] = 1, weight[1] = -1;
  x[0] = 1e30f, x[1] = -1e30f, x[2] = 1000;
  OwnedTensor<int32_t, 1> labels({3});
  labels[1] = 1, labels[2] = 2;
  auto loss = PoisonedTensor<1>({3});
  TestContext test;
  LinearCrossEntropy(test.ctx(), {.x = x,
                                  .weight = weight,
                                  .labels = labels,
                                  .loss = loss,
                                  .dx = dx,
                                  .dweight = dweight});
  EXPECT_EQ(loss[0], 0);
  EXPECT_EQ(loss[1], 0);
  EXPECT_EQ(loss[2], 1000);
  EXPECT_EQ(dx[0], 0);
  EXPECT_EQ(dx[2], 1);  // softmax (1, 0, 0) - one-hot (0, 0, 1), times weight
  EXPECT_EQ(dweight[0], 1000);
}

TEST(LinearCrossEntropy, AllIgnoredGivesZeros) {
  const auto x = RandomNormal<2>({2, 3}, 1);
  const auto weight = RandomNormal<2>({4, 3}, 2);
  OwnedTensor<int32_t, 1> labels({2});
  labels[0] = labels[1] = kIgnoreLabel;
  auto loss = PoisonedTensor<1>({2});
  auto dx = PoisonedTensor<2>({2, 3});
  OwnedTensor<float, 2> dweight({4, 3});
  TestContext test;
  LinearCrossEntropy(test.ctx(), {.x = x,
                                  .weight = weight,
                                  .labels = labels,
                                  .loss = loss,
                                  .dx = dx,
                                  .dweight = dweight});
  EXPECT_EQ(loss.values(), std::vector<float>(2));
  EXPECT_EQ(dx.values(), std::vector<float>(6));
  EXPECT_EQ(dweight.values(), std::vector<float>(12));
}

TEST(LinearCrossEntropy, AllocatesNothingFromTheSecondCallOn) {
  constexpr int64_t vocab_size = 3001;  // more than the test's poisoned scratch
  const auto x = RandomNormal<2>({600, 2}, 1);
  const auto weight = RandomNormal<2>({vocab_size, 2}, 2);
  const auto labels = Labels(600, vocab_size);
  OwnedTensor<float, 1> loss({600});
  TestContext test;
  const LinearCrossEntropyArgs args = {
      .x = x, .weight = weight, .labels = labels, .loss = loss};
  LinearCrossEntropy(test.ctx(), args);
  const int64_t reserved = test.scratch().reserved_bytes();
  LinearCrossEntropy(test.ctx(), args);
  EXPECT_EQ(test.scratch().reserved_bytes(), reserved);
}

TEST(LinearCrossEntropy, DiesOnLabelsOutOfRange) {
  OwnedTensor<float, 2> x({2, 3}), weight({4, 3});
  OwnedTensor<float, 1> loss({2});
  OwnedTensor<int32_t, 1> labels({2});
  TestContext test;
  const LinearCrossEntropyArgs args = {
      .x = x, .weight = weight, .labels = labels, .loss = loss};
  labels[1] = 4;
  EXPECT_DEATH(LinearCrossEntropy(test.ctx(), args),
               "label 4 at 1, vocab_size 4");
  labels[1] = -1;
  EXPECT_DEATH(LinearCrossEntropy(test.ctx(), args), "label -1 at 1");
}

}  // namespace
}  // namespace gla
