// Whether an attempt that failed is followed by another, and when.
#ifndef GLA_TRAINER_SERVICE_RESTART_POLICY_H_
#define GLA_TRAINER_SERVICE_RESTART_POLICY_H_

#include <cstdint>

#include "absl/time/time.h"
#include "gla/trainer/v1/trainer.pb.h"

namespace gla::trainer {

struct RestartDecision {
  bool restart = false;
  absl::Duration backoff;                 // before the restart
  int32_t restarts_without_progress = 0;  // the new count
  v1::Failure failure;                    // what the job shows
};

// Pure. Failures of the spec, the data or the numbers are not retried. Others
// are, after 1, 2, 4 ... 60 s, unless more than `max_restarts` attempts in a
// row ended without a new checkpoint: then RESTART_BUDGET with the last cause
// in its message. `committed`: this attempt committed a checkpoint.
RestartDecision DecideRestart(const v1::Failure& failure, bool committed,
                              int32_t restarts_without_progress,
                              int32_t max_restarts);

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_RESTART_POLICY_H_
