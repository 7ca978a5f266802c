#include "trainer_service/restart_policy.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace gla::trainer {
namespace {

using v1::Failure;

Failure Because(Failure::Reason reason) {
  Failure failure;
  failure.set_reason(reason);
  failure.set_message("the cause");
  return failure;
}

TEST(DecideRestart, DoublesTheBackoffUpToAMinute) {
  int32_t count = 0;
  for (int seconds : {1, 2, 4, 8, 16, 32, 60, 60}) {
    const auto decision =
        DecideRestart(Because(Failure::WORKER_CRASH), false, count, 100);
    EXPECT_TRUE(decision.restart);
    EXPECT_EQ(decision.backoff, absl::Seconds(seconds));
    count = decision.restarts_without_progress;
  }
}

TEST(DecideRestart, GivesUpAfterTheBudgetAndKeepsTheCause) {
  EXPECT_TRUE(
      DecideRestart(Because(Failure::WORKER_CRASH), false, 2, 3).restart);
  const auto decision =
      DecideRestart(Because(Failure::WORKER_CRASH), false, 3, 3);
  EXPECT_FALSE(decision.restart);
  EXPECT_EQ(decision.failure.reason(), Failure::RESTART_BUDGET);
  EXPECT_THAT(decision.failure.message(),
              testing::AllOf(testing::HasSubstr("4 attempts"),
                             testing::HasSubstr("WORKER_CRASH: the cause")));
}

TEST(DecideRestart, ProgressClearsTheCount) {
  const auto decision =
      DecideRestart(Because(Failure::WORKER_CRASH), true, 3, 3);
  EXPECT_TRUE(decision.restart);
  EXPECT_EQ(decision.restarts_without_progress, 0);
  EXPECT_EQ(decision.backoff, absl::Seconds(1));
}

TEST(DecideRestart, DoesNotRetryWhatCannotEndBetter) {
  for (Failure::Reason reason :
       {Failure::USER_CONFIG, Failure::DATA, Failure::NONFINITE,
        Failure::CHECKPOINT_CORRUPT}) {
    const auto decision = DecideRestart(Because(reason), true, 0, 3);
    EXPECT_FALSE(decision.restart);
    EXPECT_EQ(decision.failure.reason(), reason);
  }
}

}  // namespace
}  // namespace gla::trainer
