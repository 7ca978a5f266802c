#include "trainer_service/job_name.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace gla::trainer {
namespace {

TEST(JobName, AcceptsIdsOfTheDocumentedForm) {
  const std::vector<std::string> ids = {"a", "kjv-2", "x9",
                                        std::string(63, 'a')};
  for (const std::string& id : ids) {
    EXPECT_TRUE(CheckJobId(id).ok()) << id;
    EXPECT_EQ(*ParseJobName("name", "jobs/" + id), id);
  }
}

TEST(JobName, RefusesOthersAndNamesThem) {
  const std::vector<std::string> ids = {
      "", "A", "9a", "-a", "a_b", "a/b", "../x", "a b", std::string(64, 'a')};
  for (const std::string& id : ids) {
    EXPECT_EQ(CheckJobId(id).code(), absl::StatusCode::kInvalidArgument) << id;
    const auto parsed = ParseJobName("name", "jobs/" + id);
    EXPECT_THAT(std::string(parsed.status().message()),
                testing::HasSubstr("\"jobs/" + id + "\""));
  }
  EXPECT_FALSE(ParseJobName("name", "a").ok());
}

TEST(JobName, MadeIdsAreValidAndDiffer) {
  const absl::Time now = absl::FromUnixSeconds(0);
  const std::string id = MakeJobId(now);
  EXPECT_TRUE(CheckJobId(id).ok()) << id;
  EXPECT_EQ(id.substr(0, 20), "job-19700101-000000-");
  EXPECT_NE(id, MakeJobId(now));
}

}  // namespace
}  // namespace gla::trainer
