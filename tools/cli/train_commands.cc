#include "tools/cli/train_commands.h"

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <memory>
#include <random>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "gla/trainer/v1/trainer.grpc.pb.h"
#include "kernels/base/status_macros.h"
#include "proto/grpc_status.h"
#include "tools/cli/job_file.h"
#include "tools/cli/job_watcher.h"
#include "tools/cli/print.h"

namespace gla::cli {
namespace {

using trainer::v1::Job;
using trainer::v1::TrainingJobService;

constexpr absl::Duration kUnaryDeadline = absl::Seconds(30);
constexpr absl::Duration kReconnectFor = absl::Seconds(30);

Flag ServerFlag() {
  const char* address = getenv("GLA_TRAINER");
  return {"server", "ADDRESS", address == nullptr ? "127.0.0.1:7070" : address,
          "trainer service; the variable GLA_TRAINER sets another default"};
}
Flag OutputFlag() {
  return {"output", "text|json", "text", "form of the result"};
}

std::unique_ptr<TrainingJobService::Stub> Connect(const Arguments& arguments) {
  return TrainingJobService::NewStub(grpc::CreateChannel(
      arguments.Get("server"), grpc::InsecureChannelCredentials()));
}

std::string JobName(const std::string& word) {
  return absl::StartsWith(word, "jobs/") ? word : absl::StrCat("jobs/", word);
}

// Calls a unary method with a deadline.
template <typename Method, typename Request, typename Response>
absl::Status Call(TrainingJobService::Stub& stub, Method method,
                  const Request& request, Response* response) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kUnaryDeadline));
  return FromGrpcStatus((stub.*method)(&context, request, response));
}

std::string RandomRequestId() {
  std::random_device random;
  return absl::StrFormat("%08x%08x%08x%08x", random(), random(), random(),
                         random());
}

void PrintJob(const Job& job, bool json) {
  if (json) {
    PrintJson(job);
    return;
  }
  std::cout << job.name() << "  " << Job::State_Name(job.state());
  if (job.queue_position() > 0) {
    std::cout << "  place " << job.queue_position() << " in the queue";
  }
  if (job.progress().step() > 0) {
    std::cout << "  " << ProgressLine(job.progress());
  }
  if (!job.state_message().empty()) std::cout << "  " << job.state_message();
  if (!job.latest_checkpoint().empty()) {
    std::cout << "\n  checkpoint " << job.latest_checkpoint();
  }
  std::cout << std::endl;
}

// Follows the job to its end, over lost connections.
absl::Status WatchToTheEnd(TrainingJobService::Stub& stub,
                           const std::string& name, int64_t after,
                           const Arguments& arguments, ExitCode* exit_code) {
  JobWatcher watcher(isatty(STDOUT_FILENO) != 0, arguments.json());
  absl::Time last_heard = absl::Now();
  while (true) {
    trainer::v1::WatchJobRequest request;
    request.set_name(name);
    request.set_after_sequence(std::max(after, watcher.last_sequence()));
    grpc::ClientContext context;
    const auto reader = stub.WatchJob(&context, request);
    trainer::v1::JobEvent event;
    while (reader->Read(&event)) {
      last_heard = absl::Now();
      watcher.Show(event, last_heard);
    }
    const absl::Status status = FromGrpcStatus(reader->Finish());
    if (watcher.ended()) {
      *exit_code = ExitCodeOf(watcher.job().state());
      return absl::OkStatus();
    }
    if (!status.ok() && !absl::IsUnavailable(status)) return status;
    if (absl::Now() - last_heard > kReconnectFor) {
      return absl::UnavailableError(absl::StrCat(
          "lost the trainer service before the end of ", name, ": ",
          status.message(), "; the job may still run: gla train watch ", name));
    }
    absl::SleepFor(absl::Milliseconds(500));
  }
}

absl::Status Submit(const Arguments& arguments, ExitCode* exit_code) {
  trainer::v1::CreateJobRequest request;
  ASSIGN_OR_RETURN(*request.mutable_spec(),
                   ReadJobFile(arguments.positional[0]));
  request.set_job_id(arguments.Get("id"));
  request.set_validate_only(arguments.Has("validate_only"));
  request.set_request_id(arguments.Has("request_id")
                             ? arguments.Get("request_id")
                             : RandomRequestId());
  const auto stub = Connect(arguments);
  Job job;
  RETURN_IF_ERROR(
      Call(*stub, &TrainingJobService::Stub::CreateJob, request, &job));
  if (request.validate_only()) {
    if (arguments.json()) {
      PrintJson(job);
    } else {
      std::cout << "valid; as it would run:\n" << job.spec().DebugString();
    }
    return absl::OkStatus();
  }
  if (!arguments.Has("watch")) {
    PrintJob(job, arguments.json());
    return absl::OkStatus();
  }
  if (!arguments.json()) std::cout << job.name() << std::endl;
  return WatchToTheEnd(*stub, job.name(), 0, arguments, exit_code);
}

absl::Status List(const Arguments& arguments, ExitCode*) {
  const auto stub = Connect(arguments);
  trainer::v1::ListJobsRequest request;
  do {
    trainer::v1::ListJobsResponse response;
    RETURN_IF_ERROR(
        Call(*stub, &TrainingJobService::Stub::ListJobs, request, &response));
    for (const Job& job : response.jobs()) PrintJob(job, arguments.json());
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty());
  return absl::OkStatus();
}

