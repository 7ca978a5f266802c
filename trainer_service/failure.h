// Why training stopped: a Failure.Reason that travels inside an absl::Status.
#ifndef GLA_TRAINER_SERVICE_FAILURE_H_
#define GLA_TRAINER_SERVICE_FAILURE_H_

#include "absl/status/status.h"
#include "gla/trainer/v1/trainer.pb.h"

namespace gla::trainer {

// `status` (not OK) with a reason attached; a reason that is there stays.
absl::Status WithReason(v1::Failure::Reason reason, absl::Status status);

// Reason (INTERNAL when none is attached) and message.
v1::Failure ToFailure(const absl::Status& status);

// Whether a new attempt may end better: not for what lies in the spec, the data
// or the numbers.
bool IsRetryable(v1::Failure::Reason reason);

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_FAILURE_H_
