// Who follows a training run, and may stop it.
#ifndef GLA_TRAINER_SERVICE_TRAINER_OBSERVER_H_
#define GLA_TRAINER_SERVICE_TRAINER_OBSERVER_H_

#include <cstdint>
#include <optional>
#include <string>

#include "gla/trainer/v1/trainer.pb.h"

namespace gla::trainer {

struct CommittedCheckpoint {
  std::string directory;
  int64_t step = 0;
  int64_t size_bytes = 0;
  std::optional<double> evaluation_loss;  // nats per token, at this step
};

enum class StopRequest { kNone, kStop, kSaveAndStop };

// Called from the training thread, between steps: be quick. Does nothing by
// itself.
class TrainerObserver {
 public:
  virtual ~TrainerObserver() = default;
  virtual void OnQuarantined(const std::string& /*directory*/,
                             const std::string& /*why*/) {}
  virtual void OnProgress(const v1::Progress& /*progress*/) {}
  // Committed now, or by an earlier attempt and resumed from.
  virtual void OnCheckpoint(const CommittedCheckpoint& /*checkpoint*/) {}
  // Asked before every step and every evaluation batch.
  virtual StopRequest stop_request() const { return StopRequest::kNone; }
};

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_TRAINER_OBSERVER_H_
