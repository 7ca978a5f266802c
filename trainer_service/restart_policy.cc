#include "trainer_service/restart_policy.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "trainer_service/failure.h"

namespace gla::trainer {

RestartDecision DecideRestart(const v1::Failure& failure, bool committed,
                              int32_t restarts_without_progress,
                              int32_t max_restarts) {
  RestartDecision decision;
  decision.failure = failure;
  decision.restarts_without_progress =
      committed ? 0 : restarts_without_progress + 1;
  if (!IsRetryable(failure.reason())) return decision;
  if (decision.restarts_without_progress > max_restarts) {
    decision.failure.set_reason(v1::Failure::RESTART_BUDGET);
    decision.failure.set_message(absl::StrCat(
        decision.restarts_without_progress,
        " attempts in a row ended without a new checkpoint, the last with ",
        v1::Failure::Reason_Name(failure.reason()), ": ", failure.message()));
    return decision;
  }
  decision.restart = true;
  const int doublings =
      std::clamp(decision.restarts_without_progress - 1, 0, 6);
  decision.backoff =
      std::min(absl::Seconds(int64_t{1} << doublings), absl::Seconds(60));
  return decision;
}

}  // namespace gla::trainer
