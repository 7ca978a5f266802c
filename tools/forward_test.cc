#include "tools/forward.h"

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/types/span.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/testing/relative_rms.h"
#include "model/checkpoint/safetensors.h"

namespace gla {
namespace {

using testing::HasSubstr;

constexpr double kLimit = 1e-4;

std::string Golden(const std::string& name) { return "tests/goldens/" + name; }
std::string Temp(const std::string& name) {
  return testing::TempDir() + "/" + name;
}

std::string Write(const std::string& file, const SafetensorsWriter& writer) {
  const std::string path = Temp(file);
  std::remove(path.c_str());
  const absl::Status status = writer.Write(path);
  EXPECT_TRUE(status.ok()) << status;
  return path;
}

// A file with one tensor of ids.
std::string WriteInput(const std::string& file, const std::string& name,
                       std::vector<int64_t> shape,
                       const std::vector<int32_t>& ids) {
  SafetensorsWriter writer;
  writer.AddInt32(name, std::move(shape), ids.data());
  return Write(file, writer);
}

ForwardOptions TinyOptions() {
  ForwardOptions options;
  options.model = Golden("tiny");
  options.input = Golden("tiny/expected.safetensors");
  options.output = Temp("out.safetensors");
  return options;
}

class ForwardGolden : public testing::TestWithParam<const char*> {};

TEST_P(ForwardGolden, WritesWhatIsExpected) {
  ForwardOptions options = TinyOptions();
  options.model = Golden(GetParam());
  options.input = options.model + "/expected.safetensors";
  options.gradients = true;
  const absl::Status status = RunForward(options);
  ASSERT_TRUE(status.ok()) << status;

  const auto want = SafetensorsReader::Open(options.input);
  const auto got = SafetensorsReader::Open(options.output);
  ASSERT_TRUE(want.ok() && got.ok());
  size_t compared = 0;
  for (const auto& [name, tensor] : (*want)->tensors()) {
    if (name == "tokens" || name == "generated" || name == "step_logits") {
      continue;  // input, and what needs decoding
    }
    const auto found = (*got)->Find(name);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ((*found)->shape, tensor.shape) << name;
    std::vector<float> x(tensor.num_elements()), y(tensor.num_elements());
    ASSERT_TRUE(ReadAsFloat(**found, absl::MakeSpan(x)).ok());
    ASSERT_TRUE(ReadAsFloat(tensor, absl::MakeSpan(y)).ok());
    EXPECT_TRUE(
        RelativeRmsAtMost(kLimit, x, std::vector<double>(y.begin(), y.end())))
        << name;
    ++compared;
  }
  EXPECT_EQ(compared, (*got)->tensors().size());
}

INSTANTIATE_TEST_SUITE_P(Goldens, ForwardGolden,
                         testing::Values("tiny", "tied_old_layout"));

TEST(RunForward, WritesNoGradientsUnlessAsked) {
  const ForwardOptions options = TinyOptions();
  ASSERT_TRUE(RunForward(options).ok());
  const auto file = SafetensorsReader::Open(options.output);
  ASSERT_TRUE(file.ok());
  for (const auto& [name, tensor] : (*file)->tensors()) {
    EXPECT_FALSE(absl::StartsWith(name, "grad.")) << name;
  }
}

TEST(RunForward, ReplacesItsOutput) {
  const ForwardOptions options = TinyOptions();
  std::ofstream(options.output) << "not safetensors";
  ASSERT_TRUE(RunForward(options).ok());
  EXPECT_TRUE(SafetensorsReader::Open(options.output).ok());
}

// Runs with the input, and expects the code and the words.
void ExpectRefusal(const std::string& input, absl::StatusCode code,
                   const std::string& words) {
  ForwardOptions options = TinyOptions();
  options.input = input;
  const absl::Status status = RunForward(options);
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(words));
}

TEST(RunForward, RefusesAFileWithoutTokens) {
  ExpectRefusal(WriteInput("no_tokens", "ids", {1, 2}, {1, 2}),
                absl::StatusCode::kNotFound, "tokens");
}

TEST(RunForward, RefusesTokensOfAnotherDtype) {
  const std::vector<float> values = {1, 2};
  SafetensorsWriter writer;
  writer.AddFloat("tokens", {1, 2}, values.data());
  ExpectRefusal(Write("floats", writer), absl::StatusCode::kInvalidArgument,
                "want I32 [B, T], got F32 [1, 2]");
}

TEST(RunForward, RefusesTokensOfAnotherRank) {
  ExpectRefusal(WriteInput("rank", "tokens", {2}, {1, 2}),
                absl::StatusCode::kInvalidArgument, "got I32 [2]");
}

TEST(RunForward, NamesPlaceAndValueOfATokenOutsideTheVocabulary) {
  ExpectRefusal(WriteInput("high", "tokens", {2, 3}, {1, 2, 3, 4, 512, 6}),
                absl::StatusCode::kInvalidArgument, "tokens[1, 1]: id 512");
  ExpectRefusal(WriteInput("low", "tokens", {1, 2}, {1, -1}),
                absl::StatusCode::kInvalidArgument, "tokens[0, 1]: id -1");
}

TEST(RunForward, RefusesOneTokenPerSequence) {
  ExpectRefusal(WriteInput("short", "tokens", {2, 1}, {1, 2}),
                absl::StatusCode::kInvalidArgument, "no prediction");
}

TEST(RunForward, RefusesADeviceThatItCannotUse) {
  ForwardOptions options = TinyOptions();
  options.device = "cuda";
  EXPECT_EQ(RunForward(options).code(), absl::StatusCode::kFailedPrecondition);
  options.device = "tpu";
  EXPECT_EQ(RunForward(options).code(), absl::StatusCode::kInvalidArgument);
}

TEST(RunForward, RefusesAModelThatIsNotThere) {
  ForwardOptions options = TinyOptions();
  options.model = Golden("none");
  EXPECT_EQ(RunForward(options).code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace gla
