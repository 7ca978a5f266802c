#include "kernels/gla/repeat_heads.h"

#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/relative_rms.h"
#include "kernels/testing/test_context.h"

namespace gla {
namespace {

using Tensor = OwnedTensor<float, 3>;

struct Size {
  int64_t M, num_kv_heads, groups, D;
};

const Size kSizes[] = {{1, 1, 1, 1},   {3, 1, 4, 3},    {5, 2, 3, 60},
                       {1, 4, 2, 100}, {300, 2, 2, 37}, {7, 3, 1, 128}};

TEST(RepeatHeadsFwd, CopiesEachHeadToItsGroup) {
  TestContext test;
  for (const auto& [M, num_kv_heads, groups, D] : kSizes) {
    const int64_t H = num_kv_heads * groups;
    const Tensor x = RandomNormal<3>({M, num_kv_heads, D}, 1);
    Tensor y = PoisonedTensor<3>({M, H, D});
    RepeatHeadsFwd(test.ctx(), x, y);
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t h = 0; h < H; ++h) {
        for (int64_t d = 0; d < D; ++d) {
          ASSERT_EQ(y[(m * H + h) * D + d],
                    x[(m * num_kv_heads + h / groups) * D + d]);
        }
      }
    }
  }
}

TEST(RepeatHeadsBwd, AddsUpTheHeadsOfEachGroup) {
  TestContext test;
  for (const auto& [M, num_kv_heads, groups, D] : kSizes) {
    const int64_t H = num_kv_heads * groups;
    const Tensor dy = RandomNormal<3>({M, H, D}, 1);
    Tensor dx = PoisonedTensor<3>({M, num_kv_heads, D});
    RepeatHeadsBwd(test.ctx(), dy, dx);
    std::vector<double> want(dx.size());
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t h = 0; h < H; ++h) {
        for (int64_t d = 0; d < D; ++d) {
          want[(m * num_kv_heads + h / groups) * D + d] +=
              dy[(m * H + h) * D + d];
        }
      }
    }
    EXPECT_TRUE(RelativeRmsAtMost(1e-6, dx.values(), want));
  }
}

// <dy, Fwd(x)> = <Bwd(dy), x>: the backward pass is the transpose.
TEST(RepeatHeadsBwd, IsTheTransposeOfTheForwardPass) {
  TestContext test;
  const Tensor x = RandomNormal<3>({5, 2, 9}, 1);
  const Tensor dy = RandomNormal<3>({5, 6, 9}, 2);
  Tensor y = PoisonedTensor<3>(dy.shape());
  Tensor dx = PoisonedTensor<3>(x.shape());
  RepeatHeadsFwd(test.ctx(), x, y);
  RepeatHeadsBwd(test.ctx(), dy, dx);
  double left = 0, right = 0;
  for (size_t i = 0; i < y.size(); ++i) left += double{dy[i]} * y[i];
  for (size_t i = 0; i < x.size(); ++i) right += double{dx[i]} * x[i];
  EXPECT_NEAR(left, right, 1e-5);
}

TEST(RepeatHeadsBwd, HasTheSameBitsForAnyThreadCount) {
  const Tensor dy = RandomNormal<3>({517, 6, 37}, 2);
  TestContext one(1);
  Tensor want = PoisonedTensor<3>({517, 2, 37});
  RepeatHeadsBwd(one.ctx(), dy, want);
  for (const int num_threads : {2, 3, 4}) {
    TestContext test(num_threads);
    Tensor dx = PoisonedTensor<3>(want.shape());
    RepeatHeadsBwd(test.ctx(), dy, dx);
    EXPECT_EQ(dx, want);
  }
}

TEST(RepeatHeadsDeathTest, RefusesHeadsThatDoNotDivide) {
  TestContext test;
  const Tensor x({2, 2, 4});
  Tensor y({2, 3, 4});
  EXPECT_DEATH(RepeatHeadsFwd(test.ctx(), x, y),
               "cannot share \\[2, 2, 4\\] among \\[2, 3, 4\\]");
}

}  // namespace
}  // namespace gla
