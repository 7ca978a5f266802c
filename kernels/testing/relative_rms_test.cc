#include "kernels/testing/relative_rms.h"

#include <cmath>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace gla {
namespace {

TEST(RelativeRms, DividesByTheRmsOfTheReference) {
  EXPECT_DOUBLE_EQ(RelativeRms({3, 5}, {3, 4}), 1.0 / 5.0);
}

TEST(RelativeRms, IsAbsoluteWhenTheReferenceIsZero) {
  EXPECT_DOUBLE_EQ(RelativeRms({2, 2}, {0, 0}), 2);
}

TEST(RelativeRmsAtMost, FailsOnNanOnSizeAndAboveTheLimit) {
  EXPECT_TRUE(RelativeRmsAtMost(0.2, {3, 5}, {3, 4}));
  EXPECT_FALSE(RelativeRmsAtMost(0.19, {3, 5}, {3, 4}));
  EXPECT_FALSE(RelativeRmsAtMost(1e9, {3, std::nanf("")}, {3, 4}));
  EXPECT_FALSE(RelativeRmsAtMost(1e9, {3}, {3, 4}));
}

TEST(RelativeRmsAtMost, NamesTheWorstElementAndPrefersNan) {
  EXPECT_THAT(RelativeRmsAtMost(0, {1, 9, 3}, {1, 2, 4}).message(),
              testing::HasSubstr("worst at 1 of 3: got 9, want 2"));
  EXPECT_THAT(
      RelativeRmsAtMost(0, {1, 9, std::nanf(""), 99}, {1, 2, 4, 1}).message(),
      testing::HasSubstr("worst at 2 of 4: got nan, want 4"));
}

}  // namespace
}  // namespace gla
