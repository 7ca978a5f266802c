// MANIFEST: what a checkpoint directory holds, and whether it still does.
#ifndef GLA_MODEL_CHECKPOINT_MANIFEST_H_
#define GLA_MODEL_CHECKPOINT_MANIFEST_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gla/v1/checkpoint.pb.h"

namespace gla {

// Writes <directory>/MANIFEST, synced. Fills in format_version.
absl::Status WriteManifest(const std::string& directory,
                           gla::v1::Manifest manifest);

// NOT_FOUND: none there; DATA_LOSS: its own digest does not hold.
absl::StatusOr<gla::v1::Manifest> ReadManifest(const std::string& directory);

// Reads MANIFEST and checks that the directory holds the files it lists and no
// other entry, and every file's size and SHA-256. DATA_LOSS naming the file and
// what differs; also for a listed name that is a path or listed twice.
absl::StatusOr<gla::v1::Manifest> VerifyCheckpoint(
    const std::string& directory);

}  // namespace gla

#endif  // GLA_MODEL_CHECKPOINT_MANIFEST_H_
