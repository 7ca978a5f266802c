#include "kernels/sampling/sample_token.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/philox.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/test_context.h"

namespace gla {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

int32_t Sample(std::vector<float> logits, const SamplingOptions& options,
               int64_t position = 0) {
  TestContext test(1);
  const int64_t vocab_size = logits.size();
  return SampleToken(test.ctx(), {logits.data(), {vocab_size}}, options,
                     position);
}

// How often each token is drawn at positions 0, 1, ..., draws - 1.
std::vector<int> Histogram(const std::vector<float>& logits,
                           const SamplingOptions& options, int draws) {
  TestContext test(1);
  std::vector<int> counts(logits.size());
  for (int i = 0; i < draws; ++i) {
    const int64_t vocab_size = logits.size();
    ++counts[SampleToken(test.ctx(), {logits.data(), {vocab_size}}, options,
                         i)];
  }
  return counts;
}

std::set<int> Drawn(const std::vector<float>& logits,
                    const SamplingOptions& options) {
  const std::vector<int> counts = Histogram(logits, options, 500);
  std::set<int> drawn;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] > 0) drawn.insert(i);
  }
  return drawn;
}

// The contract in float64 with a full sort: the probability of every token.
std::vector<double> ReferenceProbabilities(const std::vector<float>& logits,
                                           const SamplingOptions& options,
                                           std::vector<int>* order) {
  std::vector<int> ids;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!std::isnan(logits[i])) ids.push_back(i);
  }
  std::stable_sort(ids.begin(), ids.end(),
                   [&](int a, int b) { return logits[a] > logits[b]; });
  if (options.top_k > 0 && options.top_k < std::ssize(ids)) {
    ids.resize(options.top_k);
  }
  std::vector<double> weights;
  for (int id : ids) {
    weights.push_back(
        std::exp((double{logits[id]} - logits[ids[0]]) / options.temperature));
  }
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  size_t keep = 1;
  for (double mass = weights[0];
       keep < ids.size() && mass < options.top_p * total; ++keep) {
    mass += weights[keep];
  }
  const double kept =
      std::accumulate(weights.begin(), weights.begin() + keep, 0.0);
  std::vector<double> p(logits.size());
  for (size_t i = 0; i < keep; ++i) p[ids[i]] = weights[i] / kept;
  ids.resize(keep);
  *order = ids;
  return p;
}

TEST(SampleToken, GreedyTakesTheFirstOfTheLargest) {
  EXPECT_EQ(Sample({1, 3, 2, 3}, {}), 1);
  EXPECT_EQ(Sample({-kInf, -5, -kInf}, {}), 1);
  EXPECT_EQ(Sample({kNan, -7, kNan, -8}, {}), 1);
  EXPECT_EQ(Sample({4}, {}), 0);
  EXPECT_EQ(Sample({-kInf, -kInf}, {}), 0);
}

TEST(SampleToken, IsTheInverseOfTheCumulativeDistribution) {
  constexpr int64_t kVocabSize = 101;
  const auto logits = RandomNormal<1>({kVocabSize}, 1, /*scale=*/2).values();
  const SamplingOptions cases[] = {
      {.temperature = 1},
      {.temperature = 0.7f, .top_k = 10},
      {.temperature = 1.5f, .top_p = 0.8f},
      {.temperature = 1, .top_k = 50, .top_p = 0.9f, .seed = 99}};
  for (const SamplingOptions& options : cases) {
    std::vector<int> order;
    const auto p = ReferenceProbabilities(logits, options, &order);
    for (int position = 0; position < 300; ++position) {
      const double u = PhiloxUniform(options.seed, 0, position);
      double cumulative = 0;
      int want = order.back();
      for (int id : order) {
        cumulative += p[id];
        if (cumulative > u) {
          want = id;
          break;
        }
      }
      ASSERT_EQ(Sample(logits, options, position), want) << position;
    }
  }
}

// Chi-square of 100000 draws against the exact probabilities; with 19 degrees
// of freedom it exceeds 43.8 once in a thousand seeds.
TEST(SampleToken, DrawsFollowTheSoftmax) {
  const auto logits = RandomNormal<1>({20}, 1).values();
  const SamplingOptions options = {.temperature = 1.3f, .seed = 7};
  std::vector<int> order;
  const auto p = ReferenceProbabilities(logits, options, &order);
  constexpr int kDraws = 100000;
  const std::vector<int> counts = Histogram(logits, options, kDraws);
  double chi_square = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    chi_square += std::pow(counts[i] - kDraws * p[i], 2) / (kDraws * p[i]);
  }
  EXPECT_LT(chi_square, 43.8);
}

