#include "inference_service/generate_request.h"

#include <cmath>
#include <limits>
#include <string>

#include "gtest/gtest.h"

namespace gla::inference {
namespace {

constexpr uint64_t kFreshSeed = 99;

class GenerateRequestTest : public testing::Test {
 protected:
  GenerateRequestTest() { proto_.mutable_prompt()->set_text("In the"); }

  absl::StatusOr<GenerationRequest> Parse() const {
    return ParseGenerateRequest(proto_, tokenizer_.get(), 256, kFreshSeed);
  }
  // The error of a request that must be refused.
  std::string Refused() const {
    const absl::Status status = Parse().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  }
  v1::SamplingParams& sampling() { return *proto_.mutable_sampling(); }
  void SetTokens(const std::vector<int32_t>& ids) {
    proto_.mutable_prompt()->mutable_tokens()->mutable_ids()->Assign(
        ids.begin(), ids.end());
  }

  std::unique_ptr<Tokenizer> tokenizer_ = MakeByteTokenizer();
  v1::GenerateRequest proto_;
};

TEST_F(GenerateRequestTest, FillsInTheDefaults) {
  const GenerationRequest request = Parse().value();
  EXPECT_EQ(request.prompt,
            (std::vector<int32_t>{'I', 'n', ' ', 't', 'h', 'e'}));
  EXPECT_EQ(request.sampling.temperature, 1);
  EXPECT_EQ(request.sampling.top_k, 0);
  EXPECT_EQ(request.sampling.top_p, 1);
  EXPECT_EQ(request.sampling.seed, kFreshSeed);
  EXPECT_EQ(request.max_new_tokens, 256);
  EXPECT_TRUE(request.stop.empty());
  EXPECT_FALSE(request.ignore_eos);
}

TEST_F(GenerateRequestTest, TakesWhatIsGivenZeroIncluded) {
  SetTokens({0, 255});
  sampling().set_temperature(0);
  sampling().set_top_k(1);
  sampling().set_top_p(0.5);
  sampling().set_seed(0);
  sampling().set_max_new_tokens(1);
  sampling().add_stop("\n");
  sampling().set_ignore_eos(true);
  const GenerationRequest request = Parse().value();
  EXPECT_EQ(request.prompt, (std::vector<int32_t>{0, 255}));
  EXPECT_EQ(request.sampling.temperature, 0);
  EXPECT_EQ(request.sampling.top_k, 1);
  EXPECT_EQ(request.sampling.top_p, 0.5);
  EXPECT_EQ(request.sampling.seed, 0u);
  EXPECT_EQ(request.max_new_tokens, 1);
  EXPECT_EQ(request.stop, std::vector<std::string>{"\n"});
  EXPECT_TRUE(request.ignore_eos);
}

TEST_F(GenerateRequestTest, RefusesAnEmptyPrompt) {
  proto_.mutable_prompt()->set_text("");
  EXPECT_EQ(Refused(), "prompt.text: empty");
  proto_.mutable_prompt()->mutable_tokens();
  EXPECT_EQ(Refused(), "prompt.tokens: empty");
  proto_.clear_prompt();
  EXPECT_EQ(Refused(), "prompt: want text or tokens, got neither");
}

TEST_F(GenerateRequestTest, RefusesTextThatIsNotUtf8NamingTheByte) {
  proto_.mutable_prompt()->set_text("In th\xff");
  const std::string message = Refused();
  EXPECT_TRUE(message.starts_with("prompt.text: ")) << message;
  EXPECT_NE(message.find("5"), std::string::npos) << message;
}

TEST_F(GenerateRequestTest, RefusesTokensOutsideTheVocabulary) {
  SetTokens({1, 2, 256});
  EXPECT_EQ(Refused(), "prompt.tokens.ids[2]: want [0, 256), got 256");
  SetTokens({-1});
  EXPECT_EQ(Refused(), "prompt.tokens.ids[0]: want [0, 256), got -1");
}

TEST_F(GenerateRequestTest, RefusesImpossibleTemperatures) {
  for (float bad : {-0.1f, std::numeric_limits<float>::quiet_NaN(),
                    std::numeric_limits<float>::infinity()}) {
    sampling().set_temperature(bad);
    EXPECT_TRUE(Refused().starts_with(
        "sampling.temperature: want a number >= 0, got "));
  }
}

TEST_F(GenerateRequestTest, RefusesImpossibleTopP) {
  for (float bad :
       {0.0f, -1.0f, 1.001f, std::numeric_limits<float>::quiet_NaN()}) {
    sampling().set_top_p(bad);
    EXPECT_TRUE(Refused().starts_with("sampling.top_p: want (0, 1], got "));
  }
}

TEST_F(GenerateRequestTest, RefusesImpossibleCounts) {
  sampling().set_top_k(0);
  EXPECT_EQ(Refused(), "sampling.top_k: want >= 1, got 0");
  sampling().clear_top_k();
  sampling().set_max_new_tokens(0);
  EXPECT_EQ(Refused(), "sampling.max_new_tokens: want >= 1, got 0");
}

TEST_F(GenerateRequestTest, RefusesBadStopStrings) {
  sampling().add_stop("fine");
  sampling().add_stop("");
  EXPECT_EQ(Refused(), "sampling.stop[1]: want 1 to 256 bytes, got 0");
  sampling().set_stop(1, std::string(257, 'x'));
  EXPECT_EQ(Refused(), "sampling.stop[1]: want 1 to 256 bytes, got 257");
  sampling().set_stop(1, "\xc3");
  EXPECT_TRUE(Refused().starts_with("sampling.stop[1]: "));
  sampling().set_stop(1, "also fine");
  for (int i = 0; i < 15; ++i) sampling().add_stop("x");
  EXPECT_EQ(Refused(), "sampling.stop: want at most 16 strings, got 17");
}

TEST_F(GenerateRequestTest, AModelWithoutTokenizerTakesTokenIdsOnly) {
  tokenizer_ = nullptr;
  EXPECT_EQ(Parse().status().code(), absl::StatusCode::kFailedPrecondition);
  SetTokens({5});
  EXPECT_TRUE(Parse().ok());
  sampling().add_stop("x");
  EXPECT_EQ(Parse().status().code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace gla::inference
