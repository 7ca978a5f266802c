#include "trainer_service/worker.h"

#include <grpcpp/grpcpp.h>
#include <signal.h>

#include <atomic>
#include <memory>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "gla/trainer/v1/worker.grpc.pb.h"
#include "glog/logging.h"
#include "trainer_service/failure.h"
#include "trainer_service/trainer.h"

namespace gla::trainer {
namespace {

constexpr absl::Duration kHeartbeatInterval = absl::Seconds(1);

std::atomic<StopRequest> stop_request = StopRequest::kNone;
static_assert(std::atomic<StopRequest>::is_always_lock_free);

void SaveAndStop(int /*signal*/) { stop_request = StopRequest::kSaveAndStop; }

// A service that is silent for a minute (its machine is gone, it hangs) breaks
// the stream like one that ended. WorkerService's port allows such pings.
grpc::ChannelArguments Keepalive() {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 30'000);
  return arguments;
}

// The stream to the service. Two threads of its own: one reads what the service
// asks, one sends a heartbeat every second, whatever the training thread does.
class Connection : public TrainerObserver {
 public:
  explicit Connection(const WorkerOptions& options)
      : options_(options),
        stub_(v1::WorkerService::NewStub(grpc::CreateCustomChannel(
            options.service_address, grpc::InsecureChannelCredentials(),
            Keepalive()))),
        stream_(stub_->Attach(&context_)) {}
  ~Connection() override { Close(); }

  // Says hello and waits for the job. False: refused, or no service.
  bool Attach(v1::CoordinatorMessage::Start* start) {
    v1::WorkerMessage hello;
    hello.mutable_hello();
    Send(std::move(hello));
    v1::CoordinatorMessage message;
    if (!stream_->Read(&message) || !message.has_start()) return false;
    *start = message.start();
    reader_ = std::thread([this] { Listen(); });
    heart_ = std::thread([this] { Beat(); });
    return true;
  }

  void Send(v1::WorkerMessage message) ABSL_LOCKS_EXCLUDED(write_mutex_) {
    message.set_job(options_.job);
    message.set_attempt(options_.attempt);
    message.set_secret(options_.secret);
    absl::MutexLock lock(&write_mutex_);
    stream_->Write(message);  // a broken stream shows in Listen
  }

  // After this the service has received everything.
  grpc::Status Close() {
    if (closed_) return grpc::Status::OK;
    closed_ = true;
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    if (heart_.joinable()) heart_.join();
    stream_->WritesDone();
    if (reader_.joinable()) reader_.join();
    return stream_->Finish();
  }

  // TrainerObserver.
  void OnQuarantined(const std::string& directory,
                     const std::string& why) override {
    v1::WorkerMessage message;
    message.mutable_quarantined()->set_directory(directory);
    message.mutable_quarantined()->set_why(why);
    Send(std::move(message));
  }
  void OnProgress(const v1::Progress& progress) override {
    absl::MutexLock lock(&mutex_);
    progress_ = progress;
  }
  void OnCheckpoint(const CommittedCheckpoint& committed) override {
    v1::WorkerMessage message;
    message.mutable_checkpoint()->set_directory(committed.directory);
    SendHeartbeat();  // the progress that belongs to it goes first
    Send(std::move(message));
  }
  StopRequest stop_request() const override { return trainer::stop_request; }

 private:
  // The end of the stream means that the service is gone (or that we closed).
  void Listen() {
    v1::CoordinatorMessage message;
    while (stream_->Read(&message)) {
      if (!message.has_stop()) continue;
      LOG(INFO) << "asked to stop";
      trainer::stop_request = message.stop().save() ? StopRequest::kSaveAndStop
                                                    : StopRequest::kStop;
    }
    absl::MutexLock lock(&mutex_);
    if (stopping_) return;
    LOG(WARNING) << "lost the service; saving";
    trainer::stop_request = StopRequest::kSaveAndStop;
  }

  void Beat() {
    const auto stopping = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
      return stopping_;
    };
    while (true) {
      {
        absl::MutexLock lock(&mutex_);
        if (mutex_.AwaitWithTimeout(absl::Condition(&stopping),
                                    kHeartbeatInterval)) {
          return;
        }
      }
      SendHeartbeat();
    }
  }

  void SendHeartbeat() {
    v1::WorkerMessage message;
    {
      absl::MutexLock lock(&mutex_);
      *message.mutable_heartbeat()->mutable_progress() = progress_;
    }
    Send(std::move(message));
  }

  const WorkerOptions options_;
  grpc::ClientContext context_;
  const std::unique_ptr<v1::WorkerService::Stub> stub_;
  const std::unique_ptr<
      grpc::ClientReaderWriter<v1::WorkerMessage, v1::CoordinatorMessage>>
      stream_;
  absl::Mutex write_mutex_;
  absl::Mutex mutex_;
  v1::Progress progress_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread reader_, heart_;
  bool closed_ = false;
};

// Trains and returns the message that says how it ended.
v1::WorkerMessage Train(const TrainerOptions& options) {
  v1::WorkerMessage message;
  absl::StatusOr<std::unique_ptr<Trainer>> trainer = Trainer::Create(options);
  if (trainer.ok()) options.observer->OnProgress((*trainer)->progress());
  const absl::StatusOr<bool> done =
      trainer.ok() ? (*trainer)->Run() : trainer.status();
  if (!done.ok()) {
    LOG(ERROR) << done.status();
    *message.mutable_failed() = ToFailure(done.status());
    if (trainer.ok()) message.mutable_failed()->set_step((*trainer)->step());
  } else if (*done) {
    *message.mutable_finished()->mutable_progress() = (*trainer)->progress();
  } else {
    message.mutable_stopped();
  }
  return message;
}

}  // namespace

int RunWorker(const WorkerOptions& options) {
  signal(SIGTERM, SaveAndStop);
  signal(SIGINT, SaveAndStop);
  LOG(INFO) << options.job << ", attempt " << options.attempt;
  Connection connection(options);
  v1::CoordinatorMessage::Start start;
  if (connection.Attach(&start)) {
    connection.Send(Train({.spec = start.spec(),
                           .job = options.job,
                           .directory = start.job_directory(),
                           .attempt = options.attempt,
                           .must_resume = start.must_resume(),
                           .observer = &connection}));
  }
  const grpc::Status status = connection.Close();
  if (status.ok()) return 0;
  LOG(ERROR) << "the service ended the attempt: " << status.error_message();
  return 1;
}

}  // namespace gla::trainer
