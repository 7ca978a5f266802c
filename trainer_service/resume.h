// Where a run goes on: its newest checkpoint that is still whole.
#ifndef GLA_TRAINER_SERVICE_RESUME_H_
#define GLA_TRAINER_SERVICE_RESUME_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "gla/v1/checkpoint.pb.h"
#include "model/parameters.h"
#include "trainer_service/trainer_observer.h"

namespace gla::trainer {

struct ResumePoint {
  std::string directory;
  gla::v1::TrainState state;
  std::optional<double> evaluation_loss;  // at this step
};

// Fills weights and moments from the newest valid checkpoint of `root`. Damaged
// ones on the way are moved to quarantine, and the observer is told. nullopt:
// there never was one. DATA_LOSS with CHECKPOINT_CORRUPT: there was (or
// `must_resume` says so) and none is valid; a run that had progress never
// silently starts over.
absl::StatusOr<std::optional<ResumePoint>> ResumeFromNewest(
    const std::string& root, bool must_resume, TrainerObserver* observer,
    Parameters* weights, Parameters* adam_m, Parameters* adam_v);

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_RESUME_H_
