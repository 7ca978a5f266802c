// TrainingJobService over gRPC: a whole server in this process, whose workers
// are clients that the test plays.
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "gla/trainer/v1/trainer.grpc.pb.h"
#include "gla/trainer/v1/worker.grpc.pb.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "trainer_service/server.h"
#include "trainer_service/testing/fake_launcher.h"
#include "trainer_service/testing/tiny_job.h"

namespace gla::trainer {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using v1::Job;

// The worker of a process that the fake launcher "started".
class FakeWorker {
 public:
  explicit FakeWorker(const WorkerCommand& command)
      : command_(command),
        stub_(v1::WorkerService::NewStub(grpc::CreateChannel(
            command.service_address, grpc::InsecureChannelCredentials()))),
        stream_(stub_->Attach(&context_)) {}

  void Send(v1::WorkerMessage message) {
    message.set_job(command_.job);
    message.set_attempt(command_.attempt);
    message.set_secret(command_.secret);
    stream_->Write(message);
  }
  v1::CoordinatorMessage Attach() {
    v1::WorkerMessage message;
    message.mutable_hello();
    Send(message);
    return Read();
  }
  v1::CoordinatorMessage Read() {
    v1::CoordinatorMessage message;
    stream_->Read(&message);
    return message;
  }
  void Report(int64_t step) {
    v1::WorkerMessage message;
    v1::Progress* progress = message.mutable_heartbeat()->mutable_progress();
    progress->set_total_steps(10);
    progress->set_step(step);
    Send(message);
  }
  grpc::Status Close() {
    stream_->WritesDone();
    Read();
    return stream_->Finish();
  }

 private:
  const WorkerCommand command_;
  grpc::ClientContext context_;
  std::unique_ptr<v1::WorkerService::Stub> stub_;
  std::unique_ptr<
      grpc::ClientReaderWriter<v1::WorkerMessage, v1::CoordinatorMessage>>
      stream_;
};

class TrainServiceTest : public testing::Test {
 protected:
  TrainServiceTest()
      : storage_(FreshFolder(absl::StrCat(
            "service-",
            testing::UnitTest::GetInstance()->current_test_info()->name()))),
        dataset_(MakeTinyDataset(storage_ + "/dataset")) {
    auto server = Server::Start({.storage = storage_ + "/trainer",
                                 .listen = "127.0.0.1:0",
                                 .launcher = &launcher_});
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = grpc::CreateChannel(absl::StrCat("127.0.0.1:", server_->port()),
                                   grpc::InsecureChannelCredentials());
    stub_ = v1::TrainingJobService::NewStub(channel_);
  }

  // Processes end while the server waits for them.
  ~TrainServiceTest() override {
    absl::Notification stopped;
    std::thread stop([&] {
      server_->Stop();
      stopped.Notify();
    });
    do {
      for (int i = 0; i < launcher_.num_processes(); ++i) launcher_.Exit(i, {});
    } while (!stopped.WaitForNotificationWithTimeout(absl::Milliseconds(5)));
    stop.join();
  }

