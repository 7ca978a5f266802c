// Crashes and failing system calls at every point of a commit. The calls that
// change the disk are replaced by ones that count, and stop at the n-th.

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "model/checkpoint/checkpoint.h"

namespace {

enum class Fault { kNone, kCrash, kFail };
constexpr int kCrashed = 42;

Fault g_fault = Fault::kNone;
int g_calls_left = 0;  // until the fault

// What would be lost if the power went now, by path. A new entry makes its
// directory dirty, too.
std::set<std::string>* g_dirty = nullptr;
// What was dirty inside the staging directory when it was renamed.
std::set<std::string>* g_dirty_at_commit = nullptr;

// True if the call must fail. Does not return from a crash.
bool Strike() {
  if (g_fault == Fault::kNone || --g_calls_left != 0) return false;
  if (g_fault == Fault::kCrash) _exit(kCrashed);
  errno = EIO;
  return true;
}

std::string PathOf(int fd) {
  char path[4096];
  const std::string link = absl::StrCat("/proc/self/fd/", fd);
  const ssize_t n = readlink(link.c_str(), path, sizeof(path));
  return std::string(path, n > 0 ? n : 0);
}

std::string ParentOf(const std::string& path) {
  return std::filesystem::path(path).parent_path();
}

void MarkDirty(const std::string& path) {
  if (g_dirty == nullptr) return;
  g_dirty->insert(path);
  g_dirty->insert(ParentOf(path));
}

int Sync(int fd) {
  if (Strike()) return -1;
  if (g_dirty != nullptr) g_dirty->erase(PathOf(fd));
  return 0;  // Only the order matters here.
}

}  // namespace