absl::Status Get(const Arguments& arguments, ExitCode*) {
  trainer::v1::GetJobRequest request;
  request.set_name(JobName(arguments.positional[0]));
  Job job;
  RETURN_IF_ERROR(Call(*Connect(arguments), &TrainingJobService::Stub::GetJob,
                       request, &job));
  PrintJob(job, arguments.json());
  if (!arguments.json()) std::cout << job.spec().DebugString();
  return absl::OkStatus();
}

absl::Status Watch(const Arguments& arguments, ExitCode* exit_code) {
  ASSIGN_OR_RETURN(const int64_t after, arguments.GetInt("after"));
  return WatchToTheEnd(*Connect(arguments), JobName(arguments.positional[0]),
                       after, arguments, exit_code);
}

absl::Status Logs(const Arguments& arguments, ExitCode*) {
  trainer::v1::StreamLogsRequest request;
  request.set_name(JobName(arguments.positional[0]));
  request.set_follow(arguments.Has("follow"));
  ASSIGN_OR_RETURN(const int64_t offset, arguments.GetInt("offset"));
  request.set_offset(offset);
  const auto stub = Connect(arguments);
  grpc::ClientContext context;
  const auto reader = stub->StreamLogs(&context, request);
  trainer::v1::LogBatch batch;
  while (reader->Read(&batch)) {
    if (arguments.json()) {
      PrintJson(batch);
    } else {
      std::cout << batch.data() << std::flush;
    }
  }
  return FromGrpcStatus(reader->Finish());
}

absl::Status Cancel(const Arguments& arguments, ExitCode*) {
  trainer::v1::CancelJobRequest request;
  request.set_name(JobName(arguments.positional[0]));
  Job job;
  RETURN_IF_ERROR(Call(*Connect(arguments),
                       &TrainingJobService::Stub::CancelJob, request, &job));
  PrintJob(job, arguments.json());
  return absl::OkStatus();
}

absl::Status Checkpoints(const Arguments& arguments, ExitCode*) {
  trainer::v1::ListCheckpointsRequest request;
  request.set_parent(JobName(arguments.positional[0]));
  trainer::v1::ListCheckpointsResponse response;
  RETURN_IF_ERROR(Call(*Connect(arguments),
                       &TrainingJobService::Stub::ListCheckpoints, request,
                       &response));
  for (const auto& checkpoint : response.checkpoints()) {
    if (arguments.json()) {
      PrintJson(checkpoint);
      continue;
    }
    std::cout << "step " << checkpoint.step() << "  "
              << FormatCount(checkpoint.size_bytes()) << "B";
    if (checkpoint.has_evaluation_loss()) {
      std::cout << absl::StrFormat("  validation loss %.4f",
                                   checkpoint.evaluation_loss());
    }
    std::cout << "  " << checkpoint.directory() << std::endl;
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<Command> TrainCommands() {
  const Flag server = ServerFlag(), output = OutputFlag();
  return {
      {.verb = "train submit",
       .arguments = "JOB.textproto",
       .min_positional = 1,
       .max_positional = 1,
       .summary = "queue a training job",
       .flags = {{"watch", "", "", "follow the job to its end"},
                 {"id", "ID", "", "name the job; else the service does"},
                 {"request_id", "ID", "", "a repeat returns the same job"},
                 {"validate_only", "", "",
                  "check and show the job; run nothing"},
                 server,
                 output},
       .example = "gla train submit job.textproto --watch",
       .run = Submit},
      {.verb = "train list",
       .summary = "all jobs, newest first",
       .flags = {server, output},
       .example = "gla train list --output=json",
       .run = List},
      {.verb = "train get",
       .arguments = "JOB",
       .min_positional = 1,
       .max_positional = 1,
       .summary = "one job, with the spec it runs",
       .flags = {server, output},
       .example = "gla train get my-job",
       .run = Get},
      {.verb = "train watch",
       .arguments = "JOB",
       .min_positional = 1,
       .max_positional = 1,
       .summary = "follow a job to its end",
       .flags = {{"after", "N", "0", "skip events up to this sequence number"},
                 server,
                 output},
       .example = "gla train watch my-job",
       .run = Watch},
      {.verb = "train logs",
       .arguments = "JOB",
       .min_positional = 1,
       .max_positional = 1,
       .summary = "the log of a job's workers",
       .flags = {{"follow", "", "", "wait for more until the job ends"},
                 {"offset", "BYTES", "0", "skip what was seen already"},
                 server,
                 output},
       .example = "gla train logs my-job --follow",
       .run = Logs},
      {.verb = "train cancel",
       .arguments = "JOB",
       .min_positional = 1,
       .max_positional = 1,
       .summary = "stop a job; its last checkpoint stays",
       .flags = {server, output},
       .example = "gla train cancel my-job",
       .run = Cancel},
      {.verb = "train checkpoints",
       .arguments = "JOB",
       .min_positional = 1,
       .max_positional = 1,
       .summary = "committed checkpoints of a job",
       .flags = {server, output},
       .example = "gla train checkpoints my-job",
       .run = Checkpoints},
  };
}

}  // namespace gla::cli
