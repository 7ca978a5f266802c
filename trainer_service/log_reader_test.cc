#include "trainer_service/log_reader.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace gla::trainer {
namespace {

std::string LogWith(const std::string& text) {
  const std::string path =
      testing::TempDir() +
      testing::UnitTest::GetInstance()->current_test_info()->name();
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

TEST(ReadLog, GivesWholeLines) {
  const std::string path = LogWith("one\ntwo\nthr");
  EXPECT_EQ(*ReadLog(path, 0, false), "one\ntwo\n");
  EXPECT_EQ(*ReadLog(path, 4, false), "two\n");
  EXPECT_EQ(*ReadLog(path, 8, false), "");
  EXPECT_EQ(*ReadLog(path, 8, true), "thr");
  EXPECT_EQ(*ReadLog(path, 11, true), "");
}

TEST(ReadLog, GoesThroughALongFileWithoutGapOrRepeat) {
  std::string text;
  for (int i = 0; i < 40000; ++i) text += std::to_string(i) + "\n";
  text += std::string(200000, 'x') + "\nend";
  const std::string path = LogWith(text);
  std::string seen;
  while (true) {
    const auto batch =
        ReadLog(path, static_cast<int64_t>(seen.size()), /*ended=*/true);
    ASSERT_TRUE(batch.ok());
    if (batch->empty()) break;
    EXPECT_LE(batch->size(), 64u << 10);
    seen += *batch;
  }
  EXPECT_EQ(seen, text);
}

TEST(ReadLog, ALogThatIsNotThereYetIsEmpty) {
  EXPECT_EQ(*ReadLog("/nowhere/log", 0, false), "");
}

TEST(ReadLog, RefusesOffsetsOutsideTheFile) {
  const std::string path = LogWith("one\n");
  for (int64_t offset : {-1, 5}) {
    const auto batch = ReadLog(path, offset, false);
    EXPECT_EQ(batch.status().code(), absl::StatusCode::kOutOfRange);
    EXPECT_THAT(std::string(batch.status().message()),
                testing::HasSubstr("want 0 to 4, got"));
  }
}

}  // namespace
}  // namespace gla::trainer
