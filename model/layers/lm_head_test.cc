#include "model/layers/lm_head.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/loss/linear_cross_entropy.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/relative_rms.h"
#include "kernels/testing/test_context.h"
#include "model/testing/tiny_model.h"

namespace gla {
namespace {

constexpr int64_t kM = 5;

class LmHeadTest : public testing::TestWithParam<bool> {
 protected:
  LmHeadTest() {
    GlaConfig config = TinyConfig();
    config.tie_word_embeddings = GetParam();
    model_ = MakeTinyModel(/*seed=*/1, config);
  }

  TestContext test_;
  LoadedModel model_;
};

TEST_P(LmHeadTest, LossIsThatOfTheLogits) {
  const LmHead head(model_.config, *model_.parameters);
  const int64_t vocab_size = model_.config.vocab_size;
  const auto x = RandomNormal<2>({kM, model_.config.hidden_size}, /*seed=*/1);
  auto logits = PoisonedTensor<2>({kM, vocab_size});
  auto delta = x;
  head.Logits(test_.ctx(), Pass::Form::kStep, {{}, delta}, logits);

  OwnedTensor<int32_t, 1> labels({kM});
  std::vector<double> want(kM);
  for (int64_t m = 0; m < kM; ++m) {
    labels[m] = static_cast<int32_t>(37 * m % vocab_size);
    double sum = 0;
    for (int64_t i = 0; i < vocab_size; ++i) {
      sum += std::exp(double{logits[m * vocab_size + i]});
    }
    want[m] = std::log(sum) - logits[m * vocab_size + labels[m]];
  }
  labels[2] = kIgnoreLabel;
  want[2] = 0;

  delta = x;
  auto loss = PoisonedTensor<1>({kM});
  LmHead::LossArgs args;
  args.x = {{}, delta};
  args.labels = labels;
  args.loss = loss;
  head.Loss(test_.ctx(), args);
  EXPECT_TRUE(RelativeRmsAtMost(1e-5, loss.values(), want));
}

INSTANTIATE_TEST_SUITE_P(Tied, LmHeadTest, testing::Bool());

}  // namespace
}  // namespace gla
