#include "trainer_service/local_launcher.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace gla::trainer {
namespace {

constexpr absl::Duration kPollInterval = absl::Milliseconds(20);

// Watches a process group from a thread.
class LocalProcess : public WorkerProcess {
 public:
  LocalProcess(int64_t pid, int64_t start_time, bool is_child,
               ExitCallback on_exit)
      : pid_(pid), start_time_(start_time) {
    watcher_ = std::thread([this, is_child, on_exit = std::move(on_exit)] {
      on_exit(is_child ? AwaitChild() : AwaitStranger());
    });
  }
  ~LocalProcess() override {
    Signal(SIGKILL);
    watcher_.join();
  }

  int64_t pid() const override { return pid_; }
  int64_t start_time() const override { return start_time_; }

  void Signal(int signal) override {
    absl::MutexLock lock(&mutex_);
    if (!ended_) kill(static_cast<pid_t>(-pid_), signal);
  }

 private:
  // The zombie keeps the pid ours until it is reaped, so no signal can reach
  // another process.
  ExitStatus AwaitChild() {
    siginfo_t info = {};
    while (waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT) !=
               0 &&
           errno == EINTR) {
    }
    {
      absl::MutexLock lock(&mutex_);
      kill(static_cast<pid_t>(-pid_), SIGKILL);  // what it left in its group
      ended_ = true;
    }
    int status = 0;
    waitpid(static_cast<pid_t>(pid_), &status, 0);
    if (WIFSIGNALED(status))
      return {.exit_code = 0, .signal = WTERMSIG(status)};
    return {.exit_code = WEXITSTATUS(status), .signal = 0};
  }

  ExitStatus AwaitStranger() {
    std::optional<int64_t> start_time = start_time_;
    while (start_time == start_time_) {
      absl::SleepFor(kPollInterval);
      start_time = ProcessStartTime(pid_);
    }
    absl::MutexLock lock(&mutex_);
    // What it left in its group, whose number no new process gets while it has
    // members: if one has it, nothing was left.
    if (!start_time.has_value()) kill(static_cast<pid_t>(-pid_), SIGKILL);
    ended_ = true;
    return {};
  }

  const int64_t pid_;
  const int64_t start_time_;
  absl::Mutex mutex_;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread watcher_;
};

// What posix_spawn needs to give the worker a clean start.
class SpawnSettings {
 public:
  explicit SpawnSettings(const std::string& log_file) {
    posix_spawnattr_init(&attributes_);
    posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETPGROUP |
                                               POSIX_SPAWN_SETSIGMASK |
                                               POSIX_SPAWN_SETSIGDEF);
    sigset_t none, defaults;
    sigemptyset(&none);
    posix_spawnattr_setsigmask(&attributes_, &none);
    sigemptyset(&defaults);
    for (int signal : {SIGINT, SIGTERM, SIGHUP, SIGPIPE}) {
      sigaddset(&defaults, signal);
    }
    posix_spawnattr_setsigdefault(&attributes_, &defaults);

    posix_spawn_file_actions_init(&actions_);
    posix_spawn_file_actions_addopen(&actions_, STDIN_FILENO, "/dev/null",
                                     O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions_, STDOUT_FILENO, log_file.c_str(),
                                     O_WRONLY | O_CREAT | O_APPEND, 0644);
    posix_spawn_file_actions_adddup2(&actions_, STDOUT_FILENO, STDERR_FILENO);
    posix_spawn_file_actions_addclosefrom_np(&actions_, STDERR_FILENO + 1);
  }
  ~SpawnSettings() {
    posix_spawn_file_actions_destroy(&actions_);
    posix_spawnattr_destroy(&attributes_);
  }
  SpawnSettings(const SpawnSettings&) = delete;
  SpawnSettings& operator=(const SpawnSettings&) = delete;

  const posix_spawnattr_t* attributes() const { return &attributes_; }
  const posix_spawn_file_actions_t* actions() const { return &actions_; }

 private:
  posix_spawnattr_t attributes_;
  posix_spawn_file_actions_t actions_;
};

// Null-terminated pointers into `strings`, as exec wants them.
std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& string : strings) pointers.push_back(string.data());
  pointers.push_back(nullptr);
  return pointers;
}

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerProcess>> LocalLauncher::Start(
    const WorkerCommand& command, ExitCallback on_exit) {
  std::vector<std::string> arguments = {
      worker_binary_, absl::StrCat("--job=", command.job),
      absl::StrCat("--attempt=", command.attempt),
      absl::StrCat("--service=", command.service_address)};
  std::vector<std::string> environment = {
      absl::StrCat(kSecretVariable, "=", command.secret)};
  for (char** variable = environ; *variable != nullptr; ++variable) {
    environment.emplace_back(*variable);
  }
  const SpawnSettings settings(command.log_file);
  pid_t pid = 0;
  const int error = posix_spawn(
      &pid, worker_binary_.c_str(), settings.actions(), settings.attributes(),
      Pointers(arguments).data(), Pointers(environment).data());
  if (error != 0) {
    return absl::ErrnoToStatus(
        error, absl::StrCat("cannot run ", worker_binary_, " with log ",
                            command.log_file));
  }
  // A worker that ended already is a zombie: its start time does not matter.
  return std::make_unique<LocalProcess>(pid, ProcessStartTime(pid).value_or(0),
                                        /*is_child=*/true, std::move(on_exit));
}

std::unique_ptr<WorkerProcess> LocalLauncher::Adopt(int64_t pid,
                                                    int64_t start_time,
                                                    ExitCallback on_exit) {
  if (pid <= 0 || ProcessStartTime(pid) != start_time) return nullptr;
  return std::make_unique<LocalProcess>(pid, start_time, /*is_child=*/false,
                                        std::move(on_exit));
}

std::optional<int64_t> ProcessStartTime(int64_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/stat"));
  // Reading fails if the process ends meanwhile. (An iterator over the buffer
  // would throw.)
  std::string stat;
  std::getline(file, stat, '\0');
  // "pid (name) state ..."; the name may hold anything. proc(5): field 3 is the
  // state, field 22 the start time.
  const size_t name_end = stat.rfind(") ");
  if (name_end == std::string::npos) return std::nullopt;
  const std::vector<std::string> fields =
      absl::StrSplit(stat.substr(name_end + 2), ' ');
  int64_t start_time = 0;
  if (fields.size() < 20 || fields[0] == "Z" || fields[0] == "X" ||
      !absl::SimpleAtoi(fields[19], &start_time)) {
    return std::nullopt;
  }
  return start_time;
}

}  // namespace gla::trainer
