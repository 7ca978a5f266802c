// Names of jobs: "jobs/{job_id}".
#ifndef GLA_TRAINER_SERVICE_JOB_NAME_H_
#define GLA_TRAINER_SERVICE_JOB_NAME_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace gla::trainer {

// OK if `id` matches [a-z][a-z0-9-]{0,62}, else INVALID_ARGUMENT.
absl::Status CheckJobId(const std::string& id);

// The id in a name. INVALID_ARGUMENT naming `field` and the value.
absl::StatusOr<std::string> ParseJobName(const std::string& field,
                                         const std::string& name);

// "job-20260102-150405-1a2b3c4d".
std::string MakeJobId(absl::Time now);

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_JOB_NAME_H_
