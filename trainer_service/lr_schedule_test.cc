#include "trainer_service/lr_schedule.h"

#include "gtest/gtest.h"

namespace gla::trainer {
namespace {

v1::OptimizerSpec Spec(double peak, double floor, int64_t warmup) {
  v1::OptimizerSpec spec;
  spec.set_learning_rate(peak);
  spec.set_min_learning_rate(floor);
  spec.set_warmup_steps(warmup);
  return spec;
}

TEST(LearningRate, RisesInALineToThePeak) {
  const auto spec = Spec(8, 1, 4);
  EXPECT_DOUBLE_EQ(LearningRate(spec, 100, 0), 2);
  EXPECT_DOUBLE_EQ(LearningRate(spec, 100, 1), 4);
  EXPECT_DOUBLE_EQ(LearningRate(spec, 100, 3), 8);
  EXPECT_DOUBLE_EQ(LearningRate(spec, 100, 4), 8);
}

TEST(LearningRate, FallsAlongACosineToTheFloor) {
  const auto spec = Spec(8, 2, 10);
  EXPECT_NEAR(LearningRate(spec, 110, 60), 5, 1e-12);  // half way
  EXPECT_NEAR(LearningRate(spec, 110, 35), 2 + 6 * 0.85355339, 1e-7);
  double last = 9;
  for (int step = 10; step < 110; ++step) {
    const double rate = LearningRate(spec, 110, step);
    EXPECT_LE(rate, last);
    EXPECT_GT(rate, 2);
    last = rate;
  }
  EXPECT_LT(last, 2.01);
}

TEST(LearningRate, NeedsNoWarmUpAndMayWarmUpAllTheWay) {
  EXPECT_DOUBLE_EQ(LearningRate(Spec(3, 0, 0), 1, 0), 3);
  EXPECT_DOUBLE_EQ(LearningRate(Spec(3, 0, 5), 5, 4), 3);
}

}  // namespace
}  // namespace gla::trainer
