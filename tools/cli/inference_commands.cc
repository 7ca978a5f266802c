#include "tools/cli/inference_commands.h"

#include <grpcpp/grpcpp.h>

#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "gla/inference/v1/inference.grpc.pb.h"
#include "kernels/base/status_macros.h"
#include "proto/grpc_status.h"
#include "tools/cli/print.h"

namespace gla::cli {
namespace {

namespace pb = ::gla::inference::v1;

// Loading reads and verifies a whole checkpoint.
constexpr absl::Duration kLoadDeadline = absl::Minutes(10);
constexpr absl::Duration kListDeadline = absl::Seconds(30);

Flag ServerFlag() {
  const char* address = getenv("GLA_INFERENCE");
  return {"server", "ADDRESS", address == nullptr ? "127.0.0.1:7071" : address,
          "inference service; the variable GLA_INFERENCE sets another default"};
}
Flag OutputFlag() {
  return {"output", "text|json", "text", "form of the result"};
}

std::shared_ptr<grpc::Channel> Connect(const Arguments& arguments) {
  return grpc::CreateChannel(arguments.Get("server"),
                             grpc::InsecureChannelCredentials());
}

std::string ModelName(const std::string& word) {
  return word.empty() || absl::StartsWith(word, "models/")
             ? word
             : absl::StrCat("models/", word);
}

void PrintModel(const pb::Model& model, bool json) {
  if (json) {
    PrintJson(model);
    return;
  }
  std::cout << model.name() << " version " << model.version() << "  "
            << FormatCount(model.parameters()) << " parameters  vocabulary "
            << model.vocab_size() << "  state "
            << FormatCount(model.state_bytes_per_sequence()) << "B  slots "
            << model.state_slots_free() << "/" << model.state_slots()
            << " free\n  " << model.checkpoint() << std::endl;
}

absl::Status List(const Arguments& arguments, ExitCode*) {
  const auto stub = pb::ModelService::NewStub(Connect(arguments));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kListDeadline));
  pb::ListModelsResponse response;
  RETURN_IF_ERROR(FromGrpcStatus(
      stub->ListModels(&context, pb::ListModelsRequest(), &response)));
  for (const pb::Model& model : response.models()) {
    PrintModel(model, arguments.json());
  }
  return absl::OkStatus();
}

absl::Status Load(const Arguments& arguments, ExitCode*) {
  pb::LoadModelRequest request;
  request.set_name(ModelName(arguments.positional[0]));
  std::error_code error;  // of an empty path
  request.set_checkpoint(
      std::filesystem::absolute(arguments.positional[1], error).string());
  if (error) {
    return absl::InvalidArgumentError(absl::StrCat("CHECKPOINT_DIRECTORY \"",
                                                   arguments.positional[1],
                                                   "\": ", error.message()));
  }
  const auto stub = pb::ModelService::NewStub(Connect(arguments));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kLoadDeadline));
  pb::Model model;
  RETURN_IF_ERROR(FromGrpcStatus(stub->LoadModel(&context, request, &model)));
  PrintModel(model, arguments.json());
  return absl::OkStatus();
}

// The sampling flags that were given; others stay unset.
absl::Status FillSampling(const Arguments& arguments,
                          pb::SamplingParams* sampling) {
  if (arguments.Has("temperature")) {
    ASSIGN_OR_RETURN(const double value, arguments.GetDouble("temperature"));
    sampling->set_temperature(static_cast<float>(value));
  }
  if (arguments.Has("top_p")) {
    ASSIGN_OR_RETURN(const double value, arguments.GetDouble("top_p"));
    sampling->set_top_p(static_cast<float>(value));
  }
  if (arguments.Has("top_k")) {
    ASSIGN_OR_RETURN(const int32_t value, arguments.GetInt<int32_t>("top_k"));
    sampling->set_top_k(value);
  }
  if (arguments.Has("seed")) {
    ASSIGN_OR_RETURN(const uint64_t value, arguments.GetInt<uint64_t>("seed"));
    sampling->set_seed(value);
  }
  if (arguments.Has("max_new_tokens")) {
    ASSIGN_OR_RETURN(const int32_t value,
                     arguments.GetInt<int32_t>("max_new_tokens"));
    sampling->set_max_new_tokens(value);
  }
  for (const std::string& stop : arguments.GetAll("stop")) {
    sampling->add_stop(stop);
  }
  if (arguments.Has("ignore_eos")) sampling->set_ignore_eos(true);
  return absl::OkStatus();
}

std::string PromptText(const std::string& word) {
  if (word != "-") return word;
  return std::string((std::istreambuf_iterator<char>(std::cin)),
                     std::istreambuf_iterator<char>());
}

void PrintFinished(const pb::Started& started, const pb::Finished& finished) {
  const double seconds =
      finished.total().seconds() + 1e-9 * finished.total().nanos();
  std::cerr << absl::StrFormat(
      "\n[%s: %d prompt tokens, %d new in %.2f s, seed %d]\n",
      pb::Finished::Reason_Name(finished.reason()), finished.prompt_tokens(),
      finished.output_tokens(), seconds, started.seed());
}

absl::Status Generate(const Arguments& arguments, ExitCode*) {
  pb::GenerateRequest request;
  request.set_model(ModelName(arguments.Get("model")));
  request.mutable_prompt()->set_text(PromptText(arguments.positional[0]));
  RETURN_IF_ERROR(FillSampling(arguments, request.mutable_sampling()));
  const auto stub = pb::GenerationService::NewStub(Connect(arguments));
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, request);
  pb::GenerateResponse response;
  pb::Started started;
  bool finished = false;
  while (reader->Read(&response)) {
    if (arguments.json()) {
      PrintJson(response);
    } else if (response.has_delta()) {
      std::cout << response.delta().text() << std::flush;
    } else if (response.has_finished()) {
      PrintFinished(started, response.finished());
    }
    if (response.has_started()) started = response.started();
    finished = finished || response.has_finished();
  }
  RETURN_IF_ERROR(FromGrpcStatus(reader->Finish()));
  if (!finished) {
    return absl::UnavailableError("the stream ended before its last message");
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<Command> InferenceCommands() {
  const Flag server = ServerFlag(), output = OutputFlag();
  return {
      {.verb = "models list",
       .summary = "what the inference service serves",
       .flags = {server, output},
       .example = "gla models list",
       .run = List},
      {.verb = "models load",
       .arguments = "NAME CHECKPOINT_DIRECTORY",
       .min_positional = 2,
       .max_positional = 2,
       .summary = "serve a checkpoint under a name",
       .flags = {server, output},
       .example =
           "gla models load kjv run/jobs/kjv/checkpoints/step-000000000600",
       .run = Load},
      {.verb = "generate",
       .arguments = "PROMPT",
       .min_positional = 1,
       .max_positional = 1,
       .summary = "stream a completion; PROMPT - reads standard input",
       .flags = {{"model", "NAME", "", "needed when several are loaded"},
                 {"temperature", "X", "", "0: greedy (service's default 1)"},
                 {"top_k", "K", "", "only the k most likely tokens"},
                 {"top_p", "P", "", "only the smallest set with this mass"},
                 {"seed", "N", "", "repeats an output"},
                 {"max_new_tokens", "N", "", "service's default 256"},
                 {"stop", "TEXT", "", "end before this text; may be repeated"},
                 {"ignore_eos", "", "", "go on after the end-of-text token"},
                 server,
                 output},
       .example =
           "gla generate \"In the beginning\" --temperature=0.8 --top_p=0.95",
       .run = Generate},
  };
}

}  // namespace gla::cli
