#include "trainer_service/job_store.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/base/status_macros.h"
#include "trainer_service/job_state.h"

namespace gla::trainer {
namespace {

using v1::Job;

// `job` holds the serialized message; `state` repeats a field of it for
// queries.
constexpr char kSchema[] = R"(
  CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    state INTEGER NOT NULL,
    job BLOB NOT NULL,
    secret TEXT NOT NULL,
    worker_pid INTEGER NOT NULL,
    worker_start_time INTEGER NOT NULL,
    restarts_without_progress INTEGER NOT NULL
  );
  CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, number);
  CREATE TABLE IF NOT EXISTS events (
    id TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    event BLOB NOT NULL,
    PRIMARY KEY (id, sequence)
  ) WITHOUT ROWID;
  CREATE TABLE IF NOT EXISTS requests (
    request_id TEXT PRIMARY KEY,
    id TEXT NOT NULL
  ) WITHOUT ROWID;
)";

constexpr char kColumns[] =
    "SELECT number, job, secret, worker_pid, worker_start_time, "
    "restarts_without_progress FROM jobs ";

absl::StatusOr<JobRecord> ReadRow(const SqliteStatement& row) {
  JobRecord record;
  record.number = row.IntColumn(0);
  if (!record.job.ParseFromString(row.BlobColumn(1))) {
    return absl::DataLossError(
        absl::StrCat("database: job number ", record.number, " is damaged"));
  }
  record.secret = row.BlobColumn(2);
  record.worker_pid = row.IntColumn(3);
  record.worker_start_time = row.IntColumn(4);
  record.restarts_without_progress = static_cast<int32_t>(row.IntColumn(5));
  return record;
}

absl::StatusOr<std::vector<JobRecord>> ReadRows(SqliteStatement statement) {
  std::vector<JobRecord> records;
  while (true) {
    ASSIGN_OR_RETURN(const bool more, statement.Step());
    if (!more) return records;
    ASSIGN_OR_RETURN(records.emplace_back(), ReadRow(statement));
  }
}

// The event of a state change; also sets the state and its times.
v1::JobEvent ChangeState(Job::State to, const std::string& message,
                         absl::Time now, Job* job) {
  v1::JobEvent event;
  v1::StateChange* change = event.mutable_state_change();
  change->set_from(job->state());
  change->set_to(to);
  change->set_message(message);
  job->set_state(to);
  job->set_state_message(message);
  if (to == Job::QUEUED) *job->mutable_create_time() = ToTimestamp(now);
  if (to == Job::STARTING && !job->has_start_time()) {
    *job->mutable_start_time() = ToTimestamp(now);
  }
  if (IsTerminal(to)) *job->mutable_end_time() = ToTimestamp(now);
  return event;
}

}  // namespace

std::string JobRecord::id() const {
  return std::string(absl::StripPrefix(job.name(), "jobs/"));
}

google::protobuf::Timestamp ToTimestamp(absl::Time time) {
  google::protobuf::Timestamp timestamp;
  const int64_t seconds = absl::ToUnixSeconds(time);
  timestamp.set_seconds(seconds);
  timestamp.set_nanos(static_cast<int32_t>(
      absl::ToInt64Nanoseconds(time - absl::FromUnixSeconds(seconds))));
  return timestamp;
}

absl::StatusOr<std::unique_ptr<JobStore>> JobStore::Open(
    const std::string& file) {
  ASSIGN_OR_RETURN(SqliteDatabase database, SqliteDatabase::Open(file));
  RETURN_IF_ERROR(database.Execute(kSchema));
  return std::unique_ptr<JobStore>(new JobStore(std::move(database)));
}

absl::StatusOr<JobRecord> JobStore::Create(const Job& job,
                                           const std::string& request_id,
                                           absl::Time now) {
  absl::MutexLock lock(&mutex_);
  JobRecord record;
  record.job = job;
  const v1::JobEvent event = ChangeState(Job::QUEUED, "", now, &record.job);
  std::optional<JobRecord> earlier;
  RETURN_IF_ERROR(database_.Transaction([&]() -> absl::Status {
    mutex_.AssertHeld();
    ASSIGN_OR_RETURN(earlier, FindRequestLocked(request_id));
    if (earlier.has_value()) return absl::OkStatus();
    RETURN_IF_ERROR(InsertLocked(record, request_id));
    RETURN_IF_ERROR(AppendLocked(event, now, &record));
    return SaveLocked(record);
  }));
  if (earlier.has_value()) return *earlier;
  return GetLocked(record.id());
}

absl::Status JobStore::InsertLocked(const JobRecord& record,
                                    const std::string& request_id) {
  const std::string id = record.id();
  if (GetLocked(id).ok()) {
    return absl::AlreadyExistsError(
        absl::StrCat(record.job.name(), " exists already"));
  }
  RETURN_IF_ERROR(
      database_
          .Prepare("INSERT INTO jobs (id, state, job, secret, worker_pid, "
                   "worker_start_time, restarts_without_progress) "
                   "VALUES (?, ?, ?, '', 0, 0, 0)")
          .Text(id)
          .Int(record.job.state())
          .Blob(record.job.SerializeAsString())
          .Run());
  if (request_id.empty()) return absl::OkStatus();
  return database_.Prepare("INSERT INTO requests VALUES (?, ?)")
      .Text(request_id)
      .Text(id)
      .Run();
}

absl::StatusOr<std::optional<JobRecord>> JobStore::FindRequest(
    const std::string& request_id) {
  absl::MutexLock lock(&mutex_);
  return FindRequestLocked(request_id);
}

