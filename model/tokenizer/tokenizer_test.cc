#include "model/tokenizer/tokenizer.h"

#include <filesystem>
#include <fstream>
#include <random>
#include <string>

#include "gtest/gtest.h"
#include "model/tokenizer/sentencepiece.h"

namespace gla {
namespace {

namespace fs = std::filesystem;

std::string NewDirectory(const std::string& name) {
  const std::string path = testing::TempDir() + "/" + name;
  fs::remove_all(path);
  fs::create_directories(path);
  return path;
}

void WriteFile(const std::string& path, std::string_view text) {
  std::ofstream(path, std::ios::binary) << text;
}

std::string ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// A few thousand words of made-up English, with what texts contain.
std::string SampleText() {
  const char* const words[] = {"the",    "gate",  "forgets", "what",
                               "matrix", "holds", "and",     "naïve",
                               "state",  "café",  "of",      "attention"};
  std::mt19937 random(1);
  std::string text;
  for (int i = 0; i < 5000; ++i) {
    text += words[random() % std::size(words)];
    text += random() % 12 == 0 ? (random() % 3 == 0 ? ".\r\n" : ",\n\n") : " ";
    if (random() % 50 == 0) text += "    ";
  }
  return text;
}

std::string TrainInto(const std::string& name, std::string_view text,
                      int vocab_size) {
  const std::string directory = NewDirectory(name);
  WriteFile(directory + "/text", text);
  const absl::Status status =
      TrainSentencePiece({.input_file = directory + "/text",
                          .output_directory = directory,
                          .vocab_size = vocab_size,
                          .threads = 2});
  EXPECT_TRUE(status.ok()) << status;
  return directory;
}

// Valid UTF-8 of all character lengths, with the characters that tokenizers
// stumble over.
std::string RandomText(std::mt19937& random) {
  const std::string_view parts[] = {
      " ",   "  ",   "\n",      "\r\n",   "\t",       std::string_view("\0", 1),
      "▁",   "▁▁",   "▅",       "é",      "漢字",     "🙂",
      "<s>", "</s>", "<unk>",   "<0x41>", "the gate", "\xEF\xBB\xBF",
      "ﬁ",   "Å",    "e\u0301", "\u00A0", "\u200D",   "x"};
  std::string text;
  for (int n = random() % 30; n > 0; --n) {
    if (random() % 4 == 0) {
      text += static_cast<char>(random() % 128);
    } else {
      text += parts[random() % std::size(parts)];
    }
  }
  return text;
}

void ExpectLossless(const Tokenizer& tokenizer, const std::string& text) {
  const auto ids = tokenizer.Encode(text);
  ASSERT_TRUE(ids.ok()) << ids.status();
  for (const int32_t id : *ids) {
    ASSERT_GE(id, 0);
    ASSERT_LT(id, tokenizer.vocab_size());
  }
  EXPECT_EQ(tokenizer.Decode(*ids), text);
}

void ExpectLosslessOnRandomTexts(const Tokenizer& tokenizer) {
  std::mt19937 random(7);
  for (int i = 0; i < 2000; ++i) ExpectLossless(tokenizer, RandomText(random));
}

TEST(ByteTokenizer, IsLossless) {
  const auto tokenizer = MakeByteTokenizer();
  EXPECT_EQ(tokenizer->vocab_size(), 256);
  EXPECT_EQ(tokenizer->eos_id(), -1);
  ExpectLosslessOnRandomTexts(*tokenizer);
}

TEST(ByteTokenizer, IsLoadedFromWhereItWasSaved) {
  const std::string directory = NewDirectory("bytes");
  ASSERT_TRUE(MakeByteTokenizer()->Save(directory).ok());
  const auto loaded = LoadTokenizer(directory);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ((*loaded)->Digest(), MakeByteTokenizer()->Digest());
  EXPECT_EQ((*loaded)->vocab_size(), 256);
}

TEST(LoadTokenizer, SaysWhatIsMissing) {
  const auto tokenizer = LoadTokenizer(NewDirectory("empty"));
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kNotFound);
  EXPECT_NE(tokenizer.status().message().find("tokenizer.model"),
            std::string::npos);
}

TEST(LoadTokenizer, SurvivesAPathThatCannotBe) {
  EXPECT_EQ(LoadTokenizer(std::string(5000, 'x')).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(LoadTokenizer, RefusesADamagedModel) {
  const std::string directory = NewDirectory("damaged");
  WriteFile(directory + "/tokenizer.model", "not a model");
  EXPECT_EQ(LoadTokenizer(directory).status().code(),
            absl::StatusCode::kDataLoss);
}

class TrainedTokenizer : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    directory_ = new std::string(TrainInto("trained", SampleText(), 400));
  }
  TrainedTokenizer() : tokenizer_(LoadTokenizer(*directory_).value()) {}

  static std::string* directory_;
  const std::unique_ptr<Tokenizer> tokenizer_;
};
std::string* TrainedTokenizer::directory_ = nullptr;

TEST_F(TrainedTokenizer, HasTheIdsOfTheContract) {
  EXPECT_EQ(tokenizer_->vocab_size(), 400);
  EXPECT_EQ(tokenizer_->eos_id(), 2);
  for (int32_t id : {0, 1, 2}) EXPECT_EQ(tokenizer_->TokenBytes(id), "") << id;
}

TEST_F(TrainedTokenizer, IsLosslessOnItsText) {
  ExpectLossless(*tokenizer_, SampleText());
  EXPECT_LT(tokenizer_->Encode(SampleText())->size(), SampleText().size() / 2);
}

TEST_F(TrainedTokenizer, IsLosslessOnRandomTexts) {
  ExpectLosslessOnRandomTexts(*tokenizer_);
}

TEST_F(TrainedTokenizer, KeepsSpaces) {
  for (const char* text : {"", " ", "  the", "the  ", "\n\n", " \n ", "the"}) {
    ExpectLossless(*tokenizer_, text);
  }
}

TEST_F(TrainedTokenizer, NeverMergesANewline) {
  const auto ids = tokenizer_->Encode("the\n\nthe\r\n");
  int newlines = 0;
  for (const int32_t id : *ids) {
    const std::string bytes = tokenizer_->TokenBytes(id);
    if (bytes == "\n")
      ++newlines;
    else
      EXPECT_EQ(bytes.find('\n'), std::string::npos);
  }
  EXPECT_EQ(newlines, 3);
}

TEST_F(TrainedTokenizer, DoesNotReadControlTokensInText) {
  const auto ids = tokenizer_->Encode("a</s>b<unk><s>");
  for (const int32_t id : *ids) EXPECT_GT(id, 2);
}

TEST_F(TrainedTokenizer, RefusesTextThatIsNotUtf8) {
  const auto ids = tokenizer_->Encode("good \xff bad");
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(ids.status().message().find("byte 5"), std::string::npos);
}

TEST_F(TrainedTokenizer, SavesWhatItLoaded) {
  const std::string copy = NewDirectory("copy");
  ASSERT_TRUE(tokenizer_->Save(copy).ok());
  for (const char* name : {"/tokenizer.model", "/tokenizer_config.json",
                           "/special_tokens_map.json"}) {
    EXPECT_EQ(ReadText(copy + name), ReadText(*directory_ + name)) << name;
    EXPECT_FALSE(ReadText(copy + name).empty()) << name;
  }
  EXPECT_EQ((*LoadTokenizer(copy))->Digest(), tokenizer_->Digest());
}

TEST_F(TrainedTokenizer, IsTheSameWhenTrainedAgain) {
  const std::string again = TrainInto("again", SampleText(), 400);
  EXPECT_EQ((*LoadTokenizer(again))->Digest(), tokenizer_->Digest());
  const std::string other = TrainInto("other", SampleText(), 401);
  EXPECT_NE((*LoadTokenizer(other))->Digest(), tokenizer_->Digest());
}

TEST(TrainSentencePiece, IsQuiet) {
  testing::internal::CaptureStderr();
  TrainInto("quiet", SampleText(), 320);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST(TrainSentencePiece, TakesLongLinesAndReservedCharacters) {
  std::string text = SampleText();
  for (char& c : text) {
    if (c == '\n') c = ' ';
  }
  text += "\ta\tb ▁ ▅ " + std::string(100000, 'x') + std::string(3, '\0');
  ExpectLossless(**LoadTokenizer(TrainInto("long", text, 350)), text);
}

TEST(TrainSentencePiece, RefusesWhatCannotBe) {
  const std::string directory = NewDirectory("refused");
  const auto train = [&](std::string_view text, int vocab_size) {
    WriteFile(directory + "/text", text);
    return TrainSentencePiece({.input_file = directory + "/text",
                               .output_directory = directory,
                               .vocab_size = vocab_size})
        .code();
  };
  EXPECT_EQ(train(SampleText(), 100), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(train(SampleText(), -1), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(train("too little text\n", 4000),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(train("", 400), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(train("\n\n\t\n", 400), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(train("caf\xe9\n", 400), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(fs::exists(directory + "/tokenizer.model"));
  EXPECT_EQ(TrainSentencePiece({.input_file = directory + "/absent",
                                .output_directory = directory,
                                .vocab_size = 400})
                .code(),
            absl::StatusCode::kNotFound);
}

TEST(ValidateUtf8, NamesTheByte) {
  EXPECT_TRUE(ValidateUtf8("a é 漢 🙂 \U0010FFFF").ok());
  for (const char* bad :
       {"ab\x80", "ab\xC0\xAF", "ab\xE0\x80\x80", "ab\xED\xA0\x80",
        "ab\xF4\x90\x80\x80", "ab\xF5", "ab\xE2\x82", "ab\xE2\x82x"}) {
    const absl::Status status = ValidateUtf8(bad);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(), "not UTF-8 at byte 2");
  }
}

TEST(CompleteUtf8Prefix, HoldsBackAPartOfACharacter) {
  const std::string smile = "🙂";
  for (size_t n = 1; n < smile.size(); ++n) {
    EXPECT_EQ(CompleteUtf8Prefix("ab" + smile.substr(0, n)), 2u) << n;
  }
  EXPECT_EQ(CompleteUtf8Prefix("ab" + smile), 6u);
  EXPECT_EQ(CompleteUtf8Prefix(""), 0u);
  EXPECT_EQ(CompleteUtf8Prefix("ab\x80"), 3u);      // malformed
  EXPECT_EQ(CompleteUtf8Prefix("ab\xE0\x80"), 4u);  // can never be complete
  EXPECT_EQ(CompleteUtf8Prefix("\x80\x80\x80\x80"), 4u);
}

}  // namespace
}  // namespace gla
