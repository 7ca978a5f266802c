// A launcher whose processes live and die as a test says.
#ifndef GLA_TRAINER_SERVICE_TESTING_FAKE_LAUNCHER_H_
#define GLA_TRAINER_SERVICE_TESTING_FAKE_LAUNCHER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "trainer_service/launcher.h"

namespace gla::trainer {

// Thread-safe. Process i (from 0, in the order of starts and adoptions) has pid
// 1000 + i and start time 7.
class FakeLauncher : public Launcher {
 public:
  absl::StatusOr<std::unique_ptr<WorkerProcess>> Start(
      const WorkerCommand& command, ExitCallback on_exit) override;
  // Succeeds for pids in `alive`.
  std::unique_ptr<WorkerProcess> Adopt(int64_t pid, int64_t start_time,
                                       ExitCallback on_exit) override;

  // Start returns this when it is not OK.
  absl::Status start_status;
  std::vector<int64_t> alive;

  int num_processes() const;
  // Waits until so many processes were started.
  void AwaitProcesses(int count) const;
  WorkerCommand command(int process) const;
  std::vector<int> signals(int process) const;  // sent so far
  // Ends a process; its callback has run on return.
  void Exit(int process, ExitStatus status);

 private:
  struct State {
    WorkerCommand command;
    ExitCallback on_exit;
    std::vector<int> signals;
  };
  class Process;

  std::unique_ptr<WorkerProcess> Add(const WorkerCommand& command,
                                     ExitCallback on_exit);

  mutable absl::Mutex mutex_;
  std::vector<State> processes_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_TESTING_FAKE_LAUNCHER_H_
