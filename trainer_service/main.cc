// The trainer service. (docs/jobs.md)
//
//   gla_trainer --storage=DIR [--listen=127.0.0.1:7070] [--port_file=FILE]
//
// SIGTERM and SIGINT: the worker saves and stops, the service exits with 0; its
// job goes on at the next start. A second signal ends the service at once.
// Errors at the start are one line and exit code 1.
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <system_error>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "glog/logging.h"
#include "kernels/base/status_macros.h"
#include "trainer_service/local_launcher.h"
#include "trainer_service/server.h"

ABSL_FLAG(std::string, storage, "", "folder of jobs, logs and checkpoints");
ABSL_FLAG(std::string, listen, "127.0.0.1:0", "public address; port 0: any");
ABSL_FLAG(std::string, port_file, "", "gets the chosen port once ready");
ABSL_FLAG(std::string, worker, "",
          "worker binary; default: gla_trainer_worker beside this one");

namespace gla::trainer {
namespace {

std::string WorkerBinary() {
  if (const std::string flag = absl::GetFlag(FLAGS_worker); !flag.empty()) {
    return std::filesystem::absolute(flag);
  }
  return std::filesystem::read_symlink("/proc/self/exe").parent_path() /
         "gla_trainer_worker";
}

// Appears whole: a reader never sees half a number.
absl::Status WritePortFile(const std::string& path, int port) {
  if (path.empty()) return absl::OkStatus();
  const std::string staged = path + ".tmp";
  std::ofstream out(staged);
  out << port << "\n";
  out.close();
  std::error_code error;
  if (out) std::filesystem::rename(staged, path, error);
  if (out && !error) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--port_file: cannot write ", path));
}

sem_t signalled;

// A handler, not sigwait(): libraries start threads before main(), where a
// blocked signal would be delivered all the same. The inference service's main
// has the same lines: what the two share (kernels, model, proto) is no place
// for signals.
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

absl::Status Serve() {
  CatchSignals();
  const std::string storage = absl::GetFlag(FLAGS_storage);
  if (storage.empty()) {
    return absl::InvalidArgumentError("--storage: want a folder, got nothing");
  }
  LocalLauncher launcher(WorkerBinary());
  ASSIGN_OR_RETURN(const std::unique_ptr<Server> server,
                   Server::Start({.storage = std::filesystem::absolute(storage),
                                  .listen = absl::GetFlag(FLAGS_listen),
                                  .launcher = &launcher}));
  RETURN_IF_ERROR(
      WritePortFile(absl::GetFlag(FLAGS_port_file), server->port()));
  LOG(INFO) << "trainer service on port " << server->port() << ", storage "
            << storage;
  AwaitSignal();
  LOG(INFO) << "stopping";
  server->Stop();
  return absl::OkStatus();
}

}  // namespace
}  // namespace gla::trainer

int main(int argc, char** argv) {
  // gRPC's own log would stand before our one line; its errors reach us as
  // statuses.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  absl::SetProgramUsageMessage("gla_trainer --storage=DIR [--listen=ADDRESS]");
  absl::ParseCommandLine(argc, argv);
  FLAGS_logtostderr = true;
  google::InitGoogleLogging(argv[0]);
  const absl::Status status = gla::trainer::Serve();
  if (status.ok()) return 0;
  std::cerr << "gla_trainer: " << status.message() << std::endl;
  return 1;
}
