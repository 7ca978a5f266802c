#include "model/layers/swiglu_mlp.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/finite_difference.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/relative_rms.h"
#include "kernels/testing/test_context.h"
#include "model/testing/tiny_model.h"

namespace gla {
namespace {

constexpr int64_t kM = 3;
constexpr char kPrefix[] = "model.layers.1.mlp.";

// w x for one row x of `in` elements.
std::vector<double> Times(TensorView<const float, 2> w, const double* x) {
  std::vector<double> y(w.dim(0));
  for (int64_t i = 0; i < w.dim(0); ++i) {
    for (int64_t j = 0; j < w.dim(1); ++j) y[i] += double{w[i][j]} * x[j];
  }
  return y;
}

class SwigluMlpTest : public testing::Test {
 protected:
  std::vector<double> Reference(const std::vector<double>& x) const {
    std::vector<double> out;
    for (int64_t m = 0; m < kM; ++m) {
      std::vector<double> hidden = Times(gate_, &x[m * D_]);
      const std::vector<double> up = Times(up_, &x[m * D_]);
      for (size_t i = 0; i < hidden.size(); ++i) {
        hidden[i] *= up[i] / (1 + std::exp(-hidden[i]));
      }
      for (double y : Times(down_, hidden.data())) out.push_back(y);
    }
    return out;
  }

  TestContext test_;
  LoadedModel model_ = MakeTinyModel();
  const SwigluMlp mlp_{*model_.parameters, kPrefix};
  const TensorView<const float, 2> gate_ =
      model_.parameters->matrix(std::string(kPrefix) + "gate_proj.weight");
  const TensorView<const float, 2> up_ =
      model_.parameters->matrix(std::string(kPrefix) + "up_proj.weight");
  const TensorView<const float, 2> down_ =
      model_.parameters->matrix(std::string(kPrefix) + "down_proj.weight");
  const int64_t D_ = gate_.dim(1);
};

TEST_F(SwigluMlpTest, MatchesReferenceInBothForms) {
  const auto x = RandomNormal<2>({kM, D_}, /*seed=*/1);
  const std::vector<double> want = Reference(x.AsDouble());
  for (Pass::Form form : {Pass::Form::kChunk, Pass::Form::kStep}) {
    auto y = PoisonedTensor<2>({kM, D_});
    mlp_.Forward(test_.ctx(), form, x, y);
    EXPECT_TRUE(RelativeRmsAtMost(1e-6, y.values(), want));
  }
}

TEST_F(SwigluMlpTest, InputGradientMatchesFiniteDifferences) {
  const auto x = RandomNormal<2>({kM, D_}, /*seed=*/1);
  const auto dy = RandomNormal<2>({kM, D_}, /*seed=*/2);
  auto y = PoisonedTensor<2>({kM, D_});
  const auto saved = mlp_.Forward(test_.ctx(), Pass::Form::kChunk, x, y);
  Parameters gradients(model_.table.get());
  auto dx = PoisonedTensor<2>({kM, D_});
  mlp_.Backward(test_.ctx(), saved, dy, &gradients, dx);

  std::vector<double> at = x.AsDouble();
  const std::vector<double> want =
      FiniteDifferenceGradient(absl::MakeSpan(at), 1e-5, [&] {
        const std::vector<double> value = Reference(at);
        double objective = 0;
        for (size_t i = 0; i < value.size(); ++i) objective += value[i] * dy[i];
        return objective;
      });
  EXPECT_TRUE(RelativeRmsAtMost(1e-5, dx.values(), want));
}

}  // namespace
}  // namespace gla