absl::StatusOr<std::optional<JobRecord>> JobStore::FindRequestLocked(
    const std::string& request_id) {
  if (request_id.empty()) return std::nullopt;
  SqliteStatement find =
      database_.Prepare("SELECT id FROM requests WHERE request_id = ?");
  ASSIGN_OR_RETURN(const bool found, find.Text(request_id).Step());
  if (!found) return std::nullopt;
  return GetLocked(find.BlobColumn(0));
}

absl::StatusOr<JobRecord> JobStore::Get(const std::string& id) {
  absl::MutexLock lock(&mutex_);
  return GetLocked(id);
}

absl::StatusOr<JobRecord> JobStore::GetLocked(const std::string& id) {
  SqliteStatement find =
      database_.Prepare(absl::StrCat(kColumns, "WHERE id = ?"));
  ASSIGN_OR_RETURN(const bool found, find.Text(id).Step());
  if (!found) return absl::NotFoundError(absl::StrCat("no job jobs/", id));
  return ReadRow(find);
}

absl::StatusOr<std::vector<JobRecord>> JobStore::List(int64_t before,
                                                      int limit) {
  absl::MutexLock lock(&mutex_);
  return ReadRows(std::move(
      database_
          .Prepare(absl::StrCat(
              kColumns, "WHERE number < ? ORDER BY number DESC LIMIT ?"))
          .Int(before)
          .Int(limit)));
}

absl::StatusOr<std::vector<JobRecord>> JobStore::InState(Job::State state) {
  absl::MutexLock lock(&mutex_);
  return ReadRows(std::move(
      database_
          .Prepare(absl::StrCat(kColumns, "WHERE state = ? ORDER BY number"))
          .Int(state)));
}

absl::StatusOr<int64_t> JobStore::CountQueuedBefore(int64_t number) {
  absl::MutexLock lock(&mutex_);
  SqliteStatement count = database_.Prepare(
      "SELECT COUNT(*) FROM jobs WHERE state = ? AND number < ?");
  RETURN_IF_ERROR(count.Int(Job::QUEUED).Int(number).Step().status());
  return count.IntColumn(0);
}

absl::StatusOr<JobRecord> JobStore::Transition(const std::string& id,
                                               Job::State to,
                                               const std::string& message,
                                               absl::Time now, Edit edit) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(JobRecord record, GetLocked(id));
  if (!CanTransition(record.job.state(), to)) {
    return absl::FailedPreconditionError(absl::StrCat(
        record.job.name(), " is ", Job::State_Name(record.job.state()),
        " and cannot become ", Job::State_Name(to)));
  }
  edit(&record);
  const v1::JobEvent event = ChangeState(to, message, now, &record.job);
  RETURN_IF_ERROR(database_.Transaction([&]() -> absl::Status {
    mutex_.AssertHeld();
    RETURN_IF_ERROR(AppendLocked(event, now, &record));
    return SaveLocked(record);
  }));
  return record;
}

absl::StatusOr<JobRecord> JobStore::Append(const std::string& id,
                                           const v1::JobEvent& detail,
                                           absl::Time now, Edit edit) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(JobRecord record, GetLocked(id));
  edit(&record);
  RETURN_IF_ERROR(database_.Transaction([&]() -> absl::Status {
    mutex_.AssertHeld();
    RETURN_IF_ERROR(AppendLocked(detail, now, &record));
    return SaveLocked(record);
  }));
  return record;
}

absl::StatusOr<JobRecord> JobStore::Update(const std::string& id, Edit edit) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(JobRecord record, GetLocked(id));
  edit(&record);
  RETURN_IF_ERROR(SaveLocked(record));
  return record;
}

absl::StatusOr<std::vector<v1::JobEvent>> JobStore::Events(
    const std::string& id, int64_t after_sequence, int limit) {
  absl::MutexLock lock(&mutex_);
  SqliteStatement rows = database_.Prepare(
      "SELECT event FROM events WHERE id = ? AND sequence > ? "
      "ORDER BY sequence LIMIT ?");
  rows.Text(id).Int(after_sequence).Int(limit);
  std::vector<v1::JobEvent> events;
  while (true) {
    ASSIGN_OR_RETURN(const bool more, rows.Step());
    if (!more) return events;
    if (!events.emplace_back().ParseFromString(rows.BlobColumn(0))) {
      return absl::DataLossError(
          absl::StrCat("database: an event of jobs/", id, " is damaged"));
    }
  }
}

absl::Status JobStore::SaveLocked(const JobRecord& record) {
  return database_
      .Prepare(
          "UPDATE jobs SET state = ?, job = ?, secret = ?, "
          "worker_pid = ?, worker_start_time = ?, "
          "restarts_without_progress = ? WHERE id = ?")
      .Int(record.job.state())
      .Blob(record.job.SerializeAsString())
      .Text(record.secret)
      .Int(record.worker_pid)
      .Int(record.worker_start_time)
      .Int(record.restarts_without_progress)
      .Text(record.id())
      .Run();
}

absl::Status JobStore::AppendLocked(v1::JobEvent event, absl::Time now,
                                    JobRecord* record) {
  Job& job = record->job;
  job.set_last_event_sequence(job.last_event_sequence() + 1);
  event.set_sequence(job.last_event_sequence());
  event.set_attempt(job.attempt());
  *event.mutable_time() = ToTimestamp(now);
  return database_.Prepare("INSERT INTO events VALUES (?, ?, ?)")
      .Text(record->id())
      .Int(event.sequence())
      .Blob(event.SerializeAsString())
      .Run();
}

}  // namespace gla::trainer
