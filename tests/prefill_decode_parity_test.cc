// A sequence's logits and states do not depend on how its tokens are fed: all
// at once, in pieces, one by one, alone or among others.

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kernels/base/philox.h"
#include "kernels/gla/chunk_gla.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/relative_rms.h"
#include "kernels/testing/test_context.h"
#include "model/checkpoint/model_directory.h"
#include "model/decode_states.h"
#include "model/gla_model.h"
#include "model/testing/tiny_model.h"

namespace gla {
namespace {

constexpr int kPrompt = 150;  // two chunks and a part
constexpr double kLimit = 1e-4;

std::vector<double> AsDouble(absl::Span<const float> x) {
  return {x.begin(), x.end()};
}

absl::Span<const float> Values(TensorView<const float, 4> x) {
  return {x.data(), static_cast<size_t>(x.size())};
}

class PrefillDecodeParity : public testing::TestWithParam<ConfigVariant> {
 protected:
  PrefillDecodeParity()
      : model_(MakeTinyModel(/*seed=*/1, GetParam().config)),
        gla_(model_.config, model_.parameters.get()) {}

  std::vector<int32_t> RandomTokens(uint64_t seed, int n) const {
    std::vector<int32_t> tokens(n);
    for (int i = 0; i < n; ++i) {
      tokens[i] = Philox(seed, /*stream=*/0, i)[0] % model_.config.vocab_size;
    }
    return tokens;
  }

  // Logits after the last token; the sequence is in `slot`.
  std::vector<float> Prefill(absl::Span<const int32_t> tokens, int slot,
                             DecodeStates* states) {
    auto logits = PoisonedTensor<1>({vocab_size()});
    gla_.Prefill(test_.ctx(), tokens, slot, states, logits);
    return logits.values();
  }
  std::vector<float> Step(int32_t token, int32_t slot, DecodeStates* states) {
    auto logits = PoisonedTensor<2>({1, vocab_size()});
    gla_.DecodeStep(test_.ctx(), {&token, 1}, {&slot, 1}, states, logits);
    return logits.values();
  }

  void ExpectSameStates(int slot_a, DecodeStates* a, int slot_b,
                        DecodeStates* b) {
    for (int layer = 0; layer < model_.config.num_hidden_layers; ++layer) {
      EXPECT_TRUE(RelativeRmsAtMost(kLimit, Values(a->slot(layer, slot_a)),
                                    AsDouble(Values(b->slot(layer, slot_b)))))
          << "layer " << layer;
    }
  }

  int64_t vocab_size() const { return model_.config.vocab_size; }