TEST(SampleToken, TopKKeepsTheLikeliestAndTiesGoToLowerIds) {
  EXPECT_EQ(Drawn({1, 2, 1, 1.5f}, {.temperature = 1, .top_k = 1}),
            (std::set<int>{1}));
  EXPECT_EQ(Drawn({1, 2, 1, 1}, {.temperature = 1, .top_k = 2}),
            (std::set<int>{0, 1}));
  EXPECT_EQ(Drawn({1, 1, 1}, {.temperature = 1, .top_k = 99}),
            (std::set<int>{0, 1, 2}));
}

TEST(SampleToken, TopPKeepsTheSmallestSetWithThatMass) {
  const std::vector<float> quarters = {0, 0, 0, 0};
  auto drawn = [&](float top_p) {
    return Drawn(quarters, {.temperature = 1, .top_p = top_p}).size();
  };
  EXPECT_EQ(drawn(0.0f), 1u);
  EXPECT_EQ(drawn(1e-9f), 1u);
  EXPECT_EQ(drawn(0.25f), 1u);
  EXPECT_EQ(drawn(0.26f), 2u);
  EXPECT_EQ(drawn(0.5f), 2u);
  EXPECT_EQ(drawn(0.99f), 4u);
  EXPECT_EQ(drawn(1.0f), 4u);
}

TEST(SampleToken, TopPCountsMassAfterTopK) {
  // Two of four equal tokens remain, with half the mass each.
  EXPECT_EQ(Drawn({0, 0, 0, 0}, {.temperature = 1, .top_k = 2, .top_p = 0.5f}),
            (std::set<int>{0}));
}

TEST(SampleToken, NeverDrawsNanOrImpossibleTokens) {
  EXPECT_EQ(Drawn({kNan, 0, -kInf, 0, kNan}, {.temperature = 1}),
            (std::set<int>{1, 3}));
  EXPECT_EQ(Drawn({0, kInf, kNan, kInf}, {.temperature = 1}),
            (std::set<int>{1, 3}));
  EXPECT_EQ(Drawn({-kInf, kNan, -kInf}, {.temperature = 1}),
            (std::set<int>{0, 2}));
}

TEST(SampleToken, ExtremeTemperaturesAreGreedyOrUniform) {
  EXPECT_EQ(Drawn({1, 2, 2, 0}, {.temperature = 1e-40f}),
            (std::set<int>{1, 2}));
  EXPECT_EQ(Drawn({1e30f, -1e30f}, {.temperature = 1e-30f}),
            (std::set<int>{0}));
  EXPECT_EQ(Drawn({100, -100, 0}, {.temperature = 1e30f}),
            (std::set<int>{0, 1, 2}));
}

TEST(SampleToken, RepeatsForTheSameSeedAndPosition) {
  const auto logits = RandomNormal<1>({1000}, 1).values();
  const SamplingOptions options = {.temperature = 1, .seed = 5};
  std::set<int> tokens, other_seed;
  for (int position = 0; position < 50; ++position) {
    const int token = Sample(logits, options, position);
    EXPECT_EQ(token, Sample(logits, options, position));
    tokens.insert(token);
    other_seed.insert(Sample(logits, {.temperature = 1, .seed = 6}, position));
  }
  EXPECT_GT(tokens.size(), 20u);
  EXPECT_NE(tokens, other_seed);
}

TEST(SampleToken, AllocatesNothingFromTheSecondCallOn) {
  TestContext test(1);
  const auto logits = RandomNormal<1>({200000}, 1);
  SampleToken(test.ctx(), logits, {.temperature = 1}, 0);
  const int64_t reserved = test.scratch().reserved_bytes();
  SampleToken(test.ctx(), logits, {.temperature = 1}, 1);
  EXPECT_EQ(test.scratch().reserved_bytes(), reserved);
}

TEST(SampleToken, DiesWhenNoLogitIsANumber) {
  EXPECT_DEATH(Sample({kNan, kNan}, {}), "none of 2 logits is a number");
}

}  // namespace
}  // namespace gla
