#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "trainer_service/coordinator.h"
#include "trainer_service/testing/coordinator_fixture.h"

namespace gla::trainer {
namespace {

using v1::Job;

// Every pair of things that can happen, in every phase of a job's life: the
// store refuses illegal moves, so it is enough that the job always comes to an
// end, that the right one wins, and that nothing else runs meanwhile.
class CoordinatorRaceTest : public CoordinatorTest {
 protected:
  enum Happening { kAttach, kFinished, kStopped, kCrash, kCancel, kRestart };
  static constexpr int kHappenings = kRestart + 1;

  // Does what can happen now; a dead or refused worker does nothing.
  void Happen(Happening happening) {
    const int process = launcher_.num_processes() - 1;
    v1::WorkerMessage message;
    if (process >= 0) message = From(process);
    switch (happening) {
      case kAttach:
        message.mutable_hello();
        coordinator_->Receive(message, &link_).IgnoreError();
        return;
      case kFinished:
        message.mutable_finished();
        finished_ |= coordinator_->Receive(message, &link_).ok();
        return;
      case kStopped:
        message.mutable_stopped();
        coordinator_->Receive(message, &link_).IgnoreError();
        return;
      case kCrash:
        if (process >= 0) End(process, {.exit_code = 1, .signal = 0});
        return;
      case kCancel:
        cancelled_ |= coordinator_->Cancel(id_).ok();
        coordinator_->Tick();
        return;
      case kRestart:
        Restart();
        finished_ = false;  // nobody heard it
        coordinator_->Tick();
        return;
    }
  }

  // Lets the job go on undisturbed.
  Job::State Settle() {
    for (int round = 0; round < 8; ++round) {
      if (State(id_) >= Job::SUCCEEDED) break;
      now_ += absl::Minutes(2);
      coordinator_->Tick();
      const int process = launcher_.num_processes() - 1;
      if (process < 0) continue;
      Happen(kAttach);
      if (State(id_) == Job::RUNNING) Happen(kFinished);
      End(process, {});
    }
    return State(id_);
  }

  std::string id_;
  bool finished_ = false, cancelled_ = false;
};

TEST_F(CoordinatorRaceTest, EveryPairOfHappeningsEndsWell) {
  for (int phase = 0; phase < 4; ++phase) {
    for (int pair = 0; pair < kHappenings * kHappenings; ++pair) {
      const auto first = static_cast<Happening>(pair / kHappenings);
      const auto second = static_cast<Happening>(pair % kHappenings);
      SCOPED_TRACE(
          absl::StrCat("phase ", phase, ", then ", first, ", ", second));
      id_ = absl::StrCat("a-", phase, "-", pair);
      finished_ = cancelled_ = false;
      Submit(id_);
      if (phase >= 1) coordinator_->Tick();  // STARTING
      if (phase >= 2) Happen(kAttach);       // RUNNING
      if (phase >= 3) Happen(kCrash);        // RECOVERING
      Happen(first);
      Happen(second);
      const bool finished_before_the_end = finished_;
      const Job::State end = Settle();
      if (!cancelled_ || finished_before_the_end) {
        EXPECT_EQ(end, Job::SUCCEEDED);
      } else {
        EXPECT_EQ(end, Job::CANCELLED);
      }
    }
  }
}

}  // namespace
}  // namespace gla::trainer
