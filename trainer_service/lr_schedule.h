// The learning rate of a step.
#ifndef GLA_TRAINER_SERVICE_LR_SCHEDULE_H_
#define GLA_TRAINER_SERVICE_LR_SCHEDULE_H_

#include <cstdint>

#include "gla/trainer/v1/trainer.pb.h"

namespace gla::trainer {

// Linear warm-up, then half a cosine from the peak down to the floor. For step
// s (0-based, in [0, total_steps)), W warm-up steps and n = total_steps:
//   s <  W:  peak * (s + 1) / W
//   s >= W:  floor + (peak - floor) * (1 + cos(pi * (s - W) / (n - W))) / 2
// `spec` is resolved. Pure.
double LearningRate(const v1::OptimizerSpec& spec, int64_t total_steps,
                    int64_t step);

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_LR_SCHEDULE_H_
