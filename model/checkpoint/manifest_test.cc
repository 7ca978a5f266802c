#include "model/checkpoint/manifest.h"

#include <sys/stat.h>

#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "model/checkpoint/durable_file.h"
#include "model/checkpoint/sha256.h"

namespace gla {
namespace {

namespace fs = std::filesystem;

// A directory with the files "a" and "b", and "c" outside it.
class VerifyCheckpointTest : public testing::Test {
 protected:
  VerifyCheckpointTest() {
    fs::remove_all(root_);
    fs::create_directories(directory_);
    for (const char* name : {"directory/a", "directory/b", "c"}) {
      EXPECT_TRUE(
          WriteDurableFile(absl::StrCat(root_, "/", name), "text").ok());
    }
    List("a");
    List("b");
  }

  void List(const std::string& path) {
    gla::v1::FileEntry* file = manifest_.add_files();
    file->set_path(path);
    file->set_size_bytes(4);
    file->set_sha256(Sha256("text"));
  }

  absl::Status Verify() {
    fs::remove(directory_ + "/MANIFEST");
    EXPECT_TRUE(WriteManifest(directory_, manifest_).ok());
    return VerifyCheckpoint(directory_).status();
  }

  void ExpectRefused(const std::string& word) {
    const absl::Status status = Verify();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_NE(status.message().find(word), std::string::npos) << status;
  }

  const std::string root_ = testing::TempDir() + "/manifest";
  const std::string directory_ = root_ + "/directory";
  gla::v1::Manifest manifest_;
};

TEST_F(VerifyCheckpointTest, AcceptsWhatIsListed) {
  EXPECT_TRUE(Verify().ok()) << Verify();
}

TEST_F(VerifyCheckpointTest, RefusesPaths) {
  List("");
  for (const std::string path :
       {"../c", "./a", "..", ".", "", "MANIFEST", "../directory/a"}) {
    manifest_.mutable_files(2)->set_path(path);
    ExpectRefused(absl::StrCat("\"", path, "\""));
  }
  manifest_.mutable_files(2)->set_path(root_ + "/c");
  ExpectRefused(root_ + "/c");
}

TEST_F(VerifyCheckpointTest, RefusesANameListedTwice) {
  List("a");
  ExpectRefused("\"a\": listed twice");
}

TEST_F(VerifyCheckpointTest, RefusesEntriesThatAreNotListed) {
  ASSERT_TRUE(WriteDurableFile(directory_ + "/extra", "").ok());
  ExpectRefused(directory_ + "/extra");
  fs::remove(directory_ + "/extra");
  fs::create_directory(directory_ + "/.hidden");
  ExpectRefused(directory_ + "/.hidden");
}

TEST_F(VerifyCheckpointTest, RefusesAListedNameThatIsNoFile) {
  fs::remove(directory_ + "/a");
  ExpectRefused(directory_ + "/a");
  fs::create_directory(directory_ + "/a");
  ExpectRefused(directory_ + "/a");
  fs::remove(directory_ + "/a");
  ASSERT_EQ(mkfifo((directory_ + "/a").c_str(), 0600), 0);
  ExpectRefused(directory_ + "/a");
}

}  // namespace
}  // namespace gla
