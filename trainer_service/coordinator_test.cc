#include "trainer_service/coordinator.h"

#include <signal.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "trainer_service/testing/coordinator_fixture.h"

namespace gla::trainer {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using v1::Failure;
using v1::Job;

TEST_F(CoordinatorTest, RunsJobsOneAfterTheOther) {
  Submit("a");
  Submit("b");
  Submit("c");
  EXPECT_EQ(coordinator_->Get("c")->queue_position(), 3);
  coordinator_->Tick();
  ASSERT_EQ(launcher_.num_processes(), 1);
  EXPECT_EQ(launcher_.command(0).job, "jobs/a");
  EXPECT_EQ(launcher_.command(0).attempt, 1);
  EXPECT_EQ(launcher_.command(0).service_address, "service");
  EXPECT_EQ(State("a"), Job::STARTING);
  EXPECT_EQ(coordinator_->Get("c")->queue_position(), 2);
  Attach(0);
  EXPECT_EQ(State("a"), Job::RUNNING);
  ASSERT_EQ(link_.sent.size(), 1u);
  EXPECT_THAT(link_.sent[0].start().job_directory(), HasSubstr("/jobs/a"));
  EXPECT_FALSE(link_.sent[0].start().must_resume());
  Finish(0);
  EXPECT_EQ(State("a"), Job::SUCCEEDED);
  EXPECT_EQ(coordinator_->Get("a")->progress().step(), 9);
  EXPECT_EQ(launcher_.num_processes(), 2);
  EXPECT_EQ(launcher_.command(1).job, "jobs/b");
  EXPECT_NE(launcher_.command(1).secret, launcher_.command(0).secret);
}

TEST_F(CoordinatorTest, AJobSucceedsOnlyWhenItsProcessIsGone) {
  Submit("a");
  coordinator_->Tick();
  Attach(0);
  v1::WorkerMessage message = From(0);
  message.mutable_finished();
  ASSERT_TRUE(coordinator_->Receive(message, &link_).ok());
  coordinator_->Tick();
  EXPECT_EQ(State("a"), Job::RUNNING);
  End(0, {});
  EXPECT_EQ(State("a"), Job::SUCCEEDED);
}

TEST_F(CoordinatorTest, RestartsACrashedWorkerAfterABackoff) {
  Submit("a");
  coordinator_->Tick();
  Attach(0);
  CommitCheckpoint(0);
  End(0, {.exit_code = 0, .signal = SIGKILL});
  const auto job = coordinator_->Get("a");
  EXPECT_EQ(job->state(), Job::RECOVERING);
  EXPECT_EQ(job->failure().reason(), Failure::WORKER_CRASH);
  EXPECT_EQ(job->failure().signal(), SIGKILL);
  EXPECT_EQ(coordinator_->Tick(), now_ + absl::Seconds(1));
  EXPECT_EQ(launcher_.num_processes(), 1);
  now_ += absl::Seconds(1);
  coordinator_->Tick();
  ASSERT_EQ(launcher_.num_processes(), 2);
  EXPECT_EQ(launcher_.command(1).attempt, 2);
  Attach(1);
  EXPECT_TRUE(link_.sent.back().start().must_resume());
  Finish(1);
  EXPECT_THAT(
      History("a"),
      ElementsAre(Job::QUEUED, Job::STARTING, Job::RUNNING, Job::RECOVERING,
                  Job::STARTING, Job::RUNNING, Job::SUCCEEDED));
  EXPECT_FALSE(coordinator_->Get("a")->has_failure());
}

TEST_F(CoordinatorTest, TellsACheckpointOnce) {
  Submit("a");
  coordinator_->Tick();
  Attach(0);
  CommitCheckpoint(0);
  const int64_t last = coordinator_->Get("a")->last_event_sequence();
  CommitCheckpoint(0);
  EXPECT_EQ(coordinator_->Get("a")->last_event_sequence(), last);
}

// The last attempt commits the last step and dies before it says so; the next
// one finds nothing to do.
TEST_F(CoordinatorTest, LearnsOfACheckpointFromTheAttemptThatResumesIt) {
  Submit("a");
  coordinator_->Tick();
  Attach(0);
  End(0, {.exit_code = 0, .signal = SIGKILL});
  EXPECT_EQ(coordinator_->Get("a")->latest_checkpoint(), "");
  now_ += absl::Seconds(1);
  coordinator_->Tick();
  Attach(1);
  CommitCheckpoint(1);
  Finish(1);
  EXPECT_EQ(State("a"), Job::SUCCEEDED);
  EXPECT_EQ(coordinator_->Get("a")->latest_checkpoint(), "the/checkpoint");
}

TEST_F(CoordinatorTest, GivesUpWhenAttemptsBringNothing) {
  Submit("a");
  for (int attempt = 0; attempt < 4; ++attempt) {
    coordinator_->Tick();
    ASSERT_EQ(launcher_.num_processes(), attempt + 1);
    End(attempt, {.exit_code = 3, .signal = 0});
    now_ += absl::Seconds(60);
  }
  coordinator_->Tick();
  EXPECT_EQ(launcher_.num_processes(), 4);
  const auto job = coordinator_->Get("a");
  EXPECT_EQ(job->state(), Job::FAILED);
  EXPECT_EQ(job->failure().reason(), Failure::RESTART_BUDGET);
  EXPECT_EQ(job->failure().exit_code(), 3);
}

TEST_F(CoordinatorTest, DoesNotRetryWhatTheUserMustMend) {
  Submit("a");
  coordinator_->Tick();
  Attach(0);
  Fail(0, Failure::NONFINITE);
  const auto job = coordinator_->Get("a");
  EXPECT_EQ(job->state(), Job::FAILED);
  EXPECT_EQ(job->failure().reason(), Failure::NONFINITE);
  EXPECT_EQ(job->state_message(), "because");
}

TEST_F(CoordinatorTest, AWorkerThatCannotBeStartedIsAFailure) {
  launcher_.start_status = absl::NotFoundError("no such binary");
  Submit("a");
  coordinator_->Tick();
  EXPECT_EQ(State("a"), Job::RECOVERING);
  EXPECT_THAT(coordinator_->Get("a")->state_message(),
              HasSubstr("no such binary"));
}

TEST_F(CoordinatorTest, RefusesMessagesOfOtherAttempts) {
  Submit("a");
  coordinator_->Tick();
  v1::WorkerMessage message = From(0);
  message.mutable_hello();
  message.set_secret("guessed");
  EXPECT_EQ(coordinator_->Receive(message, &link_).code(),
            absl::StatusCode::kAborted);
  message = From(0);
  message.mutable_hello();
  message.set_attempt(2);
  EXPECT_EQ(coordinator_->Receive(message, &link_).code(),
            absl::StatusCode::kAborted);
  Attach(0);
  FakeLink second;
  message = From(0);
  message.mutable_hello();
  EXPECT_EQ(coordinator_->Receive(message, &second).code(),
            absl::StatusCode::kAborted);
  EXPECT_THAT(second.sent, IsEmpty());
  message = From(0);
  message.mutable_finished();
  EXPECT_EQ(coordinator_->Receive(message, &second).code(),
            absl::StatusCode::kAborted);
}

TEST_F(CoordinatorTest, AWorkerSaysHelloBeforeAnythingElse) {
  Submit("a");
  coordinator_->Tick();
  v1::WorkerMessage message = From(0);
  message.mutable_finished();
  EXPECT_EQ(coordinator_->Receive(message, &link_).code(),
            absl::StatusCode::kAborted);
  End(0, {});
  EXPECT_EQ(State("a"), Job::RECOVERING);
}

TEST_F(CoordinatorTest, CancelsAQueuedJobAtOnce) {
  Submit("a");
  EXPECT_EQ(coordinator_->Cancel("a")->state(), Job::CANCELLED);
  coordinator_->Tick();
  EXPECT_EQ(launcher_.num_processes(), 0);
  const auto again = coordinator_->Cancel("a");
  EXPECT_EQ(again.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(again.status().message()),
              HasSubstr("jobs/a is CANCELLED"));
}

TEST_F(CoordinatorTest, CancelAsksThenTerminatesThenKills) {
  Submit("a");
  coordinator_->Tick();
  Attach(0);
  EXPECT_EQ(coordinator_->Cancel("a")->state(), Job::CANCELLING);
  EXPECT_TRUE(link_.sent.back().stop().save());
  EXPECT_EQ(coordinator_->Tick(), now_ + absl::Seconds(30));
  EXPECT_THAT(launcher_.signals(0), IsEmpty());
  now_ += absl::Seconds(30);
  EXPECT_EQ(coordinator_->Tick(), now_ + absl::Seconds(10));
  EXPECT_THAT(launcher_.signals(0), ElementsAre(SIGTERM));
  now_ += absl::Seconds(10);
  coordinator_->Tick();
  EXPECT_THAT(launcher_.signals(0), ElementsAre(SIGTERM, SIGKILL));
  EXPECT_EQ(State("a"), Job::CANCELLING);
  EXPECT_EQ(coordinator_->Cancel("a")->state(), Job::CANCELLING);
  End(0, {.exit_code = 0, .signal = SIGKILL});
  EXPECT_EQ(State("a"), Job::CANCELLED);
}

TEST_F(CoordinatorTest, CancelBeforeTheWorkerAttaches) {
  Submit("a");
  coordinator_->Tick();
  EXPECT_EQ(coordinator_->Cancel("a")->state(), Job::CANCELLING);
  v1::WorkerMessage message = From(0);
  message.mutable_hello();
  EXPECT_EQ(coordinator_->Receive(message, &link_).code(),
            absl::StatusCode::kCancelled);
  coordinator_->Tick();
  EXPECT_THAT(launcher_.signals(0), ElementsAre(SIGTERM));
  End(0, {});
  EXPECT_EQ(State("a"), Job::CANCELLED);
}

TEST_F(CoordinatorTest, CancelDuringABackoff) {
  Submit("a");
  coordinator_->Tick();
  End(0, {.exit_code = 1, .signal = 0});
  EXPECT_EQ(State("a"), Job::RECOVERING);
  EXPECT_EQ(coordinator_->Cancel("a")->state(), Job::CANCELLED);
  EXPECT_EQ(History("a").back(), Job::CANCELLED);
}

TEST_F(CoordinatorTest, WorkThatWasDoneWinsOverTheCancel) {
  Submit("a");
  coordinator_->Tick();
  Attach(0);
  ASSERT_TRUE(coordinator_->Cancel("a").ok());
  Finish(0);
  EXPECT_EQ(State("a"), Job::SUCCEEDED);
}

TEST_F(CoordinatorTest, AfterARestartWaitsForTheOldWorkerToEnd) {
  Submit("a");
  coordinator_->Tick();
  Attach(0);
  CommitCheckpoint(0);
  launcher_.alive = {1000};
  Restart();
  EXPECT_EQ(State("a"), Job::RECOVERING);
  coordinator_->Tick();
  EXPECT_EQ(launcher_.num_processes(), 2);  // started, then adopted
  // What the old worker says is refused.
  v1::WorkerMessage late = From(0);
  late.mutable_checkpoint()->set_directory("zombie");
  EXPECT_EQ(coordinator_->Receive(late, &link_).code(),
            absl::StatusCode::kAborted);
  now_ += absl::Seconds(30);
  coordinator_->Tick();
  EXPECT_THAT(launcher_.signals(1), ElementsAre(SIGTERM));
  End(1, {});
  ASSERT_EQ(launcher_.num_processes(), 3);
  EXPECT_EQ(launcher_.command(2).attempt, 2);
  Attach(2);
  EXPECT_TRUE(link_.sent.back().start().must_resume());
  EXPECT_EQ(store_->Get("a")->restarts_without_progress, 0);
}

TEST_F(CoordinatorTest, AfterARestartGoesOnAtOnceWhenTheOldWorkerIsGone) {
  Submit("a");
  Submit("b");
  coordinator_->Tick();
  Attach(0);
  Restart();
  coordinator_->Tick();
  ASSERT_EQ(launcher_.num_processes(), 2);
  EXPECT_EQ(launcher_.command(1).job, "jobs/a");
  EXPECT_EQ(launcher_.command(1).attempt, 2);
}

TEST_F(CoordinatorTest, ARestartCompletesACancel) {
  Submit("a");
  coordinator_->Tick();
  Attach(0);
  ASSERT_TRUE(coordinator_->Cancel("a").ok());
  Restart();
  EXPECT_EQ(State("a"), Job::CANCELLED);
}

TEST_F(CoordinatorTest, ShutdownStopsTheWorkerAndTheJobGoesOnLater) {
  Submit("a");
  coordinator_->Tick();
  Attach(0);
  coordinator_->StartThread();
  std::thread shutdown([this] { coordinator_->Shutdown(); });
  // The streams end as soon as the shutdown begins.
  EXPECT_EQ(
      coordinator_
          ->AwaitNews("a", 3, absl::InfiniteFuture(), absl::InfiniteDuration())
          .status()
          .code(),
      absl::StatusCode::kUnavailable);
  EXPECT_TRUE(link_.sent.back().stop().save());
  v1::WorkerMessage message = From(0);
  message.mutable_stopped();
  ASSERT_TRUE(coordinator_->Receive(message, &link_).ok());
  launcher_.Exit(0, {});
  shutdown.join();
  EXPECT_EQ(State("a"), Job::RECOVERING);
  Restart();
  coordinator_->Tick();
  EXPECT_EQ(launcher_.command(1).attempt, 2);
}

TEST_F(CoordinatorTest, ShutdownGivesUpOnAWorkerThatDoesNotEnd) {
  coordinator_ = std::make_unique<Coordinator>(
      CoordinatorOptions{.storage = storage_,
                         .store = store_.get(),
                         .launcher = &launcher_,
                         .now = absl::Now,
                         .stop_grace = absl::Milliseconds(1),
                         .kill_grace = absl::Milliseconds(1)});
  Submit("a");
  coordinator_->Tick();
  coordinator_->StartThread();
  coordinator_->Shutdown();
  EXPECT_THAT(launcher_.signals(0), ElementsAre(SIGTERM, SIGKILL));
}

// A write that failed, on a full disk say, leaves a state without a process.
TEST_F(CoordinatorTest, TakesUpJobsThatNoProcessHas) {
  for (Job::State state : {Job::STARTING, Job::RUNNING, Job::CANCELLING}) {
    const std::string id = absl::StrCat("a", state);
    Submit(id);
    ASSERT_TRUE(
        store_->Transition(id, Job::STARTING, "", now_, [](JobRecord*) {})
            .ok());
    if (state != Job::STARTING) {
      ASSERT_TRUE(
          store_->Transition(id, state, "", now_, [](JobRecord*) {}).ok());
    }
    coordinator_->Tick();
    if (state == Job::CANCELLING) {
      EXPECT_EQ(State(id), Job::CANCELLED);
      continue;
    }
    const int process = launcher_.num_processes() - 1;
    ASSERT_EQ(launcher_.command(process).job, "jobs/" + id);
    Attach(process);
    Finish(process);
    EXPECT_EQ(State(id), Job::SUCCEEDED);
  }
}

TEST_F(CoordinatorTest, NewsResumeByNumberAndCarryProgress) {
  Submit("a");
  coordinator_->Tick();
  Attach(0);
  auto news = coordinator_->AwaitNews("a", 0, now_, absl::InfiniteDuration());
  ASSERT_TRUE(news.ok());
  EXPECT_EQ(news->events.size(), 3u);
  news = coordinator_->AwaitNews("a", 2, now_, absl::InfiniteDuration());
  ASSERT_EQ(news->events.size(), 1u);
  EXPECT_EQ(news->events[0].sequence(), 3);
  news = coordinator_->AwaitNews("a", 3, now_, absl::ZeroDuration());
  EXPECT_THAT(news->events, IsEmpty());

  now_ += absl::Seconds(1);
  v1::WorkerMessage message = From(0);
  message.mutable_heartbeat()->mutable_progress()->set_total_steps(9);
  message.mutable_heartbeat()->mutable_progress()->set_step(5);
  ASSERT_TRUE(coordinator_->Receive(message, &link_).ok());
  news = coordinator_->AwaitNews("a", 3, now_ - absl::Seconds(1),
                                 absl::InfiniteDuration());
  ASSERT_TRUE(news.ok());
  EXPECT_EQ(news->job.progress().step(), 5);
  EXPECT_EQ(coordinator_->AwaitNews("a", 4, now_, absl::ZeroDuration())
                .status()
                .code(),
            absl::StatusCode::kOutOfRange);
}

}  // namespace
}  // namespace gla::trainer
