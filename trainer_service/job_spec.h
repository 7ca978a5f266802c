// What a job runs: the spec as submitted, checked and completed. Everything
// behind this point may trust it.
#ifndef GLA_TRAINER_SERVICE_JOB_SPEC_H_
#define GLA_TRAINER_SERVICE_JOB_SPEC_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gla/trainer/v1/trainer.pb.h"
#include "trainer_service/data/dataset.h"

namespace gla::trainer {

// What the machine that trains has.
struct Machine {
  int threads = 1;
  int64_t memory_bytes = 0;
};
Machine ThisMachine();

// Opens spec.data.dataset. INVALID_ARGUMENT: not given or not an absolute path;
// NOT_FOUND, DATA_LOSS: as Dataset::Open. All name the field.
absl::StatusOr<std::unique_ptr<Dataset>> OpenDataset(const v1::JobSpec& spec);

// The spec with every field set, defaults filled in. INVALID_ARGUMENT with the
// field's path, what it must be and what it is ("spec.data.sequence_length:
// want 1 to 1048576, got -3") when a value is impossible by itself, for the
// dataset or for the machine.
absl::StatusOr<v1::JobSpec> ResolveJobSpec(const v1::JobSpec& spec,
                                           const Dataset& dataset,
                                           const Machine& machine);

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_JOB_SPEC_H_
