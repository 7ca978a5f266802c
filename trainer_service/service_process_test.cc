// The two binaries as they are shipped: real processes, killed in earnest.
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gla/trainer/v1/trainer.grpc.pb.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "trainer_service/job_store.h"
#include "trainer_service/local_launcher.h"
#include "trainer_service/testing/tiny_job.h"

namespace gla::trainer {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;
using v1::Job;

// Enough that a job is far from its end when its first checkpoint is seen.
constexpr int kManySteps = 1000;

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string((std::istreambuf_iterator<char>(file)),
                     std::istreambuf_iterator<char>());
}

// A gla_trainer process.
class ServiceProcess {
 public:
  ServiceProcess(const std::string& folder, std::vector<std::string> flags)
      : output_(folder + "/service.log") {
    flags.insert(flags.begin(), "trainer_service/gla_trainer");
    std::vector<char*> arguments;
    for (std::string& flag : flags) arguments.push_back(flag.data());
    arguments.push_back(nullptr);
    pid_ = fork();
    if (pid_ == 0) {
      if (freopen(output_.c_str(), "a", stderr) == nullptr) _exit(126);
      execv(arguments[0], arguments.data());
      _exit(127);
    }
  }
  ~ServiceProcess() {
    if (pid_ > 0) Signal(SIGKILL);
  }

  pid_t pid() const { return pid_; }
  // Sends a signal, if any, and waits for the end: exit code, or -signal.
  int Signal(int signal) {
    if (signal != 0) kill(pid_, signal);
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
  }
  std::string output() const { return ReadFile(output_); }

 private:
  const std::string output_;
  pid_t pid_;
};

class ServiceProcessTest : public testing::Test {
 protected:
  ServiceProcessTest()
      : folder_(FreshFolder(absl::StrCat(
            "process-",
            testing::UnitTest::GetInstance()->current_test_info()->name()))),
        dataset_(MakeTinyDataset(folder_ + "/dataset")) {}

  void StartService() {
    const std::string port_file = folder_ + "/port";
    std::filesystem::remove(port_file);
    service_ = std::make_unique<ServiceProcess>(
        folder_,
        std::vector<std::string>{absl::StrCat("--storage=", folder_, "/s"),
                                 absl::StrCat("--port_file=", port_file)});
    while (!std::filesystem::exists(port_file)) {
      ASSERT_EQ(waitpid(service_->pid(), nullptr, WNOHANG), 0)
          << service_->output();
      absl::SleepFor(absl::Milliseconds(5));
    }
    stub_ = v1::TrainingJobService::NewStub(grpc::CreateChannel(
        absl::StrCat("127.0.0.1:", std::stoi(ReadFile(port_file))),
        grpc::InsecureChannelCredentials()));
  }

  void Submit(const std::string& id, int steps) {
    v1::CreateJobRequest request;
    request.set_job_id(id);
    *request.mutable_spec() = TinyJobSpec(dataset_, steps);
    request.mutable_spec()->mutable_checkpoints()->set_every_steps(20);
    grpc::ClientContext context;
    Job job;
    const grpc::Status status = stub_->CreateJob(&context, request, &job);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }

  // Follows a job to its end or, if asked, to its first checkpoint after event
  // `after`. Returns the last message.
  v1::JobEvent Follow(const std::string& id, int64_t after,
                      bool to_checkpoint) {
    grpc::ClientContext context;
    v1::WatchJobRequest request;
    request.set_name("jobs/" + id);
    request.set_after_sequence(after);
    const auto reader = stub_->WatchJob(&context, request);
    v1::JobEvent event;
    while (reader->Read(&event)) {
      if (event.end_of_job()) break;
      if (to_checkpoint && !event.checkpoint_committed().empty()) break;
    }
    context.TryCancel();
    return event;
  }

  // The final weights of a job that has ended well.
  std::string FinalWeights(const std::string& id, int steps) {
    const Job job = Follow(id, 0, /*to_checkpoint=*/false).job();
    EXPECT_EQ(job.state(), Job::SUCCEEDED) << job.failure().message();
    EXPECT_EQ(job.progress().step(), steps);
    return ReadFile(job.latest_checkpoint() + "/model.safetensors");
  }

  JobRecord Record(const std::string& id) {
    return *(*JobStore::Open(folder_ + "/s/jobs.db"))->Get(id);
  }
  void ExpectDenseEvents(const std::string& id) {
    const auto store = *JobStore::Open(folder_ + "/s/jobs.db");
    int64_t sequence = 0;
    const auto events = store->Events(id, 0, 1000);
    for (const v1::JobEvent& event : *events) {
      EXPECT_EQ(event.sequence(), ++sequence);
    }
  }

  const std::string folder_;
  const std::string dataset_;
  std::unique_ptr<ServiceProcess> service_;
  std::unique_ptr<v1::TrainingJobService::Stub> stub_;
};

TEST_F(ServiceProcessTest, TrainsToTheEnd) {
  StartService();
  Submit("plain", 30);
  EXPECT_GT(FinalWeights("plain", 30).size(), 1000u);
  grpc::ClientContext context;
  v1::ListCheckpointsRequest request;
  request.set_parent("jobs/plain");
  v1::ListCheckpointsResponse response;
  ASSERT_TRUE(stub_->ListCheckpoints(&context, request, &response).ok());
  ASSERT_EQ(response.checkpoints_size(), 2);
  EXPECT_EQ(response.checkpoints(0).step(), 20);
  EXPECT_EQ(response.checkpoints(1).step(), 30);
  EXPECT_TRUE(response.checkpoints(1).has_evaluation_loss());
  EXPECT_GT(response.checkpoints(1).size_bytes(), 1000);
  EXPECT_EQ(response.checkpoints(1).attempt(), 1);

  grpc::ClientContext log_context;
  v1::StreamLogsRequest logs;
  logs.set_name("jobs/plain");
  const auto reader = stub_->StreamLogs(&log_context, logs);
  std::string log;
  for (v1::LogBatch batch; reader->Read(&batch);) log += batch.data();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_THAT(log, HasSubstr("step 30/30: loss"));
  EXPECT_EQ(service_->Signal(SIGTERM), 0) << service_->output();
}

