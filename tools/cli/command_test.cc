#include "tools/cli/command.h"

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace gla::cli {
namespace {

using Words = std::vector<std::string>;

Command TwoFlags() {
  return {.verb = "train submit",
          .arguments = "JOB",
          .min_positional = 1,
          .max_positional = 1,
          .flags = {{"watch", "", "", ""}, {"steps", "N", "7", ""}}};
}

TEST(ParseArguments, TakesBothFormsOfAFlag) {
  for (const Words& words : {Words{"a", "--steps=3", "--watch"},
                             Words{"--watch", "--steps", "3", "a"}}) {
    const auto parsed = ParseArguments(TwoFlags(), words);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->positional, Words{"a"});
    EXPECT_TRUE(parsed->Has("watch"));
    EXPECT_EQ(*parsed->GetInt("steps"), 3);
  }
}

TEST(ParseArguments, FillsInDefaults) {
  const auto parsed = ParseArguments(TwoFlags(), Words{"a"});
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(*parsed->GetInt("steps"), 7);
  EXPECT_FALSE(parsed->Has("watch"));
}

TEST(ParseArguments, DashesEndFlagsAndADashIsAWord) {
  const auto parsed = ParseArguments(TwoFlags(), Words{"--", "--watch"});
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->positional, Words{"--watch"});
  EXPECT_EQ(ParseArguments(TwoFlags(), Words{"-"})->positional, Words{"-"});
}

TEST(ParseArguments, NamesWhatIsWrong) {
  struct Case {
    Words words;
    std::string named;
  };
  for (const Case& c :
       {Case{{"a", "--stpes=3"}, "--stpes"}, Case{{"a", "--steps"}, "--steps"},
        Case{{"a", "--watch=1"}, "--watch"}, Case{{}, "JOB"},
        Case{{"a", "b"}, "\"b\""}}) {
    const auto parsed = ParseArguments(TwoFlags(), c.words);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(absl::StrContains(parsed.status().message(), c.named))
        << parsed.status();
  }
}

TEST(Arguments, NumbersMustFit) {
  auto parsed = ParseArguments(TwoFlags(), Words{"a", "--steps=5000000000"});
  EXPECT_TRUE(parsed->GetInt<int64_t>("steps").ok());
  EXPECT_FALSE(parsed->GetInt<int32_t>("steps").ok());
  parsed = ParseArguments(TwoFlags(), Words{"a", "--steps=2x"});
  EXPECT_FALSE(parsed->GetInt("steps").ok());
  EXPECT_FALSE(parsed->GetDouble("steps").ok());
}

TEST(RunCommandLine, LongestVerbWinsAndErrorsBecomeExitCodes) {
  std::string ran;
  Command train = {.verb = "train", .run = [&](const Arguments&, ExitCode*) {
                     ran = "train";
                     return absl::OkStatus();
                   }};
  Command submit = TwoFlags();
  submit.run = [&](const Arguments&, ExitCode* code) {
    ran = "submit";
    *code = kCancelled;
    return absl::OkStatus();
  };
  Command lost = {.verb = "lost", .run = [](const Arguments&, ExitCode*) {
                    return absl::UnavailableError("gone");
                  }};
  const std::vector<Command> commands = {train, submit, lost};
  EXPECT_EQ(RunCommandLine(commands, Words{"train", "submit", "x"}),
            kCancelled);
  EXPECT_EQ(ran, "submit");
  EXPECT_EQ(RunCommandLine(commands, Words{"train"}), kSucceeded);
  EXPECT_EQ(RunCommandLine(commands, Words{"lost"}), kConnectionLost);
  EXPECT_EQ(RunCommandLine(commands, Words{"nonsense"}), kUsage);
  EXPECT_EQ(RunCommandLine(commands, Words{}), kUsage);
  EXPECT_EQ(RunCommandLine(commands, Words{"help", "train", "submit"}),
            kSucceeded);
}

}  // namespace
}  // namespace gla::cli
