// A dataset and a job so small that a training step takes milliseconds.
#ifndef GLA_TRAINER_SERVICE_TESTING_TINY_JOB_H_
#define GLA_TRAINER_SERVICE_TESTING_TINY_JOB_H_

#include <string>

#include "gla/trainer/v1/trainer.pb.h"

namespace gla::trainer {

// An empty folder of this name below the test's temporary folder.
std::string FreshFolder(const std::string& name);

// A dataset of raw bytes in `directory`: some thousand tokens of text, a tenth
// of them in the validation split. Returns `directory`.
std::string MakeTinyDataset(const std::string& directory);

// A job on it as a user would write it: one small layer, `steps` steps of 4
// rows of 32 tokens in two micro-batches, one thread.
v1::JobSpec TinyJobSpec(const std::string& dataset, int steps);

// The same with all defaults filled in.
v1::JobSpec ResolvedTinyJobSpec(const std::string& dataset, int steps);

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_TESTING_TINY_JOB_H_
