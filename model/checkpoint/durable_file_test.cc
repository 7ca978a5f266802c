#include "model/checkpoint/durable_file.h"

#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace gla {
namespace {

namespace fs = std::filesystem;

std::string NewPath(const std::string& name) {
  const std::string path = testing::TempDir() + "/" + name;
  fs::remove_all(path);
  return path;
}

TEST(DurableFile, HoldsWhatWasAppended) {
  const std::string path = NewPath("file");
  auto file = DurableFile::Create(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(file->Append("one, ").ok());
  EXPECT_TRUE(file->Append("").ok());
  EXPECT_TRUE(file->Append(std::string("two\0", 4)).ok());
  EXPECT_TRUE(file->Close().ok());
  EXPECT_EQ(*ReadFile(path), std::string("one, two\0", 9));
}

TEST(DurableFile, DoesNotOverwrite) {
  const std::string path = NewPath("file");
  ASSERT_TRUE(WriteDurableFile(path, "first").ok());
  const absl::Status status = WriteDurableFile(path, "second");
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_NE(status.message().find(path), std::string::npos);
  EXPECT_EQ(*ReadFile(path), "first");
}

TEST(DurableFile, NamesWhatIsMissing) {
  const std::string path = NewPath("absent") + "/file";
  for (const absl::Status& status :
       {WriteDurableFile(path, "x"), SyncDirectory(path),
        ReadFile(path).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    EXPECT_NE(status.message().find(path), std::string::npos);
  }
}

TEST(DurableFile, ReadsLargeFiles) {
  const std::string path = NewPath("large");
  const std::string bytes(300001, 'x');
  ASSERT_TRUE(WriteDurableFile(path, bytes).ok());
  EXPECT_EQ(*ReadFile(path), bytes);
}

TEST(ReadFile, RefusesWhatIsNoRegularFile) {
  const std::string fifo = NewPath("fifo");
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);  // opening it could wait for ever
  for (const std::string& path : {fifo, testing::TempDir()}) {
    const absl::Status status = ReadFile(path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_NE(status.message().find(path), std::string::npos);
  }
}

TEST(ReadFile, RefusesMoreThanItsLimit) {
  const std::string path = NewPath("sparse");
  ASSERT_TRUE(WriteDurableFile(path, "").ok());
  fs::resize_file(path, kMaxReadBytes);
  EXPECT_EQ(static_cast<int64_t>(ReadFile(path)->size()), kMaxReadBytes);
  fs::resize_file(path, kMaxReadBytes + 1);
  const absl::Status status = ReadFile(path).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_NE(status.message().find(path), std::string::npos);
}

TEST(CreateDurableDirectories, CreatesParentsAndAcceptsWhatIsThere) {
  const std::string root = NewPath("deep");
  for (int n = 0; n < 2; ++n) {
    EXPECT_TRUE(CreateDurableDirectories(root + "/a/b/").ok());
    EXPECT_TRUE(fs::is_directory(root + "/a/b"));
  }
  ASSERT_TRUE(WriteDurableFile(root + "/file", "").ok());
  const absl::Status status = CreateDurableDirectories(root + "/file/a");
  EXPECT_FALSE(status.ok());
  EXPECT_NE(status.message().find(root + "/file"), std::string::npos);
  EXPECT_FALSE(CreateDurableDirectories("").ok());
}

TEST(ListDirectory, SortsTheNames) {
  const std::string root = NewPath("listed");
  EXPECT_EQ(ListDirectory(root).status().code(), absl::StatusCode::kNotFound);
  fs::create_directories(root + "/b/inner");
  ASSERT_TRUE(WriteDurableFile(root + "/.a", "").ok());
  EXPECT_EQ(*ListDirectory(root), (std::vector<std::string>{".a", "b"}));
}

TEST(IsFileName, IsNoPath) {
  for (const char* name : {"a", "..a", ".staging", "a..b"}) {
    EXPECT_TRUE(IsFileName(name)) << name;
  }
  for (const std::string& name :
       {std::string(""), std::string("."), std::string(".."),
        std::string("../a"), std::string("/a"), std::string("a/b"),
        std::string("a\0b", 3)}) {
    EXPECT_FALSE(IsFileName(name)) << name;
  }
}

// Exits with 0 if a write beyond a size limit fails as it should. The limit
// stands in for a full disk.
[[noreturn]] void WriteTooMuch(const std::string& path) {
  signal(SIGXFSZ, SIG_IGN);
  const rlimit limit = {1000, 1000};
  setrlimit(RLIMIT_FSIZE, &limit);
  const absl::Status status = WriteDurableFile(path, std::string(2000, 'x'));
  const bool named = status.message().find(path) != std::string::npos;
  exit(!status.ok() && named ? 0 : 1);
}

TEST(DurableFileDeathTest, ReportsAWriteThatFails) {
  EXPECT_EXIT(WriteTooMuch(NewPath("limited")), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace gla
