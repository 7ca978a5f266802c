#include "model/gla_model.h"

#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/philox.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/test_context.h"
#include "model/testing/tiny_model.h"

namespace gla {
namespace {

class GlaModelTest : public testing::Test {
 protected:
  OwnedTensor<int32_t, 2> RandomTokens(int64_t B, int64_t T) const {
    OwnedTensor<int32_t, 2> tokens({B, T});
    for (int64_t i = 0; i < B * T; ++i) {
      tokens[i] = Philox(/*seed=*/2, 0, i)[0] % vocab_size_;
    }
    return tokens;
  }
  OwnedTensor<float, 3> Logits(const OwnedTensor<int32_t, 2>& tokens) {
    auto logits =
        PoisonedTensor<3>({tokens.dim(0), tokens.dim(1), vocab_size_});
    model_.Forward(test_.ctx(), tokens, nullptr, logits);
    return logits;
  }
  void Loss(const OwnedTensor<int32_t, 2>& tokens, Parameters* gradients) {
    OwnedTensor<float, 2> loss(tokens.shape());
    GlaModel::LossArgs args;
    args.tokens = tokens;
    args.labels = tokens;
    args.gradients = gradients;
    args.loss = loss;
    model_.Loss(test_.ctx(), args);
  }

  TestContext test_;
  LoadedModel loaded_ = MakeTinyModel();
  const GlaModel model_{loaded_.config, loaded_.parameters.get()};
  const int64_t vocab_size_ = loaded_.config.vocab_size;
};

TEST_F(GlaModelTest, ATokenChangesNothingBeforeItAndNoOtherSequence) {
  constexpr int64_t kB = 2, kT = 70, kPlace = 40;
  OwnedTensor<int32_t, 2> tokens = RandomTokens(kB, kT);
  const OwnedTensor<float, 3> before = Logits(tokens);
  tokens[kPlace] = (tokens[kPlace] + 1) % vocab_size_;
  const OwnedTensor<float, 3> after = Logits(tokens);
  for (int64_t row = 0; row < kB * kT; ++row) {
    bool same = true;
    for (int64_t i = row * vocab_size_; i < (row + 1) * vocab_size_; ++i) {
      same = same && before[i] == after[i];
    }
    EXPECT_EQ(same, row < kPlace || row >= kT) << "row " << row;
  }
}

TEST_F(GlaModelTest, EveryCallGivesItsScratchBack) {
  const OwnedTensor<int32_t, 2> tokens = RandomTokens(2, 65);
  Parameters gradients(loaded_.table.get());
  const Arena::Mark before = test_.scratch().mark();
  Logits(tokens);
  Loss(tokens, &gradients);
  EXPECT_EQ(test_.scratch().mark().block, before.block);
  EXPECT_EQ(test_.scratch().mark().offset, before.offset);
}

TEST_F(GlaModelTest, RepeatedCallsAllocateNothing) {
  const OwnedTensor<int32_t, 2> tokens = RandomTokens(2, 65);
  Parameters gradients(loaded_.table.get());
  DecodeStates states(loaded_.config, 2);
  const std::vector<int32_t> step = {1, 2}, slots = {0, 1};
  auto logits = PoisonedTensor<2>({2, vocab_size_});
  int64_t reserved = 0;
  for (int call = 0; call < 3; ++call) {
    Loss(tokens, &gradients);
    model_.DecodeStep(test_.ctx(), step, slots, &states, logits);
    if (call == 0) reserved = test_.scratch().reserved_bytes();
  }
  EXPECT_EQ(test_.scratch().reserved_bytes(), reserved);
}

TEST_F(GlaModelTest, GradientsDoNotChangeTheLoss) {
  const OwnedTensor<int32_t, 2> tokens = RandomTokens(2, 65);
  Parameters gradients(loaded_.table.get());
  auto with = PoisonedTensor<2>(tokens.shape());
  auto without = PoisonedTensor<2>(tokens.shape());
  GlaModel::LossArgs args;
  args.tokens = tokens;
  args.labels = tokens;
  args.loss = without;
  model_.Loss(test_.ctx(), args);
  args.loss = with;
  args.gradients = &gradients;
  model_.Loss(test_.ctx(), args);
  EXPECT_EQ(with, without);
}

TEST_F(GlaModelTest, RefusesTokensOutsideTheVocabulary) {
  OwnedTensor<int32_t, 2> tokens = RandomTokens(1, 3);
  tokens[1] = static_cast<int32_t>(vocab_size_);
  EXPECT_DEATH(Logits(tokens), "");
}

TEST_F(GlaModelTest, RefusesStatesOfAnotherModel) {
  GlaConfig other = loaded_.config;
  other.num_heads = 4;
  DecodeStates states(other, 1);
  auto logits = PoisonedTensor<1>({vocab_size_});
  const std::vector<int32_t> prompt = {1, 2, 3};
  EXPECT_DEATH(model_.Prefill(test_.ctx(), prompt, 0, &states, logits),
               "states of another model");
}

}  // namespace
}  // namespace gla
