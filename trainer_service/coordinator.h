// The life of every job: queue, attempts, recovery. gRPC-free; train_service
// and worker_service are its two faces.
#ifndef GLA_TRAINER_SERVICE_COORDINATOR_H_
#define GLA_TRAINER_SERVICE_COORDINATOR_H_

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gla/trainer/v1/trainer.pb.h"
#include "gla/trainer/v1/worker.pb.h"
#include "trainer_service/job_store.h"
#include "trainer_service/launcher.h"

namespace gla::trainer {

// The way back to an attached worker.
class WorkerLink {
 public:
  virtual ~WorkerLink() = default;
  virtual void Send(const v1::CoordinatorMessage& message) = 0;
};

struct CoordinatorOptions {
  std::string storage;        // jobs/{id}/ lie here
  JobStore* store = nullptr;  // outlive the coordinator
  Launcher* launcher = nullptr;
  std::function<absl::Time()> now = absl::Now;
  // How long a worker that was asked to stop may take before SIGTERM, and after
  // that before SIGKILL.
  absl::Duration stop_grace = absl::Seconds(30);
  absl::Duration kill_grace = absl::Seconds(10);
};

// Runs one job at a time, first come, first served. A change is in the database
// before anyone hears of it. Thread-safe.
//
// Time-driven work happens in Tick(), which production calls from
// StartThread()'s thread and tests call by hand.
class Coordinator {
 public:
  explicit Coordinator(const CoordinatorOptions& options);
  ~Coordinator();  // kills what still runs; see Shutdown

  // Takes up what an earlier service left: unfinished jobs are recovered once
  // their old process is gone. Call once, before Tick. Workers will be told to
  // attach to `worker_service_address`.
  absl::Status Recover(const std::string& worker_service_address);
  // Does what is due; returns when to be called again at the latest.
  absl::Time Tick();
  void StartThread();
  // Asks the worker to save and stop, waits until it is gone (the thread must
  // run) and ends the streams. The job goes on at the next start. Gives up a
  // second after both graces, when the end cannot be stored: Recover will.
  void Shutdown();

  // Stores and queues a job (`job` has name and resolved spec). As
  // JobStore::Create.
  absl::StatusOr<v1::Job> Submit(const v1::Job& job,
                                 const std::string& request_id);
  absl::StatusOr<v1::Job> Get(const std::string& id);
  // FAILED_PRECONDITION: in a terminal state already.
  absl::StatusOr<v1::Job> Cancel(const std::string& id);
  // As JobStore::List, complete with progress and place in the queue.
  absl::StatusOr<std::vector<JobRecord>> List(int64_t before, int limit);

  struct News {
    v1::Job job;
    std::vector<v1::JobEvent> events;  // after the sequence number asked for
    bool more = false;                 // events beyond these are there
  };
  // Waits until the job has events after `after_sequence`, progress updated
  // after `seen`, or is in a terminal state, at most for `timeout` (then events
  // may be empty). UNAVAILABLE: the service shuts down. OUT_OF_RANGE:
  // `after_sequence` has not been reached yet.
  absl::StatusOr<News> AwaitNews(const std::string& id, int64_t after_sequence,
                                 absl::Time seen, absl::Duration timeout);

  std::string JobDirectory(const std::string& id) const;
  std::string LogFile(const std::string& id) const;

  // A message of a worker that came over `link` (which stays valid until
  // Detach). ABORTED: not from the current attempt; the worker must end.
  absl::Status Receive(const v1::WorkerMessage& message, WorkerLink* link);
  void Detach(WorkerLink* link);

 private:
  enum class Outcome { kNone, kFinished, kFailed, kStopped };

  // The process that has the device.
  struct Attempt {
    std::string id;
    int32_t number = 0;
    std::string secret;
    std::unique_ptr<WorkerProcess> process;
    std::optional<ExitStatus> exit;    // set when the process is gone
    WorkerLink* link = nullptr;        // set while attached
    bool committed = false;            // a checkpoint
    Outcome outcome = Outcome::kNone;  // what the worker said of its end
    v1::Failure failure;
    v1::Progress progress;
    absl::Time terminate_at = absl::InfiniteFuture();
    absl::Time kill_at = absl::InfiniteFuture();
  };

  absl::Time TickLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status StartNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status StartAttempt(const std::string& id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status FinishAttempt() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status HandleFailure(const JobRecord& record,
                             const v1::Failure& failure, bool committed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Recovers every job in one of these states.
  absl::Status RecoverJobs(std::initializer_list<v1::Job::State> states,
                           const std::string& why)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status RecoverJob(const JobRecord& record, const std::string& why)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AskToStop() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SignalIfOverdue() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Time NextDeadline() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Status Attach(WorkerLink* link) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status RecordCheckpoint(
      const v1::WorkerMessage::CheckpointCommitted& checkpoint)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status RecordQuarantine(const v1::WorkerMessage::Quarantined& message)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RecordProgress(const v1::Progress& progress)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Moves a job and keeps the latest progress with it.
  absl::Status Move(const std::string& id, v1::Job::State to,
                    const std::string& message, JobStore::Edit edit)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Adds what is not in the database.
  absl::StatusOr<v1::Job> Complete(const JobRecord& record)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  ExitCallback OnExit(const std::string& id, int32_t attempt);
  // Wakes the thread and everyone who waits for news.
  void Changed() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Runs(const std::string& id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return attempt_.has_value() && attempt_->id == id;
  }

  const CoordinatorOptions options_;
  absl::Mutex mutex_;
  absl::CondVar changed_;
  int64_t changes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool shutting_down_ ABSL_GUARDED_BY(mutex_) = false;
  bool stop_thread_ ABSL_GUARDED_BY(mutex_) = false;
  std::string worker_service_address_ ABSL_GUARDED_BY(mutex_);
  std::optional<Attempt> attempt_ ABSL_GUARDED_BY(mutex_);
  // When the job in RECOVERING may start again.
  absl::Time retry_at_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  std::thread thread_;
};

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_COORDINATOR_H_
