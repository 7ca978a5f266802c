// The gradient of the whole model's loss with respect to every tensor, against
// finite differences, for every variant of the config.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/philox.h"
#include "kernels/loss/linear_cross_entropy.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/relative_rms.h"
#include "kernels/testing/test_context.h"
#include "model/checkpoint/model_directory.h"
#include "model/decode_states.h"
#include "model/gla_model.h"
#include "model/parameters.h"
#include "model/testing/tiny_model.h"

namespace gla {
namespace {

constexpr int64_t kB = 2;
constexpr int64_t kT = 11;

class GradientCheck : public testing::TestWithParam<ConfigVariant> {
 protected:
  GradientCheck()
      : model_(MakeTinyModel(/*seed=*/3, GetParam().config)),
        gla_(model_.config, model_.parameters.get()) {
    for (int64_t i = 0; i < kB * kT; ++i) {
      const auto random = Philox(/*seed=*/7, /*stream=*/0, i);
      tokens_[i] = random[0] % model_.config.vocab_size;
      labels_[i] = random[1] % model_.config.vocab_size;
    }
    labels_[4] = kIgnoreLabel;
  }

  // Sum over all positions, from states that are the same every time.
  double Objective(Parameters* gradients) {
    DecodeStates states(model_.config, kB);
    for (int layer = 0; layer < model_.config.num_hidden_layers; ++layer) {
      const TensorView<float, 4> state = states.layer(layer);
      for (int64_t i = 0; i < state.size(); ++i) {
        state.data()[i] = PhiloxNormal(/*seed=*/8, layer, i);
      }
    }
    OwnedTensor<float, 2> loss = PoisonedTensor<2>({kB, kT});
    GlaModel::LossArgs args;
    args.tokens = tokens_;
    args.labels = labels_;
    args.gradients = gradients;
    args.states = &states;
    args.loss = loss;
    gla_.Loss(test_.ctx(), args);
    return std::accumulate(loss.values().begin(), loss.values().end(), 0.0);
  }

  // d objective / d x by a five-point difference.
  double Difference(float* x, float step) {
    const float saved = *x;
    const auto at = [&](float h) {
      *x = saved + h;
      return Objective(nullptr);
    };
    const double near = at(step) - at(-step);
    const double far = at(2 * step) - at(-2 * step);
    *x = saved;
    return (8 * near - far) / (12 * static_cast<double>(step));
  }

  // The elements where the gradient is largest, and some others.
  static std::vector<int64_t> Sample(const float* gradient, int64_t size) {
    std::vector<int64_t> order(size);
    std::iota(order.begin(), order.end(), 0);
    const int64_t n = std::min<int64_t>(size, 5);
    std::partial_sort(order.begin(), order.begin() + n, order.end(),
                      [&](int64_t a, int64_t b) {
                        return std::abs(gradient[a]) > std::abs(gradient[b]);
                      });
    order.resize(n);
    for (uint64_t i = 0; i < 3; ++i) {
      order.push_back(Philox(/*seed=*/9, /*stream=*/0, i)[0] % size);
    }
    return order;
  }

  TestContext test_{/*num_threads=*/1};  // thousands of tiny passes
  LoadedModel model_;
  GlaModel gla_;
  OwnedTensor<int32_t, 2> tokens_{{kB, kT}};
  OwnedTensor<int32_t, 2> labels_{{kB, kT}};
};

TEST_P(GradientCheck, AgreesWithFiniteDifferencesInEveryTensor) {
  Parameters gradients(model_.table.get());
  Objective(&gradients);
  double worst = 0;
  for (const ParameterSpec& spec : model_.table->specs()) {
    const float* gradient = gradients.data(spec);
    float* weight = model_.parameters->data(spec);
    std::vector<float> got;
    std::vector<double> want;
    for (int64_t i : Sample(gradient, spec.size)) {
      got.push_back(gradient[i]);
      want.push_back(Difference(weight + i, /*step=*/0.03f));
    }
    EXPECT_TRUE(RelativeRmsAtMost(5e-3, got, want)) << spec.name;
    worst = std::max(worst, RelativeRms(got, want));
  }
  RecordProperty("worst_relative_rms", std::to_string(worst));
  std::printf("worst relative rms %.2g\n", worst);
}

TEST_P(GradientCheck, AccumulatesAndScales) {
  Parameters once(model_.table.get());
  Objective(&once);
  Parameters twice(model_.table.get());
  Objective(&twice);
  Objective(&twice);
  std::vector<double> doubled;
  for (int64_t i = 0; i < once.flat().size(); ++i) {
    doubled.push_back(2.0 * once.flat()[i]);
  }
  EXPECT_TRUE(
      RelativeRmsAtMost(1e-6, {twice.flat().data(), doubled.size()}, doubled));
}

INSTANTIATE_TEST_SUITE_P(Variants, GradientCheck,
                         testing::ValuesIn(TinyVariants()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace gla
