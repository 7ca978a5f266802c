// A training job in a file: gla.trainer.v1.JobSpec as protobuf text.
#ifndef GLA_TOOLS_CLI_JOB_FILE_H_
#define GLA_TOOLS_CLI_JOB_FILE_H_

#include <string>

#include "absl/status/statusor.h"
#include "gla/trainer/v1/trainer.pb.h"

namespace gla::cli {

// A relative data.dataset is taken from the working directory and made
// absolute, since the service runs elsewhere. NOT_FOUND: no such file;
// INVALID_ARGUMENT: names file, line, column and the unknown or ill-typed
// field.
absl::StatusOr<trainer::v1::JobSpec> ReadJobFile(const std::string& path);

}  // namespace gla::cli

#endif  // GLA_TOOLS_CLI_JOB_FILE_H_
