#include "trainer_service/local_launcher.h"

#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace gla::trainer {
namespace {

using testing::HasSubstr;

// A worker made of a shell script, and what became of it.
class LocalLauncherTest : public testing::Test {
 protected:
  LocalLauncherTest()
      : directory_(absl::StrCat(
            testing::TempDir(), "/",
            testing::UnitTest::GetInstance()->current_test_info()->name())) {
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directories(directory_);
  }

  std::unique_ptr<WorkerProcess> StartScript(const std::string& body) {
    const std::string script = directory_ + "/worker.sh";
    std::ofstream(script) << "#!/bin/sh\n" << body << "\n";
    chmod(script.c_str(), 0755);
    auto process =
        LocalLauncher(script).Start({.job = "jobs/a",
                                     .attempt = 3,
                                     .secret = "hush",
                                     .service_address = "127.0.0.1:1",
                                     .log_file = Log()},
                                    [this](ExitStatus status) {
                                      exit_ = status;
                                      ended_.Notify();
                                    });
    EXPECT_TRUE(process.ok()) << process.status();
    return *std::move(process);
  }

  std::string Log() const { return directory_ + "/worker.log"; }
  std::string ReadLog() const {
    std::ifstream file(Log());
    return std::string((std::istreambuf_iterator<char>(file)),
                       std::istreambuf_iterator<char>());
  }

  // Waits until the script has created a file of this name.
  void AwaitFile(const std::string& name) const {
    while (!std::filesystem::exists(directory_ + "/" + name)) usleep(1000);
  }

  const std::string directory_;
  absl::Notification ended_;
  ExitStatus exit_;
};

TEST_F(LocalLauncherTest, PassesArgumentsAndReportsTheExitCode) {
  std::ofstream(Log()) << "before\n";
  const auto process =
      StartScript("echo \"$@\" $GLA_WORKER_SECRET; echo oops >&2; exit 7");
  ended_.WaitForNotification();
  EXPECT_EQ(exit_.exit_code, 7);
  EXPECT_EQ(exit_.signal, 0);
  EXPECT_EQ(ReadLog(),
            "before\n--job=jobs/a --attempt=3 --service=127.0.0.1:1 hush\n"
            "oops\n");
}

TEST_F(LocalLauncherTest, SignalsTheWholeGroupAndReportsTheSignal) {
  const std::string grandchild = directory_ + "/grandchild";
  const auto process = StartScript(
      absl::StrCat("sleep 1000 & echo $! > ", grandchild, ".tmp; mv ",
                   grandchild, ".tmp ", grandchild, "; wait"));
  AwaitFile("grandchild");
  int64_t pid = 0;
  std::ifstream(grandchild) >> pid;
  ASSERT_TRUE(ProcessStartTime(pid).has_value());
  process->Signal(SIGKILL);
  ended_.WaitForNotification();
  EXPECT_EQ(exit_.signal, SIGKILL);
  while (ProcessStartTime(pid).has_value()) usleep(1000);
}

TEST_F(LocalLauncherTest, KillsWhatAWorkerLeavesBehind) {
  const std::string file = directory_ + "/grandchild";
  const auto process =
      StartScript(absl::StrCat("sleep 1000 & echo $! > ", file, "; exit 0"));
  ended_.WaitForNotification();
  int64_t pid = 0;
  std::ifstream(file) >> pid;
  while (ProcessStartTime(pid).has_value()) usleep(1000);
}

TEST_F(LocalLauncherTest, GivesTheWorkerAFreshSignalMaskAndNoFiles) {
  sigset_t mask, old;
  sigemptyset(&mask);
  sigaddset(&mask, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &mask, &old);
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  const auto process =
      StartScript(absl::StrCat("ls /proc/$$/fd > ", directory_, "/fds; touch ",
                               directory_, "/ready; exec sleep 1000"));
  AwaitFile("ready");
  process->Signal(SIGTERM);
  ended_.WaitForNotification();
  EXPECT_EQ(exit_.signal, SIGTERM);
  std::ifstream list(directory_ + "/fds");
  int highest = 0;
  for (int fd; list >> fd;) highest = fd;
  // The shell itself keeps its script open at 10 or above.
  EXPECT_TRUE(highest <= 2 || highest >= 10) << highest;
  pthread_sigmask(SIG_SETMASK, &old, nullptr);
  close(fds[0]);
  close(fds[1]);
}

TEST_F(LocalLauncherTest, SaysWhatItCannotRun) {
  const auto process = LocalLauncher("/nowhere/worker")
                           .Start({.job = "jobs/a",
                                   .attempt = 1,
                                   .secret = "",
                                   .service_address = "",
                                   .log_file = Log()},
                                  [](ExitStatus) { FAIL(); });
  EXPECT_EQ(process.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(process.status().message()),
              HasSubstr("/nowhere/worker"));
}

TEST_F(LocalLauncherTest, AdoptsALiveProcessAndSeesItsEnd) {
  LocalLauncher launcher("");
  const pid_t pid = fork();
  if (pid == 0) {
    setpgid(0, 0);
    pause();
    _exit(0);
  }
  setpgid(pid, pid);
  const auto start_time = ProcessStartTime(pid);
  ASSERT_TRUE(start_time.has_value());
  EXPECT_EQ(launcher.Adopt(pid, *start_time + 1, [](ExitStatus) {}), nullptr);
  const auto process =
      launcher.Adopt(pid, *start_time, [this](ExitStatus) { ended_.Notify(); });
  ASSERT_NE(process, nullptr);
  EXPECT_FALSE(ended_.HasBeenNotified());
  process->Signal(SIGTERM);
  ended_.WaitForNotification();
  waitpid(pid, nullptr, 0);
  EXPECT_EQ(launcher.Adopt(pid, *start_time, [](ExitStatus) {}), nullptr);
}

TEST_F(LocalLauncherTest, KillsWhatAnAdoptedProcessLeavesBehind) {
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  const pid_t pid = fork();
  if (pid == 0) {
    setpgid(0, 0);
    const pid_t child = fork();
    if (child != 0 && write(fds[1], &child, sizeof(child)) < 0) _exit(1);
    pause();
    _exit(0);
  }
  pid_t grandchild = 0;
  ASSERT_EQ(read(fds[0], &grandchild, sizeof(grandchild)),
            static_cast<ssize_t>(sizeof(grandchild)));
  LocalLauncher launcher("");
  const auto process = launcher.Adopt(pid, ProcessStartTime(pid).value_or(0),
                                      [this](ExitStatus) { ended_.Notify(); });
  ASSERT_NE(process, nullptr);
  kill(pid, SIGKILL);  // alone, not its group
  ended_.WaitForNotification();
  while (ProcessStartTime(grandchild).has_value()) usleep(1000);
  waitpid(pid, nullptr, 0);
  close(fds[0]);
  close(fds[1]);
}

TEST_F(LocalLauncherTest, DestructionLeavesNoProcess) {
  auto process = StartScript("trap '' TERM; while :; do sleep 1000; done");
  const int64_t pid = process->pid();
  process.reset();
  EXPECT_TRUE(ended_.HasBeenNotified());
  EXPECT_FALSE(ProcessStartTime(pid).has_value());
}

}  // namespace
}  // namespace gla::trainer
