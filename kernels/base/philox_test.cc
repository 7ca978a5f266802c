#include "kernels/base/philox.h"

#include <array>
#include <cmath>

#include "gtest/gtest.h"

namespace gla {
namespace {

using Words = std::array<uint32_t, 4>;

// The known answers that the authors publish with Random123 (philox4x32, 10
// rounds). The counter is index (low, high), then stream; the key is the seed.
TEST(Philox, GivesThePublishedAnswers) {
  EXPECT_EQ(Philox(0, 0, 0),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox(~0ull, ~0ull, ~0ull),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox(/*seed=*/0x299f31d0a4093822, /*stream=*/0x0370734413198a2e,
                   /*index=*/0x85a308d3243f6a88),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(PhiloxUniform, LiesInTheUnitIntervalWithTheRightMoments) {
  constexpr int kSamples = 100000;
  double sum = 0, sum_of_squares = 0;
  for (int i = 0; i < kSamples; ++i) {
    const float u = PhiloxUniform(/*seed=*/1, /*stream=*/2, i);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    sum += u;
    sum_of_squares += u * u;
  }
  EXPECT_NEAR(sum / kSamples, 1.0 / 2, 0.004);  // over four sigma
  EXPECT_NEAR(sum_of_squares / kSamples, 1.0 / 3, 0.004);
}

TEST(PhiloxNormal, HasTheMomentsOfAStandardNormal) {
  constexpr int kSamples = 100000;
  double moment[5] = {};
  for (int i = 0; i < kSamples; ++i) {
    const double x = PhiloxNormal(/*seed=*/3, /*stream=*/0, i);
    ASSERT_TRUE(std::isfinite(x));
    for (int p = 1; p <= 4; ++p) moment[p] += std::pow(x, p) / kSamples;
  }
  EXPECT_NEAR(moment[1], 0, 0.015);
  EXPECT_NEAR(moment[2], 1, 0.02);
  EXPECT_NEAR(moment[3], 0, 0.06);
  EXPECT_NEAR(moment[4], 3, 0.15);
}

TEST(PhiloxNormal, DiffersBetweenSeedsStreamsAndIndices) {
  const float x = PhiloxNormal(1, 1, 1);
  EXPECT_NE(x, PhiloxNormal(2, 1, 1));
  EXPECT_NE(x, PhiloxNormal(1, 2, 1));
  EXPECT_NE(x, PhiloxNormal(1, 1, 2));
}

}  // namespace
}  // namespace gla
