#include "trainer_service/metrics_log.h"

#include <signal.h>
#include <sys/resource.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace gla::trainer {
namespace {

std::string TestFile() {
  const std::string path =
      testing::TempDir() +
      testing::UnitTest::GetInstance()->current_test_info()->name() + ".jsonl";
  std::filesystem::remove(path);
  return path;
}

std::vector<std::string> Rows(const std::string& path) {
  std::ifstream file(path);
  std::vector<std::string> rows;
  for (std::string row; std::getline(file, row);) rows.push_back(row);
  return rows;
}

v1::Progress AtStep(int64_t step) {
  v1::Progress progress;
  progress.set_step(step);
  progress.set_loss(1.0 / 3);
  progress.set_evaluation_loss(2.5);
  progress.set_evaluation_bits_per_byte(1.25);
  return progress;
}

TEST(MetricsLog, WritesRowsThatReadBackToTheSameBits) {
  const std::string path = TestFile();
  {
    auto log = MetricsLog::Open(path, 0, 2);
    ASSERT_TRUE(log.ok()) << log.status();
    EXPECT_TRUE(log->WriteStep(AtStep(1)).ok());
    EXPECT_TRUE(log->WriteEvaluation(AtStep(1)).ok());
  }
  const auto rows = Rows(path);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0],
            "{\"step\":1,\"attempt\":2,\"loss\":0.33333333333333331,"
            "\"learning_rate\":0,\"grad_norm\":0,\"tokens_per_second\":0.0}");
  EXPECT_EQ(rows[1],
            "{\"step\":1,\"attempt\":2,\"evaluation_loss\":2.5,"
            "\"evaluation_bits_per_byte\":1.25}");
}

TEST(MetricsLog, DropsRowsThatAResumedRunWritesAgain) {
  const std::string path = TestFile();
  {
    auto log = MetricsLog::Open(path, 0, 1);
    for (int step = 1; step <= 5; ++step) {
      EXPECT_TRUE(log->WriteStep(AtStep(step)).ok());
    }
  }
  std::ofstream(path, std::ios::app) << "{\"step\":3,\"att";  // torn
  {
    auto log = MetricsLog::Open(path, 3, 2);
    EXPECT_TRUE(log->WriteStep(AtStep(4)).ok());
  }
  const auto rows = Rows(path);
  ASSERT_EQ(rows.size(), 4u);
  EXPECT_EQ(rows[2].substr(0, 22), "{\"step\":3,\"attempt\":1,");
  EXPECT_EQ(rows[3].substr(0, 22), "{\"step\":4,\"attempt\":2,");
}

TEST(MetricsLog, DropsATornLastRow) {
  const std::string path = TestFile();
  std::ofstream(path) << "{\"step\":1,\"a\":1}\n{\"step\":2,\"a";
  ASSERT_TRUE(MetricsLog::Open(path, 9, 1).ok());
  EXPECT_EQ(Rows(path).size(), 1u);
}

// A limit on the file's size stands for a disk that is full.
TEST(MetricsLog, SaysThatARowCannotBeWritten) {
  const std::string path = TestFile();
  auto log = MetricsLog::Open(path, 0, 1);
  ASSERT_TRUE(log.ok()) << log.status();
  ASSERT_TRUE(log->WriteStep(AtStep(1)).ok());
  signal(SIGXFSZ, SIG_IGN);
  rlimit limit;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  rlimit full = limit;
  full.rlim_cur = std::filesystem::file_size(path) + 10;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &full), 0);
  const absl::Status status = log->WriteStep(AtStep(2));
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr(path));
  // The torn row does not count.
  log = MetricsLog::Open(path, 9, 2);
  EXPECT_EQ(Rows(path).size(), 1u);
}

TEST(StepClock, AveragesTheLastSteps) {
  StepClock clock;
  EXPECT_EQ(clock.mean_seconds(), 0);
  clock.Add(3);
  clock.Add(5);
  EXPECT_EQ(clock.mean_seconds(), 4);
  for (int i = 0; i < 16; ++i) clock.Add(2);
  EXPECT_EQ(clock.mean_seconds(), 2);
}

}  // namespace
}  // namespace gla::trainer
