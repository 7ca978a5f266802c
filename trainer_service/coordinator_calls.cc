// What clients and workers ask of the coordinator; coordinator.cc has what time
// and processes bring.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "glog/logging.h"
#include "kernels/base/status_macros.h"
#include "model/checkpoint/checkpoint.h"
#include "trainer_service/coordinator.h"
#include "trainer_service/job_state.h"

namespace gla::trainer {
namespace {

using v1::Job;

constexpr int kEventsAtOnce = 1000;
constexpr auto kNoEdit = [](JobRecord*) {};

absl::Time FromTimestamp(const google::protobuf::Timestamp& timestamp) {
  return absl::FromUnixSeconds(timestamp.seconds()) +
         absl::Nanoseconds(timestamp.nanos());
}

}  // namespace

// --- Workers -----------------------------------------------------------------

absl::Status Coordinator::Receive(const v1::WorkerMessage& message,
                                  WorkerLink* link) {
  absl::MutexLock lock(&mutex_);
  if (!attempt_.has_value() || message.secret().empty() ||
      absl::StrCat("jobs/", attempt_->id) != message.job() ||
      attempt_->number != message.attempt() ||
      attempt_->secret != message.secret()) {
    return absl::AbortedError(absl::StrCat("attempt ", message.attempt(),
                                           " of ", message.job(),
                                           " is not the current one"));
  }
  if (!message.has_hello() && attempt_->link != link) {
    return absl::AbortedError(absl::StrCat(
        message.job(), ": a worker says hello before anything else"));
  }
  switch (message.body_case()) {
    case v1::WorkerMessage::kHello:
      return Attach(link);
    case v1::WorkerMessage::kHeartbeat:
      RecordProgress(message.heartbeat().progress());
      return absl::OkStatus();
    case v1::WorkerMessage::kCheckpoint:
      return RecordCheckpoint(message.checkpoint());
    case v1::WorkerMessage::kQuarantined:
      return RecordQuarantine(message.quarantined());
    case v1::WorkerMessage::kFinished:
      RecordProgress(message.finished().progress());
      attempt_->outcome = Outcome::kFinished;
      return absl::OkStatus();
    case v1::WorkerMessage::kFailed:
      attempt_->outcome = Outcome::kFailed;
      attempt_->failure = message.failed();
      return absl::OkStatus();
    case v1::WorkerMessage::kStopped:
      attempt_->outcome = Outcome::kStopped;
      return absl::OkStatus();
    case v1::WorkerMessage::BODY_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("a worker message without a body");
}

absl::Status Coordinator::Attach(WorkerLink* link) {
  ASSIGN_OR_RETURN(const JobRecord record, options_.store->Get(attempt_->id));
  if (record.job.state() == Job::CANCELLING || shutting_down_) {
    return absl::CancelledError(
        absl::StrCat(record.job.name(), " is to stop before it starts"));
  }
  if (record.job.state() != Job::STARTING) {
    return absl::AbortedError(
        absl::StrCat(record.job.name(), " has a worker already"));
  }
  RETURN_IF_ERROR(Move(attempt_->id, Job::RUNNING, "", kNoEdit));
  attempt_->link = link;
  v1::CoordinatorMessage message;
  v1::CoordinatorMessage::Start* start = message.mutable_start();
  *start->mutable_spec() = record.job.spec();
  start->set_job_directory(JobDirectory(attempt_->id));
  start->set_must_resume(!record.job.latest_checkpoint().empty());
  link->Send(message);
  return absl::OkStatus();
}

void Coordinator::Detach(WorkerLink* link) {
  absl::MutexLock lock(&mutex_);
  if (attempt_.has_value() && attempt_->link == link) attempt_->link = nullptr;
}

void Coordinator::RecordProgress(const v1::Progress& progress) {
  if (progress.total_steps() == 0) return;  // nothing known yet
  attempt_->progress = progress;
  *attempt_->progress.mutable_update_time() = ToTimestamp(options_.now());
  Changed();
}

absl::Status Coordinator::RecordCheckpoint(
    const v1::WorkerMessage::CheckpointCommitted& checkpoint) {
  ASSIGN_OR_RETURN(const JobRecord record, options_.store->Get(attempt_->id));
  // A worker also tells what it resumed from, which is known but when the
  // attempt that committed it could not tell.
  if (checkpoint.directory() == record.job.latest_checkpoint()) {
    return absl::OkStatus();
  }
  v1::JobEvent event;
  event.set_checkpoint_committed(checkpoint.directory());
  RETURN_IF_ERROR(
      options_.store
          ->Append(attempt_->id, event, options_.now(),
                   [&](JobRecord* edited) {
                     mutex_.AssertHeld();
                     edited->job.set_latest_checkpoint(checkpoint.directory());
                     *edited->job.mutable_progress() = attempt_->progress;
                     edited->restarts_without_progress = 0;
                   })
          .status());
  attempt_->committed = true;
  Changed();
  return absl::OkStatus();
}

absl::Status Coordinator::RecordQuarantine(
    const v1::WorkerMessage::Quarantined& message) {
  LOG(WARNING) << message.directory() << ": " << message.why();
  v1::JobEvent event;
  event.set_checkpoint_quarantined(message.directory());
  ASSIGN_OR_RETURN(
      const std::vector<std::string> left,
      ListCheckpoints(JobDirectory(attempt_->id) + "/checkpoints"));
  RETURN_IF_ERROR(options_.store
                      ->Append(attempt_->id, event, options_.now(),
                               [&](JobRecord* record) {
                                 // Never empty again: see must_resume.
                                 if (!left.empty()) {
                                   record->job.set_latest_checkpoint(
                                       left.back());
                                 }
                               })
                      .status());
  Changed();
  return absl::OkStatus();
}

// --- Jobs --------------------------------------------------------------------

absl::StatusOr<Job> Coordinator::Submit(const Job& job,
                                        const std::string& request_id) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(const JobRecord record,
                   options_.store->Create(job, request_id, options_.now()));
  Changed();
  return Complete(record);
}

absl::StatusOr<Job> Coordinator::Get(const std::string& id) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(const JobRecord record, options_.store->Get(id));
  return Complete(record);
}

