// Models that others trained: with a normaliser, a dummy prefix, without byte
// fallback.
#include "model/tokenizer/sentencepiece.h"

#include <fstream>
#include <string>
#include <unordered_map>

#include "gtest/gtest.h"
#include "model/tokenizer/sentencepiece_model.h"

namespace gla {
namespace {

using Flags = std::unordered_map<std::string, std::string>;

// Trains with SentencePiece's own defaults (NFKC, dummy prefix, no repeated
// spaces), changed by `flags`.
std::unique_ptr<Tokenizer> TrainLike(const std::string& name, Flags flags) {
  flags.insert({{"model_type", "bpe"}, {"minloglevel", "3"}});
  int sentences = 0;
  std::string model, error;
  EXPECT_TRUE(internal::TrainSentencePieceModel(
      flags,
      [&](std::string* sentence) {
        *sentence = "the gate forgets what the matrix holds, and holds it";
        sentence->resize(20 + sentences % 30);
        return ++sentences < 1000;
      },
      &model, &error))
      << error;
  const std::string path = testing::TempDir() + "/" + name;
  std::ofstream(path, std::ios::binary) << model;
  auto tokenizer = LoadSentencePiece(path);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

void ExpectLossless(const Tokenizer& tokenizer, const std::string& text) {
  const auto ids = tokenizer.Encode(text);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(tokenizer.Decode(*ids), text);
}

constexpr const char* kHardTexts[] = {"the gate",
                                      "  the   gate  ",
                                      " ",
                                      "",
                                      "\n\n\r\n",
                                      "ﬁne",
                                      "Å vs Å",
                                      "①",
                                      "\t\t x",
                                      "▁the▁",
                                      "漢字🙂",
                                      "e\u0301",
                                      "the\u00A0gate",
                                      "\u3000",
                                      "\x01\x7f"};

TEST(LoadSentencePiece, MakesAModelLikeLlamasLossless) {
  const auto tokenizer =
      TrainLike("llama", {{"vocab_size", "320"},
                          {"byte_fallback", "true"},
                          {"normalization_rule_name", "nmt_nfkc"}});
  for (const char* text : kHardTexts) ExpectLossless(*tokenizer, text);
  ExpectLossless(*tokenizer, std::string("nul \0 byte", 10));
}

TEST(LoadSentencePiece, MakesAUnigramModelLossless) {
  const auto tokenizer = TrainLike("unigram", {{"vocab_size", "300"},
                                               {"hard_vocab_limit", "false"},
                                               {"model_type", "unigram"},
                                               {"byte_fallback", "true"}});
  for (const char* text : kHardTexts) ExpectLossless(*tokenizer, text);
}

TEST(LoadSentencePiece, RefusesTextThatWouldNotComeBack) {
  const auto tokenizer = TrainLike("no_bytes", {{"vocab_size", "40"}});
  ExpectLossless(*tokenizer, "  the gate  ");
  for (const char* bad : {"the 漢", "the Z", "the ▁", "the \n"}) {
    const absl::Status status = tokenizer->Encode(bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_NE(status.message().find("at byte 4"), std::string::npos) << status;
  }
}

TEST(LoadSentencePiece, NeedsAFile) {
  EXPECT_EQ(LoadSentencePiece(testing::TempDir() + "/absent").status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace gla
