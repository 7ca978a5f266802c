// The whole training path learns: a tiny model memorises one batch.

#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/philox.h"
#include "kernels/loss/linear_cross_entropy.h"
#include "kernels/optimizer/adamw.h"
#include "kernels/optimizer/grad_norm.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/test_context.h"
#include "model/config.h"
#include "model/gla_model.h"
#include "model/parameters.h"
#include "model/testing/tiny_model.h"

namespace gla {
namespace {

constexpr int64_t kB = 4;
constexpr int64_t kT = 33;

// Trains from InitializeParameters on one batch of random tokens.
class Trainer {
 public:
  explicit Trainer(int threads)
      : config_(TinyConfig()),
        test_(threads),
        table_(config_),
        weights_(&table_),
        gradients_(&table_),
        m_(&table_),
        v_(&table_),
        model_(config_, &weights_) {
    InitializeParameters(/*seed=*/1, config_, &weights_);
    for (int64_t i = 0; i < kB * kT; ++i) {
      tokens_[i] = Philox(/*seed=*/2, 0, i)[0] % config_.vocab_size;
    }
    for (int64_t i = 0; i < kB * kT; ++i) {
      labels_[i] = (i + 1) % kT == 0 ? kIgnoreLabel : tokens_[i + 1];
    }
  }

  // One step; the mean loss before it.
  double Step() {
    const float predictions = kB * (kT - 1);
    GlaModel::LossArgs args;
    args.tokens = tokens_;
    args.labels = labels_;
    args.grad_scale = 1 / predictions;
    args.gradients = &gradients_;
    args.loss = loss_;
    gradients_.SetZero();
    model_.Loss(test_.ctx(), args);

    AdamWArgs adam;
    adam.grad = gradients_.flat();
    adam.param = weights_.flat();
    adam.m = m_.flat();
    adam.v = v_.flat();
    adam.learning_rate = 1e-2f;
    adam.step = ++step_;
    adam.grad_scale =
        ClipFactor(std::sqrt(SumOfSquares(test_.ctx(), gradients_.flat())), 1);
    AdamW(test_.ctx(), adam);
    return std::accumulate(loss_.values().begin(), loss_.values().end(), 0.0) /
           predictions;
  }

  std::vector<float> weights() {
    return {weights_.flat().data(),
            weights_.flat().data() + weights_.flat().size()};
  }
  int64_t scratch_bytes() { return test_.scratch().reserved_bytes(); }

 private:
  const GlaConfig config_;
  TestContext test_;
  const ParameterTable table_;
  Parameters weights_, gradients_, m_, v_;
  const GlaModel model_;
  OwnedTensor<int32_t, 2> tokens_{{kB, kT}}, labels_{{kB, kT}};
  OwnedTensor<float, 2> loss_{{kB, kT}};
  int64_t step_ = 0;
};

TEST(Overfit, ATinyModelMemorisesABatch) {
  Trainer trainer(/*threads=*/2);
  EXPECT_NEAR(trainer.Step(), std::log(256.0), 0.1);
  double loss = 0;
  for (int step = 0; step < 60; ++step) loss = trainer.Step();
  EXPECT_LT(loss, 0.05);
}

TEST(Overfit, ARunRepeatsBitForBit) {
  Trainer a(/*threads=*/2), b(/*threads=*/2);
  for (int step = 0; step < 5; ++step) EXPECT_EQ(a.Step(), b.Step());
  EXPECT_EQ(a.weights(), b.weights());
}

TEST(Overfit, AStepAllocatesNoScratchAfterTheFirst) {
  Trainer trainer(/*threads=*/2);
  trainer.Step();
  const int64_t reserved = trainer.scratch_bytes();
  for (int step = 0; step < 3; ++step) trainer.Step();
  EXPECT_EQ(trainer.scratch_bytes(), reserved);
}

}  // namespace
}  // namespace gla