absl::StatusOr<std::vector<JobRecord>> Coordinator::List(int64_t before,
                                                         int limit) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(std::vector<JobRecord> records,
                   options_.store->List(before, limit));
  for (JobRecord& record : records) {
    ASSIGN_OR_RETURN(record.job, Complete(record));
  }
  return records;
}

absl::StatusOr<Job> Coordinator::Complete(const JobRecord& record) {
  Job job = record.job;
  if (Runs(record.id()) && !IsTerminal(job.state())) {
    *job.mutable_progress() = attempt_->progress;
  }
  if (job.state() == Job::QUEUED) {
    ASSIGN_OR_RETURN(const int64_t before,
                     options_.store->CountQueuedBefore(record.number));
    job.set_queue_position(static_cast<int32_t>(before + 1));
  }
  return job;
}

absl::StatusOr<Job> Coordinator::Cancel(const std::string& id) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(JobRecord record, options_.store->Get(id));
  const Job::State state = record.job.state();
  if (IsTerminal(state)) {
    return absl::FailedPreconditionError(
        absl::StrCat(record.job.name(), " is ", Job::State_Name(state)));
  }
  if (state == Job::QUEUED) {
    RETURN_IF_ERROR(Move(id, Job::CANCELLED, "", kNoEdit));
  } else if (state != Job::CANCELLING) {
    RETURN_IF_ERROR(Move(id, Job::CANCELLING, "", kNoEdit));
    if (Runs(id)) {
      AskToStop();
    } else {
      RETURN_IF_ERROR(Move(id, Job::CANCELLED, "", kNoEdit));
    }
  }
  ASSIGN_OR_RETURN(record, options_.store->Get(id));
  return Complete(record);
}

absl::StatusOr<Coordinator::News> Coordinator::AwaitNews(
    const std::string& id, int64_t after_sequence, absl::Time seen,
    absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  absl::MutexLock lock(&mutex_);
  for (bool expired = false; !shutting_down_;) {
    ASSIGN_OR_RETURN(const JobRecord record, options_.store->Get(id));
    News news;
    ASSIGN_OR_RETURN(news.job, Complete(record));
    const int64_t last = news.job.last_event_sequence();
    if (after_sequence > last) {
      return absl::OutOfRangeError(absl::StrCat(
          "after_sequence ", after_sequence, " is beyond the last event ", last,
          " of ", news.job.name()));
    }
    if (last > after_sequence) {
      ASSIGN_OR_RETURN(news.events, options_.store->Events(id, after_sequence,
                                                           kEventsAtOnce));
      news.more = news.events.back().sequence() < last;
    }
    if (expired || !news.events.empty() || IsTerminal(news.job.state()) ||
        FromTimestamp(news.job.progress().update_time()) > seen) {
      return news;
    }
    const int64_t changes = changes_;
    while (changes_ == changes && !expired) {
      expired = changed_.WaitWithDeadline(&mutex_, deadline);
    }
  }
  return absl::UnavailableError("the trainer service is shutting down");
}

}  // namespace gla::trainer
