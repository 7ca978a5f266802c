#include "kernels/base/vector_math.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace gla {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr double kSmallestNormal = std::numeric_limits<float>::min();

// Applies the eight-wide function `f` to every element of `x`.
template <typename Fn>
std::vector<float> Map(const std::vector<float>& x, Fn f) {
  std::vector<float> y(x.size(), kNan);
  ForEachVector(x.size(), [&](int64_t i, auto lanes) {
    lanes.Store(&y[i], f(lanes.Load(&x[i])));
  });
  return y;
}

float Exp(float x) { return Map({x}, Exp8)[0]; }

// Floats from `lo` to `hi`: evenly spaced, and with magnitudes from 1e-30 on.
std::vector<float> Sweep(float lo, float hi) {
  std::vector<float> x;
  constexpr int kSteps = 400003;
  for (int i = 0; i <= kSteps; ++i) {
    x.push_back(lo + (hi - lo) * (static_cast<double>(i) / kSteps));
  }
  for (double m = 1e-30; m < 100; m *= 1.001) {
    if (m <= hi) x.push_back(m);
    if (-m >= lo) x.push_back(-m);
  }
  return x;
}

// The largest relative error of f over x, where the exact value is a normal
// float.
template <typename Fn, typename Exact>
double WorstError(const std::vector<float>& x, Fn f, Exact exact) {
  const std::vector<float> y = Map(x, f);
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = exact(static_cast<double>(x[i]));
    if (std::abs(want) < kSmallestNormal) continue;
    const double error = std::abs(y[i] - want) / std::abs(want);
    EXPECT_FALSE(std::isnan(error)) << "at " << x[i];
    worst = std::max(worst, error);
  }
  testing::Test::RecordProperty("worst_relative_error", absl::StrCat(worst));
  return worst;
}

TEST(Exp8, IsAccurateOverTheWholeRange) {
  EXPECT_LT(WorstError(Sweep(-87.33654f, 88.722831f), Exp8,
                       [](double x) { return std::exp(x); }),
            1e-7);
}

TEST(Exp8, EndsOfTheRange) {
  EXPECT_EQ(Exp(0), 1);
  EXPECT_EQ(Exp(-kInf), 0);
  EXPECT_EQ(Exp(-1e30f), 0);
  EXPECT_EQ(Exp(-87.34f), 0);
  EXPECT_GE(Exp(-87.336540f), kSmallestNormal);
  EXPECT_LT(Exp(88.722831f), kInf);
  EXPECT_EQ(Exp(88.722839f), kInf);
  EXPECT_EQ(Exp(1e30f), kInf);
  EXPECT_EQ(Exp(kInf), kInf);
  EXPECT_TRUE(std::isnan(Exp(kNan)));
}

TEST(Exp8, NeverIsNanOrNegativeNearTheEnds) {
  for (const float end : {-87.336544f, 88.722832f}) {
    float x = end;
    for (int i = 0; i < 50; ++i) x = std::nextafter(x, -kInf);
    for (int i = 0; i < 100; ++i, x = std::nextafter(x, kInf)) {
      EXPECT_GE(Exp(x), 0) << x;
    }
  }
}

TEST(Expm1Negative8, IsAccurateOverTheWholeRange) {
  EXPECT_LT(WorstError(Sweep(-200, 0), Expm1Negative8,
                       [](double x) { return std::expm1(x); }),
            1e-7);
  const std::vector<float> ends = Map({-kInf, 0, kNan}, Expm1Negative8);
  EXPECT_EQ(ends[0], -1);
  EXPECT_EQ(ends[1], 0);
  EXPECT_TRUE(std::isnan(ends[2]));
}

TEST(Log1pUnit8, IsAccurateOverTheWholeRange) {
  EXPECT_LT(WorstError(Sweep(0, 1), Log1pUnit8,
                       [](double x) { return std::log1p(x); }),
            3e-7);
}

TEST(Sigmoid8, IsAccurateOverTheWholeRange) {
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  EXPECT_LT(WorstError(Sweep(-87.3f, 200), Sigmoid8, sigmoid), 2e-7);
  const std::vector<float> ends = Map({-kInf, 0, kInf, kNan}, Sigmoid8);
  EXPECT_EQ(ends[0], 0);
  EXPECT_EQ(ends[1], 0.5f);
  EXPECT_EQ(ends[2], 1);
  EXPECT_TRUE(std::isnan(ends[3]));
}

TEST(Silu8, IsAccurateOverTheWholeRange) {
  EXPECT_LT(WorstError(Sweep(-80, 200), Silu8,
                       [](double x) { return x / (1 + std::exp(-x)); }),
            2e-7);
  EXPECT_EQ(Map({-1e30f}, Silu8)[0], 0);
}

TEST(LogSigmoid8, IsAccurateOverTheWholeRange) {
  const auto log_sigmoid = [](double x) {
    return std::min(x, 0.0) - std::log1p(std::exp(-std::abs(x)));
  };
  EXPECT_LT(WorstError(Sweep(-1000, 87.3f), LogSigmoid8, log_sigmoid), 3e-7);
  const std::vector<float> ends = Map({-kInf, kInf, kNan}, LogSigmoid8);
  EXPECT_EQ(ends[0], -kInf);
  EXPECT_EQ(ends[1], 0);
  EXPECT_TRUE(std::isnan(ends[2]));
}

TEST(Sum8, AddsAllLanes) {
  const __m256 x = _mm256_setr_ps(1, 2, 4, 8, 16, 32, 64, 128);
  EXPECT_EQ(Sum8(x), 255);
}

TEST(Max8, FindsEveryLane) {
  for (int lane = 0; lane < kLanes; ++lane) {
    float x[kLanes] = {-9, -8, -7, -6, -5, -4, -3, -2};
    x[lane] = -1;
    EXPECT_EQ(Max8(_mm256_loadu_ps(x)), -1) << lane;
  }
}

TEST(ForEachVector, TouchesExactlyNElementsWithTheSameBitsEverywhere) {
  std::vector<float> x(64);
  for (int i = 0; i < 64; ++i) x[i] = 0.37f * i - 9;
  const std::vector<float> whole = Map(x, Silu8);
  for (int n = 0; n <= 40; ++n) {
    std::vector<float> y(n + 8, 7.0f);
    ForEachVector(n, [&](int64_t i, auto lanes) {
      lanes.Store(y.data() + i, Silu8(lanes.Load(x.data() + i)));
    });
    for (int i = 0; i < n; ++i) ASSERT_EQ(y[i], whole[i]) << n << " " << i;
    for (int i = n; i < n + 8; ++i) ASSERT_EQ(y[i], 7.0f) << n << " " << i;
  }
}

}  // namespace
}  // namespace gla