extern "C" {

int fsync(int fd) { return Sync(fd); }
int fdatasync(int fd) { return Sync(fd); }

ssize_t write(int fd, const void* data, size_t size) {
  if (fd > 2 && Strike()) return -1;
  if (fd > 2) MarkDirty(PathOf(fd));
  return syscall(SYS_write, fd, data, size);
}

int mkdir(const char* path, mode_t mode) noexcept {
  if (Strike()) return -1;
  MarkDirty(path);
  return static_cast<int>(syscall(SYS_mkdirat, AT_FDCWD, path, mode));
}

int rename(const char* from, const char* to) noexcept {
  if (Strike()) return -1;
  MarkDirty(from);
  MarkDirty(to);
  return static_cast<int>(
      syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}

int renameat2(int from_directory, const char* from, int to_directory,
              const char* to, unsigned flags) noexcept {
  if (Strike()) return -1;
  if (g_dirty != nullptr) {
    for (const std::string& path : *g_dirty) {
      if (absl::StartsWith(path, from)) g_dirty_at_commit->insert(path);
    }
    g_dirty->insert(ParentOf(to));
  }
  return static_cast<int>(
      syscall(SYS_renameat2, from_directory, from, to_directory, to, flags));
}

int unlinkat(int directory, const char* path, int flags) noexcept {
  if (Strike()) return -1;
  return static_cast<int>(syscall(SYS_unlinkat, directory, path, flags));
}

}  // extern "C"

namespace gla {
namespace {

namespace fs = std::filesystem;

class CheckpointCrash : public testing::Test {
 protected:
  CheckpointCrash() : table_(Config()), weights_(&table_) {
    fs::remove_all(base_);
  }

  static GlaConfig Config() {
    GlaConfig config;
    config.vocab_size = 256;
    config.hidden_size = 16;
    config.num_hidden_layers = 1;
    config.num_heads = 2;
    config.intermediate_size = 24;
    return config;
  }

  absl::StatusOr<std::string> Commit(int64_t step, int32_t attempt) {
    CheckpointContents contents;
    contents.config = &config_;
    contents.weights = contents.adam_m = contents.adam_v = &weights_;
    contents.tokenizer = tokenizer_.get();
    contents.train_state.set_step(step);
    contents.attempt = attempt;
    return CommitCheckpoint(root_, contents);
  }

  // Steps 1 to 3 as an attempt 1 leaves them: committed once, then links to
  // the files, which nothing changes.
  void StartWithThree() {
    fs::remove_all(root_);
    if (fs::exists(three_)) {
      fs::copy(
          three_, root_,
          fs::copy_options::recursive | fs::copy_options::create_hard_links);
      return;
    }
    for (int64_t step = 1; step <= 3; ++step) {
      ASSERT_TRUE(Commit(step, 1).ok());
    }
    fs::copy(root_, three_,
             fs::copy_options::recursive | fs::copy_options::create_hard_links);
  }

  // What holds after any stop: checkpoints that are listed are whole, and the
  // ones of before are still there.
  void ExpectWhole(size_t at_least) {
    const auto all = ListCheckpoints(root_);
    ASSERT_TRUE(all.ok()) << all.status();
    EXPECT_GE(all->size(), at_least);
    for (const std::string& directory : *all) {
      const auto manifest = VerifyCheckpoint(directory);
      EXPECT_TRUE(manifest.ok()) << manifest.status();
    }
    Parameters weights(&table_), m(&table_), v(&table_);
    const auto state = LoadTrainingState(all->back(), &weights, &m, &v);
    ASSERT_TRUE(state.ok()) << state.status();
    EXPECT_GE(state->step(), 3);
  }

  // The next attempt goes on and tidies up.
  void ExpectRecovers() {
    const auto committed = Commit(4, 2);
    ASSERT_TRUE(committed.ok()) << committed.status();
    ASSERT_TRUE(
        CollectCheckpoints(root_, /*keep_latest=*/2, /*attempt=*/2).ok());
    EXPECT_EQ(*ListCheckpoints(root_),
              (std::vector<std::string>{root_ + "/step-000000000003",
                                        root_ + "/step-000000000004"}));
    EXPECT_EQ(std::distance(fs::directory_iterator(root_), {}), 2);
  }

  // Runs `work` in a process of its own that crashes at call n. True: it did.
  template <typename Work>
  bool CrashesAt(int n, const Work& work) {
    const pid_t child = fork();
    if (child == 0) {
      g_fault = Fault::kCrash;
      g_calls_left = n;
      _exit(work().ok() ? 0 : 1);
    }
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status));
    if (WEXITSTATUS(status) == kCrashed) return true;
    EXPECT_EQ(WEXITSTATUS(status), 0);
    return false;
  }

  const GlaConfig config_ = Config();
  const ParameterTable table_;
  const Parameters weights_;
  const std::unique_ptr<Tokenizer> tokenizer_ = MakeByteTokenizer();
  // As the kernel names it, for comparing paths.
  const std::string base_ = fs::canonical(testing::TempDir()) / "crash";
  const std::string root_ = base_ + "/job/checkpoints";
  const std::string three_ = base_ + "/three";
};

TEST_F(CheckpointCrash, AtAnyPointOfACommitLosesNothing) {
  int n = 1;
  StartWithThree();
  while (CrashesAt(n, [&] { return Commit(4, 1).status(); })) {
    SCOPED_TRACE(absl::StrCat("crash at call ", n));
    ExpectWhole(/*at_least=*/3);
    ExpectRecovers();
    if (HasFailure()) return;
    StartWithThree();
    ++n;
  }
  EXPECT_GT(n, 15);  // the calls were counted
}

TEST_F(CheckpointCrash, AtAnyPointOfACollectionLosesNothing) {
  const auto collect = [&] { return CollectCheckpoints(root_, 2, 1); };
  int n = 1;
  StartWithThree();
  while (CrashesAt(n, collect)) {
    SCOPED_TRACE(absl::StrCat("crash at call ", n));
    ExpectWhole(/*at_least=*/2);
    ExpectRecovers();
    if (HasFailure()) return;
    StartWithThree();
    ++n;
  }
  EXPECT_GT(n, 6);
}

TEST_F(CheckpointCrash, FailureOfAnyCallIsReportedAndLosesNothing) {
  int n = 0;
  for (bool failed = true; failed; ++n) {
    SCOPED_TRACE(absl::StrCat("failure of call ", n + 1));
    StartWithThree();
    g_fault = Fault::kFail;
    g_calls_left = n + 1;
    const auto committed = Commit(4, 1);
    failed = g_calls_left <= 0;
    g_fault = Fault::kNone;
    EXPECT_EQ(committed.ok(), !failed) << committed.status();
    ExpectWhole(/*at_least=*/3);
    EXPECT_TRUE(Commit(4, 1).ok());  // the same attempt, again
    ExpectRecovers();
    if (HasFailure()) return;
  }
  EXPECT_GT(n, 15);
}

// The directories of the root's new parents, too.
TEST_F(CheckpointCrash, EverythingIsSyncedBeforeTheRename) {
  std::set<std::string> dirty, dirty_at_commit;
  g_dirty = &dirty;
  g_dirty_at_commit = &dirty_at_commit;
  const auto committed = Commit(4, 1);
  g_dirty = g_dirty_at_commit = nullptr;
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_EQ(dirty_at_commit, std::set<std::string>());
  EXPECT_EQ(dirty, std::set<std::string>());
}

}  // namespace
}  // namespace gla
