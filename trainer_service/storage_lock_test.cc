#include "trainer_service/storage_lock.h"

#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace gla::trainer {
namespace {

using testing::HasSubstr;

TEST(StorageLock, IsHeldByOneAtATime) {
  const std::string folder = testing::TempDir() + "/one/two";
  auto first = StorageLock::Acquire(folder);
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = StorageLock::Acquire(folder);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(folder));
  first->reset();
  EXPECT_TRUE(StorageLock::Acquire(folder).ok());
}

TEST(StorageLock, NamesAFolderThatCannotBeWritten) {
  const std::string file = testing::TempDir() + "/file";
  std::ofstream(file) << "not a folder";
  const auto below = StorageLock::Acquire(file + "/storage");
  EXPECT_FALSE(below.ok());
  EXPECT_THAT(std::string(below.status().message()),
              HasSubstr(file + "/storage"));
  // Exists, and nobody may create files in it, not even root.
  const auto proc = StorageLock::Acquire("/proc/self");
  EXPECT_THAT(std::string(proc.status().message()),
              HasSubstr("storage folder /proc/self is not writable"));
}

}  // namespace
}  // namespace gla::trainer
