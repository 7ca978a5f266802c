#include "trainer_service/train_service.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kernels/base/status_macros.h"
#include "model/checkpoint/checkpoint.h"
#include "proto/grpc_status.h"
#include "trainer_service/data/dataset.h"
#include "trainer_service/job_name.h"
#include "trainer_service/job_spec.h"
#include "trainer_service/job_state.h"
#include "trainer_service/log_reader.h"

namespace gla::trainer {
namespace {

using v1::Job;

constexpr int kDefaultPageSize = 50;
constexpr int kMaxPageSize = 1000;
// How often an idle stream looks whether its client is still there, and a
// followed log whether it grew.
constexpr absl::Duration kWatchInterval = absl::Seconds(1);
constexpr absl::Duration kLogInterval = absl::Milliseconds(200);

absl::Time UpdateTime(const Job& job) {
  const auto& time = job.progress().update_time();
  return absl::FromUnixSeconds(time.seconds()) +
         absl::Nanoseconds(time.nanos());
}

absl::Status ClientGone() { return absl::CancelledError("the client left"); }

}  // namespace

grpc::Status TrainService::CreateJob(grpc::ServerContext*,
                                     const v1::CreateJobRequest* request,
                                     Job* job) {
  absl::StatusOr<Job> created = Create(*request);
  if (!created.ok()) return ToGrpcStatus(created.status());
  *job = *std::move(created);
  return grpc::Status::OK;
}

absl::StatusOr<Job> TrainService::Create(const v1::CreateJobRequest& request) {
  ASSIGN_OR_RETURN(const auto earlier,
                   store_->FindRequest(request.request_id()));
  if (earlier.has_value()) return coordinator_->Get(earlier->id());

  if (!request.job_id().empty()) RETURN_IF_ERROR(CheckJobId(request.job_id()));
  const std::string id =
      request.job_id().empty() ? MakeJobId(absl::Now()) : request.job_id();
  ASSIGN_OR_RETURN(const std::unique_ptr<Dataset> dataset,
                   OpenDataset(request.spec()));
  Job job;
  job.set_name(absl::StrCat("jobs/", id));
  ASSIGN_OR_RETURN(*job.mutable_spec(),
                   ResolveJobSpec(request.spec(), *dataset, ThisMachine()));
  if (!request.validate_only()) {
    return coordinator_->Submit(job, request.request_id());
  }
  if (store_->Get(id).ok()) {
    return absl::AlreadyExistsError(
        absl::StrCat(job.name(), " exists already"));
  }
  return job;
}

grpc::Status TrainService::GetJob(grpc::ServerContext*,
                                  const v1::GetJobRequest* request, Job* job) {
  const absl::StatusOr<std::string> id = ParseJobName("name", request->name());
  if (!id.ok()) return ToGrpcStatus(id.status());
  absl::StatusOr<Job> found = coordinator_->Get(*id);
  if (!found.ok()) return ToGrpcStatus(found.status());
  *job = *std::move(found);
  return grpc::Status::OK;
}

grpc::Status TrainService::ListJobs(grpc::ServerContext*,
                                    const v1::ListJobsRequest* request,
                                    v1::ListJobsResponse* response) {
  return ToGrpcStatus(List(*request, response));
}

// A page token is the number of the last job of the page before.
absl::Status TrainService::List(const v1::ListJobsRequest& request,
                                v1::ListJobsResponse* response) {
  if (request.page_size() < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "page_size: want 0 to ", kMaxPageSize, ", got ", request.page_size()));
  }
  int64_t before = std::numeric_limits<int64_t>::max();
  if (!request.page_token().empty() &&
      !absl::SimpleAtoi(request.page_token(), &before)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "page_token: not one of ours: \"", request.page_token(), "\""));
  }
  const int limit = request.page_size() == 0
                        ? kDefaultPageSize
                        : std::min(request.page_size(), kMaxPageSize);
  ASSIGN_OR_RETURN(std::vector<JobRecord> records,
                   coordinator_->List(before, limit + 1));
  if (static_cast<int>(records.size()) > limit) {
    records.pop_back();
    response->set_next_page_token(absl::StrCat(records.back().number));
  }
  for (JobRecord& record : records) {
    *response->add_jobs() = std::move(record.job);
  }
  return absl::OkStatus();
}

grpc::Status TrainService::CancelJob(grpc::ServerContext*,
                                     const v1::CancelJobRequest* request,
                                     Job* job) {
  const absl::StatusOr<std::string> id = ParseJobName("name", request->name());
  if (!id.ok()) return ToGrpcStatus(id.status());
  absl::StatusOr<Job> cancelled = coordinator_->Cancel(*id);
  if (!cancelled.ok()) return ToGrpcStatus(cancelled.status());
  *job = *std::move(cancelled);
  return grpc::Status::OK;
}

grpc::Status TrainService::WatchJob(grpc::ServerContext* context,
                                    const v1::WatchJobRequest* request,
                                    grpc::ServerWriter<v1::JobEvent>* writer) {
  return ToGrpcStatus(Watch(context, *request, writer));
}

