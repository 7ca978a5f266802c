// All jobs and what happened to them, in one SQLite file.
#ifndef GLA_TRAINER_SERVICE_JOB_STORE_H_
#define GLA_TRAINER_SERVICE_JOB_STORE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "gla/trainer/v1/trainer.pb.h"
#include "trainer_service/sqlite.h"

namespace gla::trainer {

// A job and what only the service knows of it.
struct JobRecord {
  int64_t number = 0;             // order of submission, from 1
  v1::Job job;                    // without queue_position, which is computed
  std::string secret;             // of the current attempt
  int64_t worker_pid = 0;         // 0: none was started
  int64_t worker_start_time = 0;  // of that process, clock ticks after boot
  int32_t restarts_without_progress = 0;

  // The part of job.name after "jobs/".
  std::string id() const;
};

// What a call returns is on disk: it survives kill -9 at any moment. Events of
// a job have dense sequence numbers from 1, and job.state moves only as
// job_state.h allows; both change in one transaction. Thread-safe.
class JobStore {
 public:
  // Changes fields of a record other than name, state, times of the state and
  // last_event_sequence.
  using Edit = absl::FunctionRef<void(JobRecord*)>;

  // Creates the file if needed. DATA_LOSS when it is damaged.
  static absl::StatusOr<std::unique_ptr<JobStore>> Open(
      const std::string& file);

  // Stores `job` (name and spec) in state QUEUED with its first event. When
  // `request_id` (may be empty) was used before, returns the job that it made.
  // ALREADY_EXISTS: the name is taken.
  absl::StatusOr<JobRecord> Create(const v1::Job& job,
                                   const std::string& request_id,
                                   absl::Time now);
  // The job that a request made, if any.
  absl::StatusOr<std::optional<JobRecord>> FindRequest(
      const std::string& request_id);

  absl::StatusOr<JobRecord> Get(const std::string& id);  // NOT_FOUND
  // Up to `limit` jobs with a number below `before`, newest first.
  absl::StatusOr<std::vector<JobRecord>> List(int64_t before, int limit);
  // Jobs in a state, oldest first.
  absl::StatusOr<std::vector<JobRecord>> InState(v1::Job::State state);
  // Jobs that were queued before `number` and still are.
  absl::StatusOr<int64_t> CountQueuedBefore(int64_t number);

  // Moves a job to another state, edits it and appends the event, or changes
  // nothing: FAILED_PRECONDITION when the table does not have the move.
  absl::StatusOr<JobRecord> Transition(const std::string& id, v1::Job::State to,
                                       const std::string& message,
                                       absl::Time now, Edit edit);
  // Appends an event other than a state change (`detail` has its detail set).
  absl::StatusOr<JobRecord> Append(const std::string& id,
                                   const v1::JobEvent& detail, absl::Time now,
                                   Edit edit);
  // Edits without an event.
  absl::StatusOr<JobRecord> Update(const std::string& id, Edit edit);

  // Events after a sequence number, in order, at most `limit`.
  absl::StatusOr<std::vector<v1::JobEvent>> Events(const std::string& id,
                                                   int64_t after_sequence,
                                                   int limit);

 private:
  explicit JobStore(SqliteDatabase database) : database_(std::move(database)) {}

  absl::StatusOr<JobRecord> GetLocked(const std::string& id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::optional<JobRecord>> FindRequestLocked(
      const std::string& request_id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status InsertLocked(const JobRecord& record,
                            const std::string& request_id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status SaveLocked(const JobRecord& record)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Gives the event its number and stores it; the record is saved by others.
  absl::Status AppendLocked(v1::JobEvent event, absl::Time now,
                            JobRecord* record)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Mutex mutex_;
  SqliteDatabase database_ ABSL_GUARDED_BY(mutex_);
};

// absl::Time as a protobuf timestamp.
google::protobuf::Timestamp ToTimestamp(absl::Time time);

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_JOB_STORE_H_
