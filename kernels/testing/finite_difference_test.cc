#include "kernels/testing/finite_difference.h"

#include <cmath>
#include <vector>

#include "absl/types/span.h"
#include "gtest/gtest.h"

namespace gla {
namespace {

TEST(FiniteDifferenceGradient, OfACubicIsNearTheDerivativeAndRestoresX) {
  std::vector<double> x = {0.5, -2};
  auto f = [&] { return x[0] * x[0] * x[0] + 4 * x[0] * x[1]; };
  const auto gradient = FiniteDifferenceGradient(absl::MakeSpan(x), 1e-5, f);
  EXPECT_NEAR(gradient[0], 3 * 0.25 - 8, 1e-8);
  EXPECT_NEAR(gradient[1], 2, 1e-8);
  EXPECT_EQ(x, (std::vector<double>{0.5, -2}));
}

TEST(DirectionalDerivative, SumsOverTheDirectionAndRestoresX) {
  std::vector<float> x = {1, 2};
  const std::vector<float> direction = {3, -1};
  auto f = [&] { return double{x[0]} * x[0] + 5.0 * x[1]; };
  EXPECT_NEAR(DirectionalDerivative<float>(absl::MakeSpan(x), direction,
                                           /*step=*/0.125, f),
              2 * 3 - 5, 1e-6);
  EXPECT_EQ(x, (std::vector<float>{1, 2}));
}

}  // namespace
}  // namespace gla
