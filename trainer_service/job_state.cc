#include "trainer_service/job_state.h"

namespace gla::trainer {
namespace {

using v1::Job;

struct Move {
  Job::State from, to;
};

constexpr Move kMoves[] = {
    {Job::STATE_UNSPECIFIED, Job::QUEUED},
    {Job::QUEUED, Job::STARTING},   // the device is free
    {Job::QUEUED, Job::CANCELLED},  // nothing runs that had to stop
    {Job::STARTING, Job::RUNNING},  // the worker attached
    {Job::STARTING, Job::RECOVERING},
    {Job::STARTING, Job::CANCELLING},
    {Job::STARTING, Job::FAILED},  // for a reason that no restart can cure
    {Job::RUNNING, Job::RECOVERING},
    {Job::RUNNING, Job::CANCELLING},
    {Job::RUNNING, Job::SUCCEEDED},
    {Job::RUNNING, Job::FAILED},
    {Job::RECOVERING, Job::STARTING},
    {Job::RECOVERING, Job::CANCELLING},
    {Job::CANCELLING, Job::CANCELLED},
    {Job::CANCELLING, Job::SUCCEEDED},  // it was done already
};

}  // namespace

bool IsTerminal(Job::State state) {
  return state == Job::SUCCEEDED || state == Job::FAILED ||
         state == Job::CANCELLED;
}

bool CanTransition(Job::State from, Job::State to) {
  for (const Move& move : kMoves) {
    if (move.from == from && move.to == to) return true;
  }
  return false;
}

}  // namespace gla::trainer
