#include "trainer_service/coordinator.h"

#include <signal.h>

#include <algorithm>
#include <filesystem>
#include <random>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "glog/logging.h"
#include "kernels/base/status_macros.h"
#include "trainer_service/restart_policy.h"

namespace gla::trainer {
namespace {

using v1::Job;

constexpr absl::Duration kRetryDatabase = absl::Seconds(1);
constexpr auto kNoEdit = [](JobRecord*) {};

std::string RandomSecret() {
  std::random_device random;
  return absl::StrFormat("%08x%08x%08x%08x", random(), random(), random(),
                         random());
}

v1::Failure CrashOf(const ExitStatus& exit, int64_t step) {
  v1::Failure failure;
  failure.set_reason(v1::Failure::WORKER_CRASH);
  failure.set_message(
      exit.signal != 0
          ? absl::StrCat("the worker was killed by signal ", exit.signal)
          : absl::StrCat("the worker exited with code ", exit.exit_code,
                         " and did not say why; see the job's log"));
  failure.set_exit_code(exit.exit_code);
  failure.set_signal(exit.signal);
  failure.set_step(step);
  return failure;
}

}  // namespace

Coordinator::Coordinator(const CoordinatorOptions& options)
    : options_(options) {}

Coordinator::~Coordinator() {
  {
    absl::MutexLock lock(&mutex_);
    stop_thread_ = true;
    Changed();
  }
  if (thread_.joinable()) thread_.join();
  std::unique_ptr<WorkerProcess> process;
  {
    absl::MutexLock lock(&mutex_);
    if (attempt_.has_value()) process = std::move(attempt_->process);
  }
  // Outside the lock, which the exit callback takes.
  process.reset();
}

std::string Coordinator::JobDirectory(const std::string& id) const {
  return absl::StrCat(options_.storage, "/jobs/", id);
}

std::string Coordinator::LogFile(const std::string& id) const {
  return JobDirectory(id) + "/worker.log";
}

// --- Time --------------------------------------------------------------------

void Coordinator::StartThread() {
  thread_ = std::thread([this] {
    absl::MutexLock lock(&mutex_);
    while (!stop_thread_) {
      const int64_t seen = changes_;
      const absl::Time next = TickLocked();
      while (changes_ == seen && !changed_.WaitWithDeadline(&mutex_, next)) {
      }
    }
  });
}

absl::Time Coordinator::Tick() {
  absl::MutexLock lock(&mutex_);
  return TickLocked();
}

absl::Time Coordinator::TickLocked() {
  const absl::Status status = Advance();
  if (status.ok()) return NextDeadline();
  LOG(ERROR) << "will try again: " << status;
  return options_.now() + kRetryDatabase;
}

absl::Status Coordinator::Advance() {
  if (attempt_.has_value() && attempt_->exit.has_value()) {
    RETURN_IF_ERROR(FinishAttempt());
  }
  if (attempt_.has_value()) {
    SignalIfOverdue();
    return absl::OkStatus();
  }
  if (shutting_down_) return absl::OkStatus();
  return StartNext();
}

absl::Time Coordinator::NextDeadline() {
  if (attempt_.has_value()) {
    return std::min(attempt_->terminate_at, attempt_->kill_at);
  }
  return retry_at_ > options_.now() ? retry_at_ : absl::InfiniteFuture();
}

void Coordinator::SignalIfOverdue() {
  const absl::Time now = options_.now();
  if (now >= attempt_->kill_at) {
    attempt_->process->Signal(SIGKILL);
    attempt_->kill_at = absl::InfiniteFuture();
  }
  if (now >= attempt_->terminate_at) {
    attempt_->process->Signal(SIGTERM);
    attempt_->terminate_at = absl::InfiniteFuture();
    attempt_->kill_at = now + options_.kill_grace;
  }
}

// Without a link there is nobody to ask: a signal says the same.
void Coordinator::AskToStop() {
  const absl::Time now = options_.now();
  if (attempt_->link == nullptr) {
    attempt_->terminate_at = now;
    return;
  }
  v1::CoordinatorMessage message;
  message.mutable_stop()->set_save(true);
  attempt_->link->Send(message);
  attempt_->terminate_at = now + options_.stop_grace;
}

void Coordinator::Changed() {
  ++changes_;
  changed_.SignalAll();
}

// --- Attempts ----------------------------------------------------------------

absl::Status Coordinator::Recover(const std::string& worker_service_address) {
  absl::MutexLock lock(&mutex_);
  worker_service_address_ = worker_service_address;
  return RecoverJobs(
      {Job::STARTING, Job::RUNNING, Job::RECOVERING, Job::CANCELLING},
      "the service was restarted");
}

absl::Status Coordinator::RecoverJobs(
    std::initializer_list<v1::Job::State> states, const std::string& why) {
  std::vector<JobRecord> unfinished;
  for (Job::State state : states) {
    ASSIGN_OR_RETURN(const std::vector<JobRecord> records,
                     options_.store->InState(state));
    unfinished.insert(unfinished.end(), records.begin(), records.end());
  }
  for (const JobRecord& record : unfinished) {
    RETURN_IF_ERROR(RecoverJob(record, why));
  }
  return absl::OkStatus();
}

// The old worker noticed that its service was gone; it saves and ends by
// itself. Until it has, the device is not free.
absl::Status Coordinator::RecoverJob(const JobRecord& record,
                                     const std::string& why) {
  const std::string id = record.id();
  std::unique_ptr<WorkerProcess> process =
      options_.launcher->Adopt(record.worker_pid, record.worker_start_time,
                               OnExit(id, record.job.attempt()));
  const Job::State state = record.job.state();
  if (state == Job::STARTING || state == Job::RUNNING) {
    RETURN_IF_ERROR(Move(id, Job::RECOVERING, why, kNoEdit));
  }
  if (process != nullptr) {
    attempt_.emplace();
    attempt_->id = id;
    attempt_->number = record.job.attempt();
    attempt_->process = std::move(process);
    attempt_->progress = record.job.progress();
    attempt_->terminate_at = options_.now() + options_.stop_grace;
    return absl::OkStatus();
  }
  if (state == Job::CANCELLING) return Move(id, Job::CANCELLED, "", kNoEdit);
  return absl::OkStatus();
}

absl::Status Coordinator::StartNext() {
  // Nothing runs: a write that failed left these behind.
  RETURN_IF_ERROR(RecoverJobs({Job::STARTING, Job::RUNNING, Job::CANCELLING},
                              "no process had the job"));
  if (attempt_.has_value()) return absl::OkStatus();
  ASSIGN_OR_RETURN(std::vector<JobRecord> next,
                   options_.store->InState(Job::RECOVERING));
  if (!next.empty() && options_.now() < retry_at_) return absl::OkStatus();
  if (next.empty()) {
    ASSIGN_OR_RETURN(next, options_.store->InState(Job::QUEUED));
  }
  if (next.empty()) return absl::OkStatus();
  return StartAttempt(next.front().id());
}

absl::Status Coordinator::StartAttempt(const std::string& id) {
  const std::string secret = RandomSecret();
  JobRecord record;
  RETURN_IF_ERROR(Move(id, Job::STARTING, "", [&](JobRecord* edited) {
    edited->job.set_attempt(edited->job.attempt() + 1);
    edited->secret = secret;
    edited->worker_pid = 0;
    record = *edited;
  }));
  std::error_code error;
  std::filesystem::create_directories(JobDirectory(id), error);
  absl::StatusOr<std::unique_ptr<WorkerProcess>> process =
      options_.launcher->Start({.job = record.job.name(),
                                .attempt = record.job.attempt(),
                                .secret = secret,
                                .service_address = worker_service_address_,
                                .log_file = LogFile(id)},
                               OnExit(id, record.job.attempt()));
  if (!process.ok()) {
    v1::Failure failure;
    failure.set_reason(v1::Failure::INTERNAL);
    failure.set_message(std::string(process.status().message()));
    return HandleFailure(record, failure, /*committed=*/false);
  }
  attempt_.emplace();
  attempt_->id = id;
  attempt_->number = record.job.attempt();
  attempt_->secret = secret;
  attempt_->process = *std::move(process);
  attempt_->progress = record.job.progress();
  const int64_t pid = attempt_->process->pid();
  const int64_t start_time = attempt_->process->start_time();
  return options_.store
      ->Update(id,
               [&](JobRecord* edited) {
                 edited->worker_pid = pid;
                 edited->worker_start_time = start_time;
               })
      .status();
}

ExitCallback Coordinator::OnExit(const std::string& id, int32_t attempt) {
  return [this, id, attempt](ExitStatus exit) {
    absl::MutexLock lock(&mutex_);
    if (!Runs(id) || attempt_->number != attempt) return;
    attempt_->exit = exit;
    Changed();
  };
}

// The process is gone: what it said last, or else how it ended, decides.
absl::Status Coordinator::FinishAttempt() {
  const std::string id = attempt_->id;
  ASSIGN_OR_RETURN(const JobRecord record, options_.store->Get(id));
  const Job::State state = record.job.state();
  const Outcome outcome = attempt_->outcome;
  if (outcome == Outcome::kFinished) {
    RETURN_IF_ERROR(Move(id, Job::SUCCEEDED, "", [](JobRecord* edited) {
      edited->job.clear_failure();
    }));
  } else if (state == Job::CANCELLING) {
    RETURN_IF_ERROR(Move(id, Job::CANCELLED, "", kNoEdit));
  } else if (state == Job::RECOVERING) {
    retry_at_ = options_.now();  // an adopted process that is gone now
  } else if (outcome == Outcome::kFailed) {
    RETURN_IF_ERROR(
        HandleFailure(record, attempt_->failure, attempt_->committed));
  } else if (outcome == Outcome::kStopped || shutting_down_) {
    RETURN_IF_ERROR(
        Move(id, Job::RECOVERING, "stopped with the service", kNoEdit));
    retry_at_ = options_.now();
  } else {
    RETURN_IF_ERROR(HandleFailure(
        record, CrashOf(*attempt_->exit, attempt_->progress.step()),
        attempt_->committed));
  }
  attempt_.reset();
  Changed();
  return absl::OkStatus();
}

absl::Status Coordinator::HandleFailure(const JobRecord& record,
                                        const v1::Failure& failure,
                                        bool committed) {
  const RestartDecision decision =
      DecideRestart(failure, committed, record.restarts_without_progress,
                    record.job.spec().max_restarts_without_progress());
  const auto edit = [&](JobRecord* edited) {
    edited->restarts_without_progress = decision.restarts_without_progress;
    *edited->job.mutable_failure() = decision.failure;
  };
  if (!decision.restart) {
    return Move(record.id(), Job::FAILED, decision.failure.message(), edit);
  }
  retry_at_ = options_.now() + decision.backoff;
  return Move(record.id(), Job::RECOVERING,
              absl::StrCat(failure.message(), "; next attempt in ",
                           absl::FormatDuration(decision.backoff)),
              edit);
}

absl::Status Coordinator::Move(const std::string& id, Job::State to,
                               const std::string& message,
                               JobStore::Edit edit) {
  RETURN_IF_ERROR(options_.store
                      ->Transition(id, to, message, options_.now(),
                                   [&](JobRecord* record) {
                                     mutex_.AssertHeld();
                                     if (Runs(id)) {
                                       *record->job.mutable_progress() =
                                           attempt_->progress;
                                     }
                                     edit(record);
                                   })
                      .status());
  LOG(INFO) << "jobs/" << id << ": " << Job::State_Name(to)
            << (message.empty() ? "" : ": ") << message;
  Changed();
  return absl::OkStatus();
}

void Coordinator::Shutdown() {
  absl::MutexLock lock(&mutex_);
  shutting_down_ = true;
  if (attempt_.has_value()) AskToStop();
  Changed();
  // The last second is for the end of a killed worker to be seen and stored.
  const absl::Time deadline = absl::Now() + options_.stop_grace +
                              options_.kill_grace + absl::Seconds(1);
  while (attempt_.has_value() &&
         !changed_.WaitWithDeadline(&mutex_, deadline)) {
  }
  LOG_IF(ERROR, attempt_.has_value())
      << "jobs/" << attempt_->id << ": leaving it as it is in the database";
}

}  // namespace gla::trainer
