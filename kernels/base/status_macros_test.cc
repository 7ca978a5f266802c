#include "kernels/base/status_macros.h"

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gtest/gtest.h"

namespace gla {
namespace {

absl::Status Outer(const absl::Status& inner, bool* reached_end) {
  RETURN_IF_ERROR(inner);
  *reached_end = true;
  return absl::OkStatus();
}

TEST(ReturnIfError, ReturnsTheErrorAndPassesOverOk) {
  bool reached_end = false;
  EXPECT_EQ(Outer(absl::NotFoundError("x"), &reached_end),
            absl::NotFoundError("x"));
  EXPECT_FALSE(reached_end);
  EXPECT_TRUE(Outer(absl::OkStatus(), &reached_end).ok());
  EXPECT_TRUE(reached_end);
}

absl::StatusOr<std::unique_ptr<int>> Make(int value) {
  if (value < 0) return absl::InvalidArgumentError("negative");
  return std::make_unique<int>(value);
}

absl::StatusOr<int> Sum(int a, int b) {
  ASSIGN_OR_RETURN(auto left, Make(a));
  ASSIGN_OR_RETURN(auto right, Make(b));
  return *left + *right;
}

TEST(AssignOrReturn, MovesTheValueOrReturnsTheError) {
  EXPECT_EQ(Sum(1, 2).value(), 3);
  EXPECT_EQ(Sum(1, -2).status(), absl::InvalidArgumentError("negative"));
}

}  // namespace
}  // namespace gla
