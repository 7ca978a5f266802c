// Checkpoints of a training run: a model directory plus what a run needs to go
// on bit for bit, committed atomically. (docs/checkpoint_format.md)
//
//   <root>/step-000000012000/
//     config.json  model.safetensors  tokenizer files     as any model
//     optimizer.safetensors    "m.NAME", "v.NAME" for each tensor NAME
//     train_state.pb           gla.v1.TrainState
//     MANIFEST                 gla.v1.Manifest, then its SHA-256
//   <root>/.staging-000000012000-a3/     not committed yet; a = attempt
//   <root>/quarantine/                   failed verification
//
// Commit: write and sync every file in the staging directory, write and sync
// MANIFEST, sync the directory, rename it to its name without replacing, sync
// the root. A crash at any point leaves the last committed one intact.
#ifndef GLA_MODEL_CHECKPOINT_CHECKPOINT_H_
#define GLA_MODEL_CHECKPOINT_CHECKPOINT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gla/v1/checkpoint.pb.h"
#include "model/checkpoint/manifest.h"  // VerifyCheckpoint, ReadManifest
#include "model/config.h"
#include "model/parameters.h"
#include "model/tokenizer/tokenizer.h"

namespace gla {

// Everything that is written; nothing is owned or changed.
struct CheckpointContents {
  const GlaConfig* config = nullptr;
  const Parameters* weights = nullptr;
  const Parameters* adam_m = nullptr;
  const Parameters* adam_v = nullptr;
  const Tokenizer* tokenizer = nullptr;
  gla::v1::TrainState train_state;
  std::string job;  // "jobs/{job_id}"
  int32_t attempt = 0;
  std::string parent;  // directory resumed from, or empty
  std::optional<double> evaluation_loss;
};

// Commits to `root` (created if needed) and returns the checkpoint's directory.
// A checkpoint of the same step that is there already and valid is kept and
// returned (a resumed run may reach a committed step again: its bytes are the
// same). RESOURCE_EXHAUSTED: too little disk space, nothing written.
absl::StatusOr<std::string> CommitCheckpoint(
    const std::string& root, const CheckpointContents& contents);

// Committed checkpoints of a root, by step, oldest first. A root that does not
// exist has none.
absl::StatusOr<std::vector<std::string>> ListCheckpoints(
    const std::string& root);

// Moves a checkpoint to <root>/quarantine/ and returns where it is now.
absl::StatusOr<std::string> QuarantineCheckpoint(const std::string& directory);

// Deletes all but the newest `keep_latest` (>= 2) and stale staging
// directories of attempts before `attempt`.
absl::Status CollectCheckpoints(const std::string& root, int keep_latest,
                                int32_t attempt);

// The training part of a verified checkpoint: fills weights and moments, which
// must be of the checkpoint's config, and returns the state.
absl::StatusOr<gla::v1::TrainState> LoadTrainingState(
    const std::string& directory, Parameters* weights, Parameters* adam_m,
    Parameters* adam_v);

}  // namespace gla

#endif  // GLA_MODEL_CHECKPOINT_CHECKPOINT_H_
