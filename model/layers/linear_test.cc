#include "model/layers/linear.h"

#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/relative_rms.h"
#include "kernels/testing/test_context.h"
#include "model/testing/tiny_model.h"

namespace gla {
namespace {

constexpr int64_t kM = 5;
constexpr char kName[] = "model.layers.0.mlp.gate_proj.weight";

class LinearTest : public testing::Test {
 protected:
  TestContext test_;
  LoadedModel model_ = MakeTinyModel();
  const Linear linear_{*model_.parameters, kName};
  const TensorView<const float, 2> w_ = linear_.weight().value();
  const int64_t out_ = w_.dim(0), in_ = w_.dim(1);
};

TEST_F(LinearTest, BothFormsMultiplyByTheTransposedWeight) {
  const auto x = RandomNormal<2>({kM, in_}, /*seed=*/1);
  std::vector<double> want(kM * out_);
  for (int64_t m = 0; m < kM; ++m) {
    for (int64_t i = 0; i < out_; ++i) {
      for (int64_t j = 0; j < in_; ++j) {
        want[m * out_ + i] += double{x[m * in_ + j]} * w_[i][j];
      }
    }
  }
  for (Pass::Form form : {Pass::Form::kChunk, Pass::Form::kStep}) {
    const auto y = linear_.Forward(test_.ctx(), form, x);
    EXPECT_TRUE(RelativeRmsAtMost(
        1e-6, {y.data(), static_cast<size_t>(y.size())}, want));
  }
}

TEST_F(LinearTest, WeightGradientAccumulatesInItsOwnPlace) {
  const auto x = RandomNormal<2>({kM, in_}, /*seed=*/1);
  const auto dy = RandomNormal<2>({kM, out_}, /*seed=*/2);
  Parameters gradients(model_.table.get());
  linear_.BackwardWeight(test_.ctx(), x, dy, &gradients);
  linear_.BackwardWeight(test_.ctx(), x, dy, &gradients);
  std::vector<double> want(out_ * in_);
  for (int64_t m = 0; m < kM; ++m) {
    for (int64_t i = 0; i < out_ * in_; ++i) {
      want[i] += 2.0 * dy[m * out_ + i / in_] * x[m * in_ + i % in_];
    }
  }
  const auto got = gradients.matrix(kName);
  EXPECT_TRUE(RelativeRmsAtMost(1e-6, {got.data(), want.size()}, want));
  double elsewhere = 0;
  for (const ParameterSpec& spec : model_.table->specs()) {
    if (spec.name == kName) continue;
    for (int64_t i = 0; i < spec.size; ++i) {
      elsewhere += std::abs(gradients.data(spec)[i]);
    }
  }
  EXPECT_EQ(elsewhere, 0);
}

}  // namespace
}  // namespace gla