absl::Status TrainService::Watch(grpc::ServerContext* context,
                                 const v1::WatchJobRequest& request,
                                 grpc::ServerWriter<v1::JobEvent>* writer) {
  ASSIGN_OR_RETURN(const std::string id, ParseJobName("name", request.name()));
  if (request.after_sequence() < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "after_sequence: want 0 or more, got ", request.after_sequence()));
  }
  int64_t after = request.after_sequence();
  absl::Time seen = absl::InfinitePast();  // of the progress sent last
  for (bool first = true, ended = false; !ended; first = false) {
    ASSIGN_OR_RETURN(Coordinator::News news,
                     coordinator_->AwaitNews(id, after, seen, kWatchInterval));
    std::vector<v1::JobEvent> messages;
    if (news.job.has_progress() && UpdateTime(news.job) > seen) {
      seen = UpdateTime(news.job);
      v1::JobEvent& live = messages.emplace_back();
      *live.mutable_progress() = news.job.progress();
      *live.mutable_time() = news.job.progress().update_time();
      live.set_attempt(news.job.attempt());
    }
    for (v1::JobEvent& event : news.events) {
      after = event.sequence();
      messages.push_back(std::move(event));
    }
    ended = IsTerminal(news.job.state()) && !news.more;
    if (messages.empty() && (first || ended)) messages.emplace_back();
    if (first) *messages.front().mutable_job() = news.job;
    if (ended) {
      *messages.back().mutable_job() = news.job;
      messages.back().set_end_of_job(true);
    }
    for (const v1::JobEvent& message : messages) {
      if (!writer->Write(message)) return ClientGone();
    }
    if (context->IsCancelled()) return ClientGone();
  }
  return absl::OkStatus();
}

grpc::Status TrainService::StreamLogs(
    grpc::ServerContext* context, const v1::StreamLogsRequest* request,
    grpc::ServerWriter<v1::LogBatch>* writer) {
  return ToGrpcStatus(Stream(context, *request, writer));
}

absl::Status TrainService::Stream(grpc::ServerContext* context,
                                  const v1::StreamLogsRequest& request,
                                  grpc::ServerWriter<v1::LogBatch>* writer) {
  ASSIGN_OR_RETURN(const std::string id, ParseJobName("name", request.name()));
  v1::LogBatch batch;
  batch.set_next_offset(request.offset());
  while (!context->IsCancelled()) {
    // The state first: what is read after the end of a job is all there is.
    ASSIGN_OR_RETURN(const Job job, coordinator_->Get(id));
    const bool terminal = IsTerminal(job.state());
    const bool last = terminal || !request.follow();
    ASSIGN_OR_RETURN(*batch.mutable_data(),
                     ReadLog(coordinator_->LogFile(id), batch.next_offset(),
                             /*ended=*/terminal));
    if (!batch.data().empty()) {
      batch.set_next_offset(batch.next_offset() +
                            static_cast<int64_t>(batch.data().size()));
      if (!writer->Write(batch)) return ClientGone();
    } else if (last) {
      batch.set_end_of_job(terminal);
      return writer->Write(batch) ? absl::OkStatus() : ClientGone();
    } else {
      RETURN_IF_ERROR(coordinator_
                          ->AwaitNews(id, job.last_event_sequence(),
                                      absl::InfiniteFuture(), kLogInterval)
                          .status());
    }
  }
  return ClientGone();
}

grpc::Status TrainService::ListCheckpoints(
    grpc::ServerContext*, const v1::ListCheckpointsRequest* request,
    v1::ListCheckpointsResponse* response) {
  return ToGrpcStatus(Checkpoints(*request, response));
}

absl::Status TrainService::Checkpoints(
    const v1::ListCheckpointsRequest& request,
    v1::ListCheckpointsResponse* response) {
  ASSIGN_OR_RETURN(const std::string id,
                   ParseJobName("parent", request.parent()));
  RETURN_IF_ERROR(store_->Get(id).status());
  ASSIGN_OR_RETURN(
      const std::vector<std::string> directories,
      gla::ListCheckpoints(coordinator_->JobDirectory(id) + "/checkpoints"));
  for (const std::string& directory : directories) {
    // One that is just being collected or is damaged is none.
    const absl::StatusOr<gla::v1::Manifest> manifest = ReadManifest(directory);
    if (!manifest.ok()) continue;
    v1::Checkpoint* checkpoint = response->add_checkpoints();
    checkpoint->set_directory(directory);
    checkpoint->set_step(manifest->step());
    checkpoint->set_attempt(manifest->attempt());
    int64_t bytes = 0;
    for (const auto& file : manifest->files()) bytes += file.size_bytes();
    checkpoint->set_size_bytes(bytes);
    if (manifest->has_evaluation_loss()) {
      checkpoint->set_evaluation_loss(manifest->evaluation_loss());
    }
    *checkpoint->mutable_create_time() = manifest->create_time();
  }
  return absl::OkStatus();
}

}  // namespace gla::trainer
