// A coordinator for tests, with the workers and the clock in the test's hand.
#ifndef GLA_TRAINER_SERVICE_TESTING_COORDINATOR_FIXTURE_H_
#define GLA_TRAINER_SERVICE_TESTING_COORDINATOR_FIXTURE_H_

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "trainer_service/coordinator.h"
#include "trainer_service/job_store.h"
#include "trainer_service/testing/fake_launcher.h"

namespace gla::trainer {

class FakeLink : public WorkerLink {
 public:
  void Send(const v1::CoordinatorMessage& message) override {
    sent.push_back(message);
  }
  std::vector<v1::CoordinatorMessage> sent;
};

// A coordinator without a thread, on a clock that the test turns.
class CoordinatorTest : public testing::Test {
 protected:
  CoordinatorTest()
      : storage_(absl::StrCat(
            testing::TempDir(), "/coordinator-",
            testing::UnitTest::GetInstance()->current_test_info()->name())) {
    std::filesystem::remove_all(storage_);
    std::filesystem::create_directories(storage_);
    Restart();
  }

  // As if the service had been killed and started again.
  void Restart() {
    coordinator_.reset();
    store_.reset();
    store_ = *JobStore::Open(storage_ + "/jobs.db");
    coordinator_ = std::make_unique<Coordinator>(
        CoordinatorOptions{.storage = storage_,
                           .store = store_.get(),
                           .launcher = &launcher_,
                           .now = [this] { return now_; }});
    ASSERT_TRUE(coordinator_->Recover("service").ok());
  }

  void Submit(const std::string& id) {
    v1::Job job;
    job.set_name("jobs/" + id);
    job.mutable_spec()->set_max_restarts_without_progress(3);
    ASSERT_TRUE(coordinator_->Submit(job, "").ok());
  }
  v1::Job::State State(const std::string& id) {
    return coordinator_->Get(id)->state();
  }

  // A message as process `process` would send it.
  v1::WorkerMessage From(int process) {
    const WorkerCommand command = launcher_.command(process);
    v1::WorkerMessage message;
    message.set_job(command.job);
    message.set_attempt(command.attempt);
    message.set_secret(command.secret);
    return message;
  }
  void Attach(int process) {
    v1::WorkerMessage message = From(process);
    message.mutable_hello();
    ASSERT_TRUE(coordinator_->Receive(message, &link_).ok());
  }
  void Finish(int process) {
    v1::WorkerMessage message = From(process);
    message.mutable_finished()->mutable_progress()->set_total_steps(9);
    message.mutable_finished()->mutable_progress()->set_step(9);
    ASSERT_TRUE(coordinator_->Receive(message, &link_).ok());
    End(process, {});
  }
  void Fail(int process, v1::Failure::Reason reason) {
    v1::WorkerMessage message = From(process);
    message.mutable_failed()->set_reason(reason);
    message.mutable_failed()->set_message("because");
    ASSERT_TRUE(coordinator_->Receive(message, &link_).ok());
    End(process, {});
  }
  void CommitCheckpoint(int process) {
    v1::WorkerMessage message = From(process);
    message.mutable_checkpoint()->set_directory("the/checkpoint");
    ASSERT_TRUE(coordinator_->Receive(message, &link_).ok());
  }
  void End(int process, ExitStatus status) {
    launcher_.Exit(process, status);
    coordinator_->Tick();
  }

  // The states that the job's events go through.
  std::vector<v1::Job::State> History(const std::string& id) {
    std::vector<v1::Job::State> states;
    const auto events = store_->Events(id, 0, 1000);
    for (const v1::JobEvent& event : *events) {
      if (event.has_state_change()) {
        states.push_back(event.state_change().to());
      }
    }
    return states;
  }

  const std::string storage_;
  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
  FakeLauncher launcher_;
  FakeLink link_;
  std::unique_ptr<JobStore> store_;
  std::unique_ptr<Coordinator> coordinator_;
};

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_TESTING_COORDINATOR_FIXTURE_H_
