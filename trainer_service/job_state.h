// The states of a training job and the moves between them. (docs/jobs.md)
#ifndef GLA_TRAINER_SERVICE_JOB_STATE_H_
#define GLA_TRAINER_SERVICE_JOB_STATE_H_

#include "gla/trainer/v1/trainer.pb.h"

namespace gla::trainer {

// SUCCEEDED, FAILED, CANCELLED: never left.
bool IsTerminal(v1::Job::State state);

// Whether a job may move from one state to another: a pure table, the only
// definition. A new job "moves" from STATE_UNSPECIFIED to QUEUED.
bool CanTransition(v1::Job::State from, v1::Job::State to);

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_JOB_STATE_H_
