// Workers as processes of this machine.
#ifndef GLA_TRAINER_SERVICE_LOCAL_LAUNCHER_H_
#define GLA_TRAINER_SERVICE_LOCAL_LAUNCHER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "trainer_service/launcher.h"

namespace gla::trainer {

// Environment variable that hands the secret to the worker (a command line is
// public).
inline constexpr char kSecretVariable[] = "GLA_WORKER_SECRET";

// Runs `worker_binary --job=JOB --attempt=N --service=ADDRESS` in a process
// group of its own, with stdin closed, no other open files, and signals as a
// fresh process has them.
class LocalLauncher : public Launcher {
 public:
  explicit LocalLauncher(std::string worker_binary)
      : worker_binary_(std::move(worker_binary)) {}

  // NOT_FOUND, ...: the binary cannot be run or the log not be opened.
  absl::StatusOr<std::unique_ptr<WorkerProcess>> Start(
      const WorkerCommand& command, ExitCallback on_exit) override;

  std::unique_ptr<WorkerProcess> Adopt(int64_t pid, int64_t start_time,
                                       ExitCallback on_exit) override;

 private:
  const std::string worker_binary_;
};

// The start time of a live process (not a zombie) in clock ticks after boot,
// from /proc; nullopt when there is none.
std::optional<int64_t> ProcessStartTime(int64_t pid);

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_LOCAL_LAUNCHER_H_