TEST_F(ServiceProcessTest, AKilledWorkerContinuesFromItsLastCheckpoint) {
  StartService();
  Submit("plain", kManySteps);
  Submit("killed", kManySteps);
  const std::string plain = FinalWeights("plain", kManySteps);
  Follow("killed", 0, /*to_checkpoint=*/true);
  const int64_t worker_pid = Record("killed").worker_pid;
  ASSERT_GT(worker_pid, 0);
  kill(static_cast<pid_t>(worker_pid), SIGKILL);
  EXPECT_EQ(FinalWeights("killed", kManySteps), plain);
  EXPECT_EQ(Record("killed").job.attempt(), 2);
  ExpectDenseEvents("killed");
}

TEST_F(ServiceProcessTest, AKilledServiceGoesOnWhenItIsBack) {
  StartService();
  Submit("plain", kManySteps);
  const std::string plain = FinalWeights("plain", kManySteps);
  Submit("orphan", kManySteps);
  Follow("orphan", 0, /*to_checkpoint=*/true);
  const JobRecord before = Record("orphan");
  EXPECT_EQ(service_->Signal(SIGKILL), -SIGKILL);
  StartService();
  EXPECT_EQ(FinalWeights("orphan", kManySteps), plain);
  EXPECT_EQ(Record("orphan").job.attempt(), 2);
  EXPECT_NE(ProcessStartTime(before.worker_pid), before.worker_start_time);
  ExpectDenseEvents("orphan");
}

TEST_F(ServiceProcessTest, AWorkerThatLosesItsServiceSavesAndEnds) {
  StartService();
  Submit("orphan", 1000000);
  Follow("orphan", 0, /*to_checkpoint=*/true);
  EXPECT_EQ(service_->Signal(SIGKILL), -SIGKILL);
  const JobRecord record = Record("orphan");
  EXPECT_EQ(record.job.state(), Job::RUNNING);
  while (ProcessStartTime(record.worker_pid) == record.worker_start_time) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  EXPECT_THAT(ReadFile(folder_ + "/s/jobs/orphan/worker.log"),
              AllOf(HasSubstr("lost the service; saving"),
                    HasSubstr("stopped at step ")));
}

TEST_F(ServiceProcessTest, ATerminatedServiceSavesAndLeavesNoProcess) {
  StartService();
  Submit("paused", 2000);
  Follow("paused", 0, /*to_checkpoint=*/true);
  const JobRecord running = Record("paused");
  EXPECT_EQ(service_->Signal(SIGTERM), 0) << service_->output();
  EXPECT_NE(ProcessStartTime(running.worker_pid), running.worker_start_time);
  const JobRecord paused = Record("paused");
  EXPECT_EQ(paused.job.state(), Job::RECOVERING);
  EXPECT_TRUE(std::filesystem::exists(paused.job.latest_checkpoint()));
  StartService();
  Follow("paused", paused.job.last_event_sequence(), /*to_checkpoint=*/true);
  grpc::ClientContext context;
  v1::CancelJobRequest request;
  request.set_name("jobs/paused");
  Job job;
  ASSERT_TRUE(stub_->CancelJob(&context, request, &job).ok());
  EXPECT_EQ(Follow("paused", 0, false).job().state(), Job::CANCELLED);
}

TEST_F(ServiceProcessTest, ASecondSignalEndsItAtOnce) {
  StartService();
  Submit("stuck", 1000000);
  Follow("stuck", 0, /*to_checkpoint=*/true);
  const JobRecord record = Record("stuck");
  ASSERT_GT(record.worker_pid, 0);
  const auto worker = static_cast<pid_t>(record.worker_pid);
  kill(worker, SIGSTOP);  // it will not stop as it is asked to
  kill(service_->pid(), SIGTERM);
  while (service_->output().find("] stopping") == std::string::npos) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  EXPECT_EQ(service_->Signal(SIGTERM), -SIGTERM);
  kill(worker, SIGCONT);
  while (ProcessStartTime(worker) == record.worker_start_time) {
    absl::SleepFor(absl::Milliseconds(5));
  }
}

TEST_F(ServiceProcessTest, SaysInOneLineWhyItCannotStart) {
  StartService();
  const int port = std::stoi(ReadFile(folder_ + "/port"));
  std::ofstream(folder_ + "/file") << "not a folder";
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{}, "--storage"},
      {{absl::StrCat("--storage=", folder_, "/other"),
        absl::StrCat("--listen=127.0.0.1:", port)},
       absl::StrCat("127.0.0.1:", port)},
      {{absl::StrCat("--storage=", folder_, "/file/s")},
       absl::StrCat("storage folder ", folder_, "/file/s")},
      {{absl::StrCat("--storage=", folder_, "/s")},
       "in use by another trainer service"}};
  for (const auto& [flags, message] : cases) {
    const std::string folder = FreshFolder("process-start");
    ServiceProcess failing(folder, flags);
    EXPECT_EQ(failing.Signal(0), 1);
    EXPECT_THAT(failing.output(),
                AllOf(StartsWith("gla_trainer: "), HasSubstr(message)));
    EXPECT_EQ(failing.output().find('\n'), failing.output().size() - 1);
  }
}

}  // namespace
}  // namespace gla::trainer
