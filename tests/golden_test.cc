// Our models against fla's: goldens/README.md says what the expected values
// are and how they were made.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kernels/loss/linear_cross_entropy.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/relative_rms.h"
#include "kernels/testing/test_context.h"
#include "model/checkpoint/model_directory.h"
#include "model/checkpoint/safetensors.h"
#include "model/decode_states.h"
#include "model/gla_model.h"
#include "model/parameters.h"

namespace gla {
namespace {

constexpr double kLimit = 1e-4;
constexpr int64_t kSteps = 16;

class Golden : public testing::TestWithParam<const char*> {
 protected:
  Golden() {
    const std::string directory = absl::StrCat("tests/goldens/", GetParam());
    loaded_ = std::move(LoadModelDirectory(directory).value());
    expected_ = std::move(
        SafetensorsReader::Open(directory + "/expected.safetensors").value());
    const auto* tokens = expected_->Find("tokens").value();
    B_ = tokens->shape[0];
    T_ = tokens->shape[1];
    tokens_ = Ids("tokens");
    model_ =
        std::make_unique<GlaModel>(loaded_.config, loaded_.parameters.get());
  }
  ~Golden() override {
    std::printf("%s: worst relative rms %.2g (%s)\n", GetParam(), worst_,
                worst_name_.c_str());
  }

  std::vector<int32_t> Ids(const std::string& name) const {
    const auto* tensor = expected_->Find(name).value();
    std::vector<int32_t> ids(tensor->num_elements());
    std::memcpy(ids.data(), tensor->data, tensor->size_bytes);
    return ids;
  }

  void ExpectEqualsGolden(const std::string& name, const float* x) {
    const auto* tensor = expected_->Find(name).value();
    std::vector<float> values(tensor->num_elements());
    ASSERT_TRUE(ReadAsFloat(*tensor, absl::MakeSpan(values)).ok());
    const absl::Span<const float> got(x, values.size());
    const std::vector<double> want(values.begin(), values.end());
    EXPECT_TRUE(RelativeRmsAtMost(kLimit, got, want)) << name;
    const double error = RelativeRms(got, want);
    if (error > worst_) {
      worst_ = error;
      worst_name_ = name;
    }
  }

  TensorView<const int32_t, 2> tokens() const {
    return {tokens_.data(), {B_, T_}};
  }
  int64_t vocab_size() const { return loaded_.config.vocab_size; }

  TestContext test_;
  LoadedModel loaded_;
  std::unique_ptr<SafetensorsReader> expected_;
  std::unique_ptr<GlaModel> model_;
  int64_t B_ = 0, T_ = 0;
  std::vector<int32_t> tokens_;
  double worst_ = 0;
  std::string worst_name_;
};

TEST_P(Golden, LogitsAndStates) {
  DecodeStates states(loaded_.config, static_cast<int>(B_));
  auto logits = PoisonedTensor<3>({B_, T_, vocab_size()});
  model_->Forward(test_.ctx(), tokens(), &states, logits);
  ExpectEqualsGolden("logits", logits.data());
  for (int layer = 0; layer < loaded_.config.num_hidden_layers; ++layer) {
    ExpectEqualsGolden(absl::StrCat("state.", layer),
                       states.layer(layer).data());
  }
}

TEST_P(Golden, LossAndGradients) {
  const int64_t predictions = B_ * (T_ - 1);
  OwnedTensor<int32_t, 2> labels({B_, T_});
  for (int64_t i = 0; i < B_ * T_; ++i) {
    labels[i] = (i + 1) % T_ == 0 ? kIgnoreLabel : tokens_[i + 1];
  }
  auto loss = PoisonedTensor<2>({B_, T_});
  Parameters gradients(loaded_.table.get());
  GlaModel::LossArgs args;
  args.tokens = tokens();
  args.labels = labels;
  args.grad_scale = 1.0f / static_cast<float>(predictions);
  args.gradients = &gradients;
  args.loss = loss;
  model_->Loss(test_.ctx(), args);
  const float mean = static_cast<float>(
      std::accumulate(loss.values().begin(), loss.values().end(), 0.0) /
      static_cast<double>(predictions));
  ExpectEqualsGolden("loss", &mean);
  for (const ParameterSpec& spec : loaded_.table->specs()) {
    ExpectEqualsGolden("grad." + spec.name, gradients.data(spec));
  }
}

// Prefill, then one token at a time, all sequences together.
TEST_P(Golden, GreedyContinuation) {
  DecodeStates states(loaded_.config, static_cast<int>(B_));
  std::vector<int32_t> slots(B_);
  std::iota(slots.begin(), slots.end(), 0);
  auto logits = PoisonedTensor<2>({B_, vocab_size()});
  for (int64_t b = 0; b < B_; ++b) {
    model_->Prefill(test_.ctx(), absl::MakeSpan(&tokens_[b * T_], T_),
                    static_cast<int>(b), &states, logits.view()[b]);
  }
  OwnedTensor<int32_t, 2> generated({B_, kSteps});
  auto step_logits = PoisonedTensor<3>({B_, kSteps, vocab_size()});
  for (int64_t n = 0; n < kSteps; ++n) {
    std::vector<int32_t> next(B_);
    for (int64_t b = 0; b < B_; ++b) {
      const float* row = logits.data() + b * vocab_size();
      next[b] =
          static_cast<int32_t>(std::max_element(row, row + vocab_size()) - row);
      generated[b * kSteps + n] = next[b];
    }
    model_->DecodeStep(test_.ctx(), next, slots, &states, logits);
    for (int64_t b = 0; b < B_; ++b) {
      std::copy_n(logits.data() + b * vocab_size(), vocab_size(),
                  step_logits.data() + (b * kSteps + n) * vocab_size());
    }
  }
  EXPECT_EQ(generated.values(), Ids("generated"));
  ExpectEqualsGolden("step_logits", step_logits.data());
}

INSTANTIATE_TEST_SUITE_P(Models, Golden,
                         testing::Values("tiny", "tied_old_layout"),
                         [](const auto& info) {
                           return std::string(info.param);
                         });

}  // namespace
}  // namespace gla