  v1::CreateJobRequest Request(const std::string& id) {
    v1::CreateJobRequest request;
    request.set_job_id(id);
    *request.mutable_spec() = TinyJobSpec(dataset_, 10);
    return request;
  }
  grpc::Status Create(const v1::CreateJobRequest& request, Job* job) {
    grpc::ClientContext context;
    return stub_->CreateJob(&context, request, job);
  }
  void MustCreate(const std::string& id) {
    Job job;
    const grpc::Status status = Create(Request(id), &job);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  grpc::Status Get(const std::string& name, Job* job) {
    grpc::ClientContext context;
    v1::GetJobRequest request;
    request.set_name(name);
    return stub_->GetJob(&context, request, job);
  }
  grpc::Status Cancel(const std::string& name, Job* job) {
    grpc::ClientContext context;
    v1::CancelJobRequest request;
    request.set_name(name);
    return stub_->CancelJob(&context, request, job);
  }

  // All messages of a watch to its end.
  std::vector<v1::JobEvent> Watch(const std::string& name, int64_t after,
                                  grpc::Status* status) {
    grpc::ClientContext context;
    v1::WatchJobRequest request;
    request.set_name(name);
    request.set_after_sequence(after);
    const auto reader = stub_->WatchJob(&context, request);
    std::vector<v1::JobEvent> events;
    for (v1::JobEvent event; reader->Read(&event);) events.push_back(event);
    *status = reader->Finish();
    return events;
  }
  // All data of a log stream to its end, and the last message.
  std::string Logs(const std::string& name, int64_t offset, bool follow,
                   v1::LogBatch* last, grpc::Status* status) {
    grpc::ClientContext context;
    v1::StreamLogsRequest request;
    request.set_name(name);
    request.set_offset(offset);
    request.set_follow(follow);
    const auto reader = stub_->StreamLogs(&context, request);
    std::string data;
    while (reader->Read(last)) data += last->data();
    *status = reader->Finish();
    return data;
  }
  void AppendLog(const std::string& id, const std::string& text) {
    const std::string folder = storage_ + "/trainer/jobs/" + id;
    std::filesystem::create_directories(folder);
    std::ofstream(folder + "/worker.log", std::ios::app) << text;
  }

  const std::string storage_;
  const std::string dataset_;
  FakeLauncher launcher_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::TrainingJobService::Stub> stub_;
};

TEST_F(TrainServiceTest, CreateReturnsTheResolvedJob) {
  Job job;
  ASSERT_TRUE(Create(Request("one"), &job).ok());
  EXPECT_EQ(job.name(), "jobs/one");
  EXPECT_EQ(job.spec().model().vocab_size(), 256);
  EXPECT_EQ(job.spec().checkpoints().keep_latest(), 3);
  EXPECT_EQ(job.state(), Job::QUEUED);
  EXPECT_EQ(job.last_event_sequence(), 1);
  Job again;
  ASSERT_TRUE(Get("jobs/one", &again).ok());
  EXPECT_EQ(again.spec().SerializeAsString(), job.spec().SerializeAsString());
}

TEST_F(TrainServiceTest, CreateRefusesBadRequestsByName) {
  Job job;
  v1::CreateJobRequest request = Request("No Good");
  grpc::Status status = Create(request, &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("job_id"));

  request = Request("one");
  request.mutable_spec()->mutable_data()->set_sequence_length(-3);
  status = Create(request, &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(),
              HasSubstr("spec.data.sequence_length: want 1 to"));

  request = Request("one");
  request.mutable_spec()->mutable_data()->set_dataset("/nowhere");
  status = Create(request, &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(status.error_message(), HasSubstr("spec.data.dataset: "));

  MustCreate("one");
  EXPECT_EQ(Create(Request("one"), &job).error_code(),
            grpc::StatusCode::ALREADY_EXISTS);
}

TEST_F(TrainServiceTest, ValidateOnlyStoresNothing) {
  v1::CreateJobRequest request = Request("one");
  request.set_validate_only(true);
  Job job;
  ASSERT_TRUE(Create(request, &job).ok());
  EXPECT_EQ(job.spec().data().batch_sequences(), 4);
  EXPECT_EQ(Get("jobs/one", &job).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(TrainServiceTest, OneRequestIdMakesOneJob) {
  std::vector<std::thread> clients;
  std::vector<std::string> names(20);
  for (int i = 0; i < 20; ++i) {
    clients.emplace_back([this, i, &names] {
      v1::CreateJobRequest request = Request("");
      request.set_request_id("the same");
      Job job;
      EXPECT_TRUE(Create(request, &job).ok());
      names[i] = job.name();
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(std::set<std::string>(names.begin(), names.end()).size(), 1u);
  grpc::ClientContext context;
  v1::ListJobsResponse response;
  ASSERT_TRUE(stub_->ListJobs(&context, v1::ListJobsRequest(), &response).ok());
  EXPECT_EQ(response.jobs_size(), 1);
}

TEST_F(TrainServiceTest, GetNamesAJobThatIsNotThere) {
  Job job;
  grpc::Status status = Get("jobs/none", &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(status.error_message(), HasSubstr("jobs/none"));
  status = Get("none", &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("name: want jobs/{job_id}"));
}

TEST_F(TrainServiceTest, ListsNewestFirstInPages) {
  for (const char* id : {"a", "b", "c", "d", "e"}) MustCreate(id);
  std::vector<std::string> names;
  v1::ListJobsRequest request;
  request.set_page_size(2);
  int pages = 0;
  do {
    grpc::ClientContext context;
    v1::ListJobsResponse response;
    ASSERT_TRUE(stub_->ListJobs(&context, request, &response).ok());
    for (const Job& job : response.jobs()) names.push_back(job.name());
    request.set_page_token(response.next_page_token());
    ++pages;
  } while (!request.page_token().empty());
  EXPECT_EQ(pages, 3);
  EXPECT_THAT(names,
              ElementsAre("jobs/e", "jobs/d", "jobs/c", "jobs/b", "jobs/a"));
  for (bool bad_token : {true, false}) {
    request.set_page_token(bad_token ? "x" : "");
    request.set_page_size(bad_token ? 2 : -1);
    grpc::ClientContext context;
    v1::ListJobsResponse response;
    EXPECT_EQ(stub_->ListJobs(&context, request, &response).error_code(),
              grpc::StatusCode::INVALID_ARGUMENT);
  }
}

TEST_F(TrainServiceTest, AWatchTellsTheWholeLifeAndEndsExplicitly) {
  MustCreate("one");
  grpc::Status status;
  std::vector<v1::JobEvent> events;
  std::thread watcher([&] { events = Watch("jobs/one", 0, &status); });
  launcher_.AwaitProcesses(1);
  FakeWorker worker(launcher_.command(0));
  EXPECT_TRUE(worker.Attach().has_start());
  worker.Report(3);
  v1::WorkerMessage message;
  message.mutable_checkpoint()->set_directory("the/checkpoint");
  worker.Send(message);
  message.mutable_finished()->mutable_progress()->set_total_steps(10);
  message.mutable_finished()->mutable_progress()->set_step(10);
  worker.Send(message);
  EXPECT_TRUE(worker.Close().ok());
  launcher_.Exit(0, {});
  watcher.join();

  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_TRUE(events.front().has_job());
  EXPECT_TRUE(events.back().end_of_job());
  EXPECT_EQ(events.back().job().state(), Job::SUCCEEDED);
  EXPECT_EQ(events.back().job().progress().step(), 10);
  int64_t sequence = 0, last_step = 0;
  for (const v1::JobEvent& event : events) {
    if (event.sequence() != 0) {
      EXPECT_EQ(event.sequence(), ++sequence);
    } else if (event.has_progress()) {
      last_step = event.progress().step();
    }
  }
  EXPECT_EQ(sequence, 5);  // queued, starting, running, checkpoint, succeeded
  EXPECT_EQ(last_step, 10);

  // Resumed in the middle: the rest, nothing twice.
  events = Watch("jobs/one", 3, &status);
  EXPECT_TRUE(status.ok());
  std::vector<int64_t> sequences;
  for (const v1::JobEvent& event : events) {
    if (event.sequence() != 0) sequences.push_back(event.sequence());
  }
  EXPECT_THAT(sequences, ElementsAre(4, 5));
  EXPECT_TRUE(events.back().end_of_job());
  // All seen already: still an explicit end.
  events = Watch("jobs/one", 5, &status);
  EXPECT_TRUE(status.ok());
  EXPECT_TRUE(events.back().end_of_job());
  Watch("jobs/one", 6, &status);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::OUT_OF_RANGE);
  Watch("jobs/one", -1, &status);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  Watch("jobs/none", 0, &status);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(TrainServiceTest, CancelStopsARunningJob) {
  MustCreate("one");
  launcher_.AwaitProcesses(1);
  FakeWorker worker(launcher_.command(0));
  EXPECT_TRUE(worker.Attach().has_start());
  Job job;
  ASSERT_TRUE(Cancel("jobs/one", &job).ok());
  EXPECT_EQ(job.state(), Job::CANCELLING);
  EXPECT_TRUE(worker.Read().stop().save());
  v1::WorkerMessage message;
  message.mutable_stopped();
  worker.Send(message);
  EXPECT_TRUE(worker.Close().ok());
  launcher_.Exit(0, {});
  grpc::Status status;
  EXPECT_EQ(Watch("jobs/one", 0, &status).back().job().state(), Job::CANCELLED);
  EXPECT_EQ(Cancel("jobs/one", &job).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_F(TrainServiceTest, CancelEndsAQueuedJobAtOnce) {
  MustCreate("one");
  MustCreate("two");
  launcher_.AwaitProcesses(1);
  Job job;
  ASSERT_TRUE(Get("jobs/two", &job).ok());
  EXPECT_EQ(job.queue_position(), 1);
  ASSERT_TRUE(Cancel("jobs/two", &job).ok());
  EXPECT_EQ(job.state(), Job::CANCELLED);
}

TEST_F(TrainServiceTest, AWorkerWithoutTheSecretIsRefused) {
  MustCreate("one");
  launcher_.AwaitProcesses(1);
  WorkerCommand command = launcher_.command(0);
  command.secret = "guessed";
  FakeWorker worker(command);
  EXPECT_FALSE(worker.Attach().has_start());
  EXPECT_EQ(worker.Close().error_code(), grpc::StatusCode::ABORTED);
}

TEST_F(TrainServiceTest, LogsResumeByOffsetAndFollowToTheEnd) {
  MustCreate("one");
  launcher_.AwaitProcesses(1);
  AppendLog("one", "first\nsecond\nhalf");
  v1::LogBatch last;
  grpc::Status status;
  EXPECT_EQ(Logs("jobs/one", 0, /*follow=*/false, &last, &status),
            "first\nsecond\n");
  EXPECT_TRUE(status.ok());
  EXPECT_FALSE(last.end_of_job());
  EXPECT_EQ(last.next_offset(), 13);

  std::string followed;
  std::thread follower(
      [&] { followed = Logs("jobs/one", 6, /*follow=*/true, &last, &status); });
  AppendLog("one", " a line\n");
  FakeWorker worker(launcher_.command(0));
  EXPECT_TRUE(worker.Attach().has_start());
  v1::WorkerMessage message;
  message.mutable_failed()->set_reason(v1::Failure::NONFINITE);
  worker.Send(message);
  EXPECT_TRUE(worker.Close().ok());
  AppendLog("one", "last");
  launcher_.Exit(0, {});
  follower.join();
  EXPECT_EQ(followed, "second\nhalf a line\nlast");
  EXPECT_TRUE(status.ok());
  EXPECT_TRUE(last.end_of_job());

  // Of a finished job, from the start and from the end.
  EXPECT_EQ(Logs("jobs/one", 0, false, &last, &status),
            "first\nsecond\nhalf a line\nlast");
  EXPECT_TRUE(last.end_of_job());
  EXPECT_EQ(Logs("jobs/one", last.next_offset(), true, &last, &status), "");
  EXPECT_TRUE(last.end_of_job());
  Logs("jobs/one", 1000, false, &last, &status);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::OUT_OF_RANGE);
}

TEST_F(TrainServiceTest, AJobWithoutCheckpointsHasNone) {
  MustCreate("one");
  grpc::ClientContext context;
  v1::ListCheckpointsRequest request;
  request.set_parent("jobs/one");
  v1::ListCheckpointsResponse response;
  EXPECT_TRUE(stub_->ListCheckpoints(&context, request, &response).ok());
  EXPECT_EQ(response.checkpoints_size(), 0);
  request.set_parent("jobs/none");
  grpc::ClientContext second;
  EXPECT_EQ(stub_->ListCheckpoints(&second, request, &response).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST_F(TrainServiceTest, AClientThatLeavesFreesItsStream) {
  MustCreate("one");
  grpc::ClientContext context;
  v1::WatchJobRequest request;
  request.set_name("jobs/one");
  const auto reader = stub_->WatchJob(&context, request);
  v1::JobEvent event;
  ASSERT_TRUE(reader->Read(&event));
  context.TryCancel();
  while (reader->Read(&event)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

// Calls a method with raw bytes.
std::string RawCall(const std::shared_ptr<grpc::Channel>& channel,
                    const std::string& method, grpc::Status* status) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  const grpc::Slice empty;
  const grpc::ByteBuffer request(&empty, 1);
  grpc::ByteBuffer response;
  absl::Notification done;
  stub.UnaryCall(&context, method, grpc::StubOptions(), &request, &response,
                 [&](grpc::Status result) {
                   *status = result;
                   done.Notify();
                 });
  done.WaitForNotification();
  grpc::Slice slice;
  if (!response.DumpToSingleSlice(&slice).ok()) return "";
  return std::string(reinterpret_cast<const char*>(slice.begin()),
                     slice.size());
}

TEST_F(TrainServiceTest, AnswersHealthChecks) {
  grpc::Status status;
  // HealthCheckResponse{status: SERVING}.
  EXPECT_EQ(RawCall(channel_, "/grpc.health.v1.Health/Check", &status),
            std::string("\x08\x01"));
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_F(TrainServiceTest, NamesAPortThatIsInUse) {
  const auto second =
      Server::Start({.storage = storage_ + "/other",
                     .listen = absl::StrCat("127.0.0.1:", server_->port()),
                     .launcher = &launcher_});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr(absl::StrCat("127.0.0.1:", server_->port())));
}

TEST_F(TrainServiceTest, RefusesASecondServiceOnTheSameStorage) {
  const auto second = Server::Start({.storage = storage_ + "/trainer",
                                     .listen = "127.0.0.1:0",
                                     .launcher = &launcher_});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr(storage_ + "/trainer"));
}

}  // namespace
}  // namespace gla::trainer
