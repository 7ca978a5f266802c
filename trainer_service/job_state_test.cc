#include "trainer_service/job_state.h"

#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace gla::trainer {
namespace {

using v1::Job;

std::vector<Job::State> AllStates() {
  std::vector<Job::State> states;
  for (int i = Job::State_MIN; i <= Job::State_MAX; ++i) {
    states.push_back(static_cast<Job::State>(i));
  }
  return states;
}

TEST(JobState, TerminalStatesAreNeverLeft) {
  for (Job::State from : AllStates()) {
    if (!IsTerminal(from)) continue;
    for (Job::State to : AllStates()) EXPECT_FALSE(CanTransition(from, to));
  }
}

TEST(JobState, EveryStateIsReachedAndOnlyTerminalOnesEnd) {
  std::set<Job::State> reached = {Job::STATE_UNSPECIFIED};
  for (size_t before = 0; before != reached.size();) {
    before = reached.size();
    for (Job::State from : AllStates()) {
      if (!reached.count(from)) continue;
      int moves = 0;
      for (Job::State to : AllStates()) {
        if (CanTransition(from, to)) reached.insert(to), ++moves;
      }
      EXPECT_EQ(moves == 0, IsTerminal(from)) << Job::State_Name(from);
    }
  }
  EXPECT_EQ(reached.size(), AllStates().size());
}

TEST(JobState, WorkNeverGoesBackToTheQueueOrSkipsTheAttach) {
  for (Job::State from : AllStates()) {
    EXPECT_EQ(CanTransition(from, Job::QUEUED), from == Job::STATE_UNSPECIFIED);
    EXPECT_EQ(CanTransition(from, Job::RUNNING), from == Job::STARTING);
    EXPECT_FALSE(CanTransition(from, from));
  }
}

TEST(JobState, AnythingNotTerminalCanBeCancelled) {
  for (Job::State from : {Job::STARTING, Job::RUNNING, Job::RECOVERING}) {
    EXPECT_TRUE(CanTransition(from, Job::CANCELLING));
  }
  EXPECT_TRUE(CanTransition(Job::QUEUED, Job::CANCELLED));
  EXPECT_TRUE(CanTransition(Job::CANCELLING, Job::CANCELLED));
  EXPECT_TRUE(CanTransition(Job::CANCELLING, Job::SUCCEEDED));
}

}  // namespace
}  // namespace gla::trainer
