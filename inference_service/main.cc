// gla_inference: serves GLA models over gRPC.
//
//   gla_inference --listen=127.0.0.1:7071 --model=bible=/path/to/checkpoint
//
// --model may be given several times, or not at all: models can be loaded and
// replaced while it runs. Ends with 0 on SIGTERM or SIGINT, after running
// requests had ten seconds to finish (a second signal ends it at once), and
// with 1 and one line on stderr when it cannot start.
#include <semaphore.h>
#include <signal.h>

#include <cerrno>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "glog/logging.h"
#include "inference_service/model_store.h"
#include "inference_service/server.h"
#include "kernels/base/status_macros.h"
#include "kernels/base/thread_pool.h"

namespace {

std::vector<std::string>& ModelFlags() {
  static auto* flags = new std::vector<std::string>;
  return *flags;
}

}  // namespace

ABSL_FLAG(std::string, listen, "127.0.0.1:0",
          "host:port to serve on; port 0: a free one");
ABSL_FLAG(std::string, port_file, "",
          "file that gets the port number once requests are served");
ABSL_FLAG(std::string, model, "",
          "NAME=DIR: serve checkpoint directory DIR as models/NAME; repeatable")
    .OnUpdate([] {
      const std::string value = absl::GetFlag(FLAGS_model);
      if (!value.empty()) ModelFlags().push_back(value);
    });
ABSL_FLAG(int, state_slots, 16,
          "sequences of one model that run at the same time");
ABSL_FLAG(int, threads, 0, "threads for a model's steps; 0: all there are");
ABSL_FLAG(std::string, device, "auto", "auto, cpu or cuda");

namespace gla::inference {
namespace {

constexpr absl::Duration kGrace = absl::Seconds(10);

absl::Status CheckDevice(const std::string& device) {
  if (device == "auto" || device == "cpu") return absl::OkStatus();
  if (device == "cuda") {
    return absl::UnimplementedError(
        "--device=cuda: this build serves on the CPU only");
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--device: want auto, cpu or cuda, got ", device));
}

absl::StatusOr<ServingOptions> OptionsFromFlags() {
  RETURN_IF_ERROR(CheckDevice(absl::GetFlag(FLAGS_device)));
  ServingOptions options;
  options.state_slots = absl::GetFlag(FLAGS_state_slots);
  if (options.state_slots < 1) {
    return absl::InvalidArgumentError("--state_slots: want at least 1");
  }
  options.threads = absl::GetFlag(FLAGS_threads);
  if (options.threads < 0) {
    return absl::InvalidArgumentError("--threads: want at least 0");
  }
  if (options.threads == 0) options.threads = HardwareThreads();
  return options;
}

absl::Status LoadModels(ModelStore* models) {
  for (const std::string& flag : ModelFlags()) {
    const size_t equals = flag.find('=');
    if (equals == std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("--model: want NAME=DIR, got ", flag));
    }
    const absl::Status status =
        models
            ->Load("models/" + flag.substr(0, equals), flag.substr(equals + 1))
            .status();
    if (!status.ok()) {
      return absl::Status(status.code(), absl::StrCat("--model=", flag, ": ",
                                                      status.message()));
    }
  }
  return absl::OkStatus();
}

// All at once, so that whoever waits for the file never reads half of it.
absl::Status WritePort(const std::string& file, int port) {
  const std::string unfinished = file + ".unfinished";
  std::ofstream out(unfinished);
  out << port << "\n";
  out.close();
  if (!out || std::rename(unfinished.c_str(), file.c_str()) != 0) {
    return absl::UnavailableError(
        absl::StrCat("--port_file: cannot write ", file));
  }
  return absl::OkStatus();
}

sem_t signalled;

// A handler, not sigwait(): libraries start threads before main(), where a
// blocked signal would be delivered all the same.
void CatchSignals() {
  PCHECK(sem_init(&signalled, /*pshared=*/0, /*value=*/0) == 0);
  struct sigaction action = {};
  action.sa_handler = [](int /*signal*/) { sem_post(&signalled); };
  action.sa_flags = SA_RESTART;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
}

// Returns after the first signal; the next one ends the process.
void AwaitSignal() {
  while (sem_wait(&signalled) != 0) PCHECK(errno == EINTR);
  signal(SIGTERM, SIG_DFL);
  signal(SIGINT, SIG_DFL);
}

absl::Status Run() {
  CatchSignals();
  ASSIGN_OR_RETURN(ServingOptions options, OptionsFromFlags());
  ModelStore models(std::move(options));
  RETURN_IF_ERROR(LoadModels(&models));
  ASSIGN_OR_RETURN(std::unique_ptr<Server> server,
                   Server::Start(absl::GetFlag(FLAGS_listen), &models));
  if (!absl::GetFlag(FLAGS_port_file).empty()) {
    RETURN_IF_ERROR(WritePort(absl::GetFlag(FLAGS_port_file), server->port()));
  }
  LOG(INFO) << "serving "
            << absl::StrJoin(models.List(), ", ",
                             [](std::string* out, const auto& model) {
                               absl::StrAppend(out, model->name());
                             })
            << " on port " << server->port();
  AwaitSignal();
  LOG(INFO) << "finishing";
  server->Shutdown(kGrace);
  return absl::OkStatus();
}

}  // namespace
}  // namespace gla::inference

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage(
      "serves GLA models over gRPC\n"
      "  gla_inference --listen=HOST:PORT --model=NAME=DIR");
  absl::ParseCommandLine(argc, argv);
  FLAGS_logtostderr = true;
  google::InitGoogleLogging(argv[0]);
  const absl::Status status = gla::inference::Run();
  if (status.ok()) return 0;
  std::cerr << "gla_inference: " << status.message() << std::endl;
  return 1;
}
