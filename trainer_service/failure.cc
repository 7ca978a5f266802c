#include "trainer_service/failure.h"

#include <string>

#include "absl/strings/cord.h"

namespace gla::trainer {
namespace {

constexpr char kReasonPayload[] = "gla.trainer.v1.Failure.Reason";

}  // namespace

absl::Status WithReason(v1::Failure::Reason reason, absl::Status status) {
  if (!status.GetPayload(kReasonPayload).has_value()) {
    status.SetPayload(kReasonPayload,
                      absl::Cord(v1::Failure::Reason_Name(reason)));
  }
  return status;
}

v1::Failure ToFailure(const absl::Status& status) {
  v1::Failure failure;
  v1::Failure::Reason reason = v1::Failure::INTERNAL;
  if (const auto payload = status.GetPayload(kReasonPayload)) {
    v1::Failure::Reason_Parse(std::string(*payload), &reason);
  }
  failure.set_reason(reason);
  failure.set_message(std::string(status.message()));
  return failure;
}

bool IsRetryable(v1::Failure::Reason reason) {
  switch (reason) {
    case v1::Failure::WORKER_CRASH:
    case v1::Failure::DISK_FULL:
    case v1::Failure::INTERNAL:
      return true;
    default:
      return false;
  }
}

}  // namespace gla::trainer
