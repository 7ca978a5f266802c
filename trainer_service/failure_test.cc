#include "trainer_service/failure.h"

#include "gtest/gtest.h"

namespace gla::trainer {
namespace {

using v1::Failure;

TEST(Failure, CarriesReasonAndMessage) {
  const Failure failure = ToFailure(
      WithReason(Failure::NONFINITE, absl::OutOfRangeError("loss is nan")));
  EXPECT_EQ(failure.reason(), Failure::NONFINITE);
  EXPECT_EQ(failure.message(), "loss is nan");
}

TEST(Failure, FirstReasonStays) {
  const absl::Status status = WithReason(
      Failure::DATA,
      WithReason(Failure::CHECKPOINT_CORRUPT, absl::DataLossError("gone")));
  EXPECT_EQ(ToFailure(status).reason(), Failure::CHECKPOINT_CORRUPT);
}

TEST(Failure, IsInternalWithoutAReason) {
  EXPECT_EQ(ToFailure(absl::UnknownError("?")).reason(), Failure::INTERNAL);
}

TEST(Failure, OnlyInfrastructureIsRetried) {
  EXPECT_TRUE(IsRetryable(Failure::WORKER_CRASH));
  EXPECT_TRUE(IsRetryable(Failure::DISK_FULL));
  EXPECT_TRUE(IsRetryable(Failure::INTERNAL));
  EXPECT_FALSE(IsRetryable(Failure::USER_CONFIG));
  EXPECT_FALSE(IsRetryable(Failure::DATA));
  EXPECT_FALSE(IsRetryable(Failure::NONFINITE));
  EXPECT_FALSE(IsRetryable(Failure::CHECKPOINT_CORRUPT));
  EXPECT_FALSE(IsRetryable(Failure::RESTART_BUDGET));
}

}  // namespace
}  // namespace gla::trainer
