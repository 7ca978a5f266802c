#include "trainer_service/lr_schedule.h"

#include <cmath>
#include <numbers>

namespace gla::trainer {

double LearningRate(const v1::OptimizerSpec& spec, int64_t total_steps,
                    int64_t step) {
  const double peak = spec.learning_rate(), floor = spec.min_learning_rate();
  const int64_t warmup = spec.warmup_steps();
  if (step < warmup) return peak * (step + 1) / warmup;
  const double progress =
      static_cast<double>(step - warmup) / (total_steps - warmup);
  return floor +
         (peak - floor) * 0.5 * (1 + std::cos(std::numbers::pi * progress));
}

}  // namespace gla::trainer
