#include "kernels/optimizer/grad_norm.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/test_context.h"

namespace gla {
namespace {

TEST(SumOfSquares, MatchesAPlainLoop) {
  TestContext test;
  for (int64_t n : {0, 1, 7, 8, 1000, 16384, 16385, 100003}) {
    const auto x = RandomNormal<1>({n}, 1);
    double want = 0;
    for (float value : x.values()) want += double{value} * value;
    EXPECT_NEAR(SumOfSquares(test.ctx(), x), want, 1e-12 * want) << n;
  }
}

TEST(SumOfSquares, DoesNotOverflowWhereFloat32Would) {
  TestContext test;
  OwnedTensor<float, 1> x({3});
  x[0] = x[2] = 1e30f;
  EXPECT_NEAR(SumOfSquares(test.ctx(), x), 2e60, 1e54);
}

TEST(SumOfSquares, HasTheSameBitsForAnyThreadCount) {
  const auto x = RandomNormal<1>({200003}, 1);
  TestContext test1(1), test2(2), test3(3);
  const double one = SumOfSquares(test1.ctx(), x);
  EXPECT_EQ(one, SumOfSquares(test2.ctx(), x));
  EXPECT_EQ(one, SumOfSquares(test3.ctx(), x));
}

TEST(SumOfSquares, ShowsNanAndInf) {
  TestContext test;
  auto x = RandomNormal<1>({50000}, 1);
  x[49999] = std::numeric_limits<float>::infinity();
  EXPECT_TRUE(std::isinf(SumOfSquares(test.ctx(), x)));
  x[3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(SumOfSquares(test.ctx(), x)));
}

TEST(SumOfSquares, AllocatesNothingFromTheSecondCallOn) {
  TestContext test;
  const auto x = RandomNormal<1>({100000}, 1);
  SumOfSquares(test.ctx(), x);
  const int64_t reserved = test.scratch().reserved_bytes();
  SumOfSquares(test.ctx(), x);
  EXPECT_EQ(test.scratch().reserved_bytes(), reserved);
}

TEST(ClipFactor, ScalesLargeNormsDownAndLeavesSmallOnes) {
  EXPECT_FLOAT_EQ(ClipFactor(/*norm=*/4, /*max_norm=*/1), 1 / 4.000001);
  EXPECT_EQ(ClipFactor(/*norm=*/0.5, /*max_norm=*/1), 1);
  EXPECT_EQ(ClipFactor(/*norm=*/0, /*max_norm=*/1), 1);
}

TEST(ClipFactor, IsOneWithoutALimitAndNanForANanNorm) {
  EXPECT_EQ(ClipFactor(/*norm=*/1e9, /*max_norm=*/0), 1);
  EXPECT_TRUE(std::isnan(ClipFactor(std::nan(""), /*max_norm=*/1)));
}

}  // namespace
}  // namespace gla
