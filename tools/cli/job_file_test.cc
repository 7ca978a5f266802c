#include "tools/cli/job_file.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace gla::cli {
namespace {

absl::StatusOr<trainer::v1::JobSpec> Read(const std::string& text) {
  const std::string path = absl::StrCat(::testing::TempDir(), "/job.textproto");
  std::ofstream(path) << text;
  return ReadJobFile(path);
}

TEST(ReadJobFile, MakesTheDatasetAbsolute) {
  const auto spec = Read(
      "total_steps: 10 data { dataset: 'run/data' } model { hidden_size: 64 }");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->total_steps(), 10);
  EXPECT_EQ(spec->data().dataset(),
            std::filesystem::current_path().string() + "/run/data");
  EXPECT_EQ(spec->model().hidden_size(), 64);
}

TEST(ReadJobFile, NamesThePlaceAndTheUnknownField) {
  const auto spec = Read("total_steps: 10\nmodel {\n  hiden_size: 64\n}\n");
  EXPECT_EQ(spec.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(spec.status().message(), ":3:13"))
      << spec.status();
  EXPECT_TRUE(absl::StrContains(spec.status().message(), "hiden_size"));
}

TEST(ReadJobFile, MissingFileIsNotFound) {
  EXPECT_EQ(ReadJobFile("/none.textproto").status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace gla::cli
