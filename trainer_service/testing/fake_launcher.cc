#include "trainer_service/testing/fake_launcher.h"

#include <algorithm>

namespace gla::trainer {

class FakeLauncher::Process : public WorkerProcess {
 public:
  Process(FakeLauncher* launcher, int index)
      : launcher_(launcher), index_(index) {}
  int64_t pid() const override { return 1000 + index_; }
  int64_t start_time() const override { return 7; }
  void Signal(int signal) override {
    absl::MutexLock lock(&launcher_->mutex_);
    launcher_->processes_[index_].signals.push_back(signal);
  }

 private:
  FakeLauncher* const launcher_;
  const int index_;
};

absl::StatusOr<std::unique_ptr<WorkerProcess>> FakeLauncher::Start(
    const WorkerCommand& command, ExitCallback on_exit) {
  if (!start_status.ok()) return start_status;
  return Add(command, std::move(on_exit));
}

std::unique_ptr<WorkerProcess> FakeLauncher::Adopt(int64_t pid,
                                                   int64_t /*start_time*/,
                                                   ExitCallback on_exit) {
  if (std::find(alive.begin(), alive.end(), pid) == alive.end()) {
    return nullptr;
  }
  return Add(WorkerCommand(), std::move(on_exit));
}

std::unique_ptr<WorkerProcess> FakeLauncher::Add(const WorkerCommand& command,
                                                 ExitCallback on_exit) {
  absl::MutexLock lock(&mutex_);
  processes_.push_back({command, std::move(on_exit), {}});
  return std::make_unique<Process>(this,
                                   static_cast<int>(processes_.size()) - 1);
}

int FakeLauncher::num_processes() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int>(processes_.size());
}

void FakeLauncher::AwaitProcesses(int count) const {
  const auto started = [this, count]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return static_cast<int>(processes_.size()) >= count;
  };
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&started));
}

WorkerCommand FakeLauncher::command(int process) const {
  absl::MutexLock lock(&mutex_);
  return processes_[process].command;
}

std::vector<int> FakeLauncher::signals(int process) const {
  absl::MutexLock lock(&mutex_);
  return processes_[process].signals;
}

void FakeLauncher::Exit(int process, ExitStatus status) {
  ExitCallback on_exit;
  {
    absl::MutexLock lock(&mutex_);
    on_exit = std::exchange(processes_[process].on_exit, nullptr);
  }
  if (on_exit) on_exit(status);
}

}  // namespace gla::trainer
