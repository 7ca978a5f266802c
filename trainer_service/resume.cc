#include "trainer_service/resume.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "glog/logging.h"
#include "kernels/base/status_macros.h"
#include "model/checkpoint/checkpoint.h"
#include "trainer_service/failure.h"

namespace gla::trainer {
namespace {

// A file that cannot be read now may be readable later; a file that is wrong
// stays wrong.
bool IsDamage(const absl::Status& status) {
  return absl::IsDataLoss(status) || absl::IsNotFound(status) ||
         absl::IsInvalidArgument(status);
}

absl::StatusOr<ResumePoint> Load(const std::string& directory,
                                 Parameters* weights, Parameters* adam_m,
                                 Parameters* adam_v) {
  ASSIGN_OR_RETURN(const gla::v1::Manifest manifest,
                   VerifyCheckpoint(directory));
  ResumePoint point;
  point.directory = directory;
  ASSIGN_OR_RETURN(point.state,
                   LoadTrainingState(directory, weights, adam_m, adam_v));
  if (manifest.has_evaluation_loss()) {
    point.evaluation_loss = manifest.evaluation_loss();
  }
  return point;
}

}  // namespace

absl::StatusOr<std::optional<ResumePoint>> ResumeFromNewest(
    const std::string& root, bool must_resume, TrainerObserver* observer,
    Parameters* weights, Parameters* adam_m, Parameters* adam_v) {
  ASSIGN_OR_RETURN(std::vector<std::string> directories, ListCheckpoints(root));
  std::reverse(directories.begin(), directories.end());
  for (const std::string& directory : directories) {
    absl::StatusOr<ResumePoint> point =
        Load(directory, weights, adam_m, adam_v);
    if (point.ok()) return *std::move(point);
    if (!IsDamage(point.status())) return point.status();
    ASSIGN_OR_RETURN(const std::string quarantined,
                     QuarantineCheckpoint(directory));
    LOG(WARNING) << directory << " is damaged (" << point.status().message()
                 << "), set aside as " << quarantined;
    observer->OnQuarantined(quarantined, std::string(point.status().message()));
  }
  if (directories.empty() && !must_resume) return std::nullopt;
  return WithReason(
      v1::Failure::CHECKPOINT_CORRUPT,
      absl::DataLossError(absl::StrCat("no valid checkpoint is left in ", root,
                                       " to resume from")));
}

}  // namespace gla::trainer