  TestContext test_;
  LoadedModel model_;
  GlaModel gla_;
};

TEST_P(PrefillDecodeParity, PromptAtOnceEqualsTokenByToken) {
  const std::vector<int32_t> tokens = RandomTokens(/*seed=*/1, kPrompt);
  DecodeStates at_once(model_.config, 1), by_token(model_.config, 1);

  auto all_logits = PoisonedTensor<3>({1, kPrompt, vocab_size()});
  gla_.Forward(test_.ctx(), {tokens.data(), {1, kPrompt}}, &at_once,
               all_logits);
  std::vector<float> step_logits;
  for (int32_t token : tokens) {
    for (float x : Step(token, 0, &by_token)) step_logits.push_back(x);
  }
  EXPECT_TRUE(
      RelativeRmsAtMost(kLimit, all_logits.values(), AsDouble(step_logits)));
  ExpectSameStates(0, &at_once, 0, &by_token);

  DecodeStates prefilled(model_.config, 3);
  const std::vector<float> last = Prefill(tokens, 2, &prefilled);
  EXPECT_TRUE(RelativeRmsAtMost(
      kLimit, last, AsDouble(absl::MakeSpan(step_logits).last(vocab_size()))));
  ExpectSameStates(2, &prefilled, 0, &by_token);
}

TEST_P(PrefillDecodeParity, PiecesEqualTheWhole) {
  const std::vector<int32_t> tokens = RandomTokens(/*seed=*/2, kPrompt);
  DecodeStates whole(model_.config, 1);
  const std::vector<double> want = AsDouble(Prefill(tokens, 0, &whole));
  for (int piece : {1 * kGlaChunk, 2 * kGlaChunk, 50}) {
    DecodeStates pieces(model_.config, 1);
    std::vector<float> got;
    for (int begin = 0; begin < kPrompt; begin += piece) {
      got = Prefill(absl::MakeSpan(tokens).subspan(begin, piece), 0, &pieces);
    }
    EXPECT_TRUE(RelativeRmsAtMost(kLimit, got, want)) << piece;
    ExpectSameStates(0, &pieces, 0, &whole);
  }
}

// Bit for bit: alone in slot 0, or in any slot among 16.
TEST_P(PrefillDecodeParity, ADecodedRowIsTheSameAmongAnyOthers) {
  constexpr int kSequences = 16;
  const std::vector<int32_t> prompt = RandomTokens(/*seed=*/3, 9);
  const std::vector<int32_t> others = RandomTokens(/*seed=*/4, kSequences * 4);
  DecodeStates alone(model_.config, 1), crowd(model_.config, kSequences);
  std::vector<int32_t> slots(kSequences);
  for (int i = 0; i < kSequences; ++i) slots[i] = (i * 7 + 5) % kSequences;
  const int row = 11;
  Prefill(prompt, 0, &alone);
  Prefill(prompt, slots[row], &crowd);
  for (int n = 0; n < 4; ++n) {
    std::vector<int32_t> tokens(others.begin() + n * kSequences,
                                others.begin() + (n + 1) * kSequences);
    auto logits = PoisonedTensor<2>({kSequences, vocab_size()});
    gla_.DecodeStep(test_.ctx(), tokens, slots, &crowd, logits);
    const float* got = logits.data() + row * vocab_size();
    EXPECT_EQ(Step(tokens[row], 0, &alone),
              std::vector<float>(got, got + vocab_size()));
  }
  for (int layer = 0; layer < model_.config.num_hidden_layers; ++layer) {
    EXPECT_EQ(Values(alone.slot(layer, 0)),
              Values(crowd.slot(layer, slots[row])));
  }
}

TEST_P(PrefillDecodeParity, LossContinuesFromStates) {
  constexpr int kB = 3, kT = 70;
  const std::vector<int32_t> tokens = RandomTokens(/*seed=*/5, kB * 2 * kT);
  const std::vector<int32_t> labels = RandomTokens(/*seed=*/6, kB * 2 * kT);
  const auto loss_of = [&](int begin, int length, DecodeStates* states) {
    OwnedTensor<int32_t, 2> x({kB, length}), y({kB, length});
    for (int i = 0; i < kB * length; ++i) {
      const int place = i / length * 2 * kT + begin + i % length;
      x[i] = tokens[place];
      y[i] = labels[place];
    }
    auto loss = PoisonedTensor<2>({kB, length});
    GlaModel::LossArgs args;
    args.tokens = x;
    args.labels = y;
    args.states = states;
    args.loss = loss;
    gla_.Loss(test_.ctx(), args);
    return loss;
  };
  DecodeStates states(model_.config, kB + 1), end(model_.config, kB);
  const auto whole = loss_of(0, 2 * kT, &end);
  loss_of(0, kT, &states);
  const auto second = loss_of(kT, kT, &states);
  std::vector<double> want;
  for (int i = 0; i < kB * kT; ++i) {
    want.push_back(whole[i / kT * 2 * kT + kT + i % kT]);
  }
  EXPECT_TRUE(RelativeRmsAtMost(kLimit, second.values(), want));
  for (int b = 0; b < kB; ++b) ExpectSameStates(b, &states, b, &end);
}

INSTANTIATE_TEST_SUITE_P(Variants, PrefillDecodeParity,
                         testing::ValuesIn(TinyVariants()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace gla
