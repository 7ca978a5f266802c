#include "model/layers/residual_norm.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/relative_rms.h"
#include "kernels/testing/test_context.h"
#include "model/testing/tiny_model.h"

namespace gla {
namespace {

constexpr int64_t kM = 6;
constexpr char kName[] = "model.norm.weight";

class ResidualNormTest : public testing::Test {
 protected:
  // RMSNorm of a + b, in float64.
  std::vector<double> Reference(const std::vector<double>& sum) {
    std::vector<double> y(sum.size());
    for (int64_t m = 0; m < kM; ++m) {
      double squares = 0;
      for (int64_t i = 0; i < D_; ++i) squares += std::pow(sum[m * D_ + i], 2);
      const double rstd = 1 / std::sqrt(squares / D_ + kEps);
      for (int64_t i = 0; i < D_; ++i) {
        y[m * D_ + i] = sum[m * D_ + i] * rstd * weight_[i];
      }
    }
    return y;
  }

  static constexpr float kEps = 1e-6f;
  TestContext test_;
  LoadedModel model_ = MakeTinyModel();
  const ResidualNorm norm_{*model_.parameters, kName, kEps};
  const TensorView<float, 1> weight_ = model_.parameters->vector(kName);
  const int64_t D_ = weight_.dim(0);
};

TEST_F(ResidualNormTest, LeavesTheSumWhereDeltaWas) {
  auto h = RandomNormal<2>({kM, D_}, /*seed=*/1);
  auto delta = RandomNormal<2>({kM, D_}, /*seed=*/2);
  std::vector<double> sum = h.AsDouble();
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += delta[i];
  const auto saved = norm_.Forward(test_.ctx(), {h, delta});
  EXPECT_EQ(saved.sum.data(), delta.data());
  EXPECT_TRUE(RelativeRmsAtMost(1e-6, delta.values(), sum));
  EXPECT_TRUE(
      RelativeRmsAtMost(1e-6, {saved.y.data(), sum.size()}, Reference(sum)));
}

TEST_F(ResidualNormTest, TakesAnEmptyStreamAsZero) {
  auto delta = RandomNormal<2>({kM, D_}, /*seed=*/2);
  const auto before = delta;
  const auto saved = norm_.Forward(test_.ctx(), {{}, delta});
  EXPECT_EQ(delta, before);
  EXPECT_TRUE(RelativeRmsAtMost(1e-6, {saved.y.data(), delta.size()},
                                Reference(delta.AsDouble())));
}

TEST_F(ResidualNormTest, AddsTheGradientFromPastTheNorm) {
  auto delta = RandomNormal<2>({kM, D_}, /*seed=*/2);
  const auto dy = RandomNormal<2>({kM, D_}, /*seed=*/3);
  const auto past = RandomNormal<2>({kM, D_}, /*seed=*/4);
  const auto saved = norm_.Forward(test_.ctx(), {{}, delta});
  Parameters gradients(model_.table.get());
  auto through = PoisonedTensor<2>({kM, D_});
  norm_.Backward(test_.ctx(), saved, {dy, {}, through}, &gradients);
  auto both = past;
  norm_.Backward(test_.ctx(), saved, {dy, both, both}, &gradients);
  std::vector<double> want = through.AsDouble();
  for (size_t i = 0; i < want.size(); ++i) want[i] += past[i];
  EXPECT_TRUE(RelativeRmsAtMost(1e-6, both.values(), want));
}

}  // namespace
}  // namespace gla
