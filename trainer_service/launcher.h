// How worker processes are started: the seam between the coordinator and the
// operating system (or, later, a cluster).
#ifndef GLA_TRAINER_SERVICE_LAUNCHER_H_
#define GLA_TRAINER_SERVICE_LAUNCHER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace gla::trainer {

// One attempt of a job.
struct WorkerCommand {
  std::string job;  // "jobs/{job_id}"
  int32_t attempt = 0;
  std::string secret;           // proves to the service who attaches
  std::string service_address;  // of WorkerService
  std::string log_file;         // stdout and stderr are appended
};

// How a process ended. At most one of the two is set; both are 0 after a clean
// exit, and when the end of a process that is not our child was not seen.
struct ExitStatus {
  int exit_code = 0;
  int signal = 0;
};

// A process and all it started. Thread-safe.
class WorkerProcess {
 public:
  // Kills what is left and waits for it.
  virtual ~WorkerProcess() = default;

  virtual int64_t pid() const = 0;
  // With the pid, names a process for ever: clock ticks after boot.
  virtual int64_t start_time() const = 0;

  // Sends a signal to the process and all it started; does nothing once it has
  // ended.
  virtual void Signal(int signal) = 0;
};

// Calls back once when the process has ended and what it left behind was
// killed, from a thread of its own; never from within the call that took the
// callback.
using ExitCallback = std::function<void(ExitStatus)>;

// Thread-safe.
class Launcher {
 public:
  virtual ~Launcher() = default;

  // A worker outlives its launcher's process: when its service is gone it saves
  // and ends by itself.
  virtual absl::StatusOr<std::unique_ptr<WorkerProcess>> Start(
      const WorkerCommand& command, ExitCallback on_exit) = 0;

  // A process that an earlier service started; null when it is gone.
  virtual std::unique_ptr<WorkerProcess> Adopt(int64_t pid, int64_t start_time,
                                               ExitCallback on_exit) = 0;
};

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_LAUNCHER_H_
