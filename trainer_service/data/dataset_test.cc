// Text to dataset to batches, with the raw-bytes tokenizer, so that every
// expected token can be read off the text.
#include "trainer_service/data/dataset.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/loss/linear_cross_entropy.h"
#include "model/tokenizer/tokenizer.h"
#include "trainer_service/data/data_loader.h"
#include "trainer_service/data/tokenize_text.h"

namespace gla {
namespace {

using ::absl::StatusCode;

class DatasetTest : public ::testing::Test {
 protected:
  DatasetTest()
      : directory_(absl::StrCat(
            ::testing::TempDir(), "/",
            ::testing::UnitTest::GetInstance()->current_test_info()->name())) {
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directories(directory_);
  }

  std::string WriteText(const std::string& name, const std::string& text) {
    const std::string path = absl::StrCat(directory_, "/", name);
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }

  std::string output() const { return directory_ + "/dataset"; }

  // A dataset of `text`, in which byte i of the training split is token i.
  std::unique_ptr<Dataset> Make(const std::string& text, double holdout) {
    const auto manifest = TokenizeText(*MakeByteTokenizer(),
                                       {.inputs = {WriteText("text.txt", text)},
                                        .output = output(),
                                        .holdout = holdout});
    EXPECT_TRUE(manifest.ok()) << manifest.status();
    auto dataset = Dataset::Open(output());
    EXPECT_TRUE(dataset.ok()) << dataset.status();
    return *std::move(dataset);
  }

  void Overwrite(const std::string& file, int64_t offset, char byte) {
    std::fstream f(output() + "/" + file,
                   std::ios::binary | std::ios::in | std::ios::out);
    f.seekp(offset);
    f.put(byte);
  }

  const std::string directory_;
};

// Pseudo-random lines of readable text.
std::string Lines(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) {
    absl::StrAppend(&text, "line ", i * 7919 % 1000, " of ", count, "\n");
  }
  return text;
}

std::string Bytes(const TokenStream& stream) {
  std::vector<int32_t> ids(stream.size());
  stream.Read(0, absl::MakeSpan(ids));
  return std::string(ids.begin(), ids.end());
}

TEST_F(DatasetTest, SplitsAtALineBorderAndKeepsEveryByte) {
  const std::string text = Lines(100);
  const auto dataset = Make(text, 0.1);
  const std::string train = Bytes(dataset->train());
  const std::string validation = Bytes(dataset->validation());
  EXPECT_EQ(train + validation, text);
  EXPECT_EQ(train.back(), '\n');
  EXPECT_NEAR(validation.size(), 0.1 * text.size(), 20);
  EXPECT_EQ(dataset->train().text_bytes(), static_cast<int64_t>(train.size()));
  EXPECT_EQ(dataset->vocab_size(), 256);
  EXPECT_TRUE(dataset->VerifyDigests().ok());
}

TEST_F(DatasetTest, HoldoutOfZeroLeavesValidationEmpty) {
  const auto dataset = Make("abc", 0);
  EXPECT_EQ(Bytes(dataset->train()), "abc");
  EXPECT_EQ(dataset->validation().size(), 0);
  EXPECT_EQ(NumEvaluationRows(dataset->validation(), 8), 0);
}

TEST_F(DatasetTest, RefusesBadInputByName) {
  const auto tokenizer = MakeByteTokenizer();
  const auto missing = TokenizeText(
      *tokenizer, {.inputs = {directory_ + "/none.txt"}, .output = output()});
  EXPECT_EQ(missing.status().code(), StatusCode::kNotFound);
  EXPECT_TRUE(absl::StrContains(missing.status().message(), "none.txt"));

  const auto bad = TokenizeText(
      *tokenizer,
      {.inputs = {WriteText("bad.txt", "ok\xff")}, .output = output()});
  EXPECT_EQ(bad.status().code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(bad.status().message(), "bad.txt"));

  const auto holdout =
      TokenizeText(*tokenizer, {.inputs = {WriteText("t.txt", "abc")},
                                .output = output(),
                                .holdout = 1.5});
  EXPECT_EQ(holdout.status().code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(holdout.status().message(), "1.5"));

  const auto empty = TokenizeText(
      *tokenizer, {.inputs = {WriteText("e.txt", "")}, .output = output()});
  EXPECT_EQ(empty.status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(Dataset::Open(output()).status().code(), StatusCode::kNotFound)
      << "a failed run must leave no dataset";

  Make("abc\n", 0);
  const auto again = TokenizeText(
      *tokenizer, {.inputs = {WriteText("t.txt", "abc")}, .output = output()});
  EXPECT_EQ(again.status().code(), StatusCode::kAlreadyExists);
}

TEST_F(DatasetTest, DamageIsFoundAndNamed) {
  Make(Lines(50), 0.1);
  Overwrite("train-00000.tokens", 10, 'X');
  auto dataset = Dataset::Open(output());
  ASSERT_TRUE(dataset.ok());  // a valid id: only the digest can tell
  const absl::Status digest = (*dataset)->VerifyDigests();
  EXPECT_EQ(digest.code(), StatusCode::kDataLoss);
  EXPECT_TRUE(absl::StrContains(digest.message(), "train-00000.tokens"));

  Overwrite("train-00000.tokens", 11, '\x7f');  // high byte: id 0x7f58
  EXPECT_EQ(Dataset::Open(output()).status().code(), StatusCode::kDataLoss);

  std::filesystem::resize_file(output() + "/train-00000.tokens", 7);
  const absl::Status truncated = Dataset::Open(output()).status();
  EXPECT_EQ(truncated.code(), StatusCode::kDataLoss);
  EXPECT_TRUE(absl::StrContains(truncated.message(), "file has 7"));
}

struct Batch {
  Batch(int64_t rows, int64_t length)
      : token_ids(rows * length),
        label_ids(rows * length),
        tokens(token_ids.data(), {rows, length}),
        labels(label_ids.data(), {rows, length}) {}
  std::vector<int32_t> token_ids, label_ids;
  TensorView<int32_t, 2> tokens, labels;
};

TEST_F(DatasetTest, EpochVisitsEveryWindowOnce) {
  // 1009 distinct positions, told apart by a counter in the text.
  std::string text;
  for (int i = 0; i < 1009; ++i) text += static_cast<char>('a' + i % 26);
  const auto dataset = Make(text, 0);
  const DataOrder order = {
      .seed = 5, .sequence_length = 10, .batch_sequences = 3};
  const int64_t windows = 1008 / 10 - 1;
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    std::map<std::string, int> seen;
    std::string joined;
    for (int64_t s = epoch * windows; s < (epoch + 1) * windows; ++s) {
      Batch batch(1, 10);
      LoadTrainingRows(dataset->train(), order, s / 3, s % 3, batch.tokens,
                       batch.labels);
      for (int t = 0; t + 1 < 10; ++t) {
        EXPECT_EQ(batch.labels[0][t], batch.tokens[0][t + 1]);
      }
      joined.append(batch.token_ids.begin(), batch.token_ids.end());
    }
    // All windows have one phase modulo 26 steps of 10 letters: counting each
    // letter shows that none is visited twice in place of another.
    std::map<char, int> letters;
    for (char c : joined) ++letters[c];
    for (const auto& [letter, count] : letters) {
      EXPECT_NEAR(count, windows * 10 / 26.0, 1.01) << letter;
    }
  }
}

TEST_F(DatasetTest, RowsDoNotDependOnHowAStepIsCut) {
  const auto dataset = Make(Lines(200), 0);
  const DataOrder order = {
      .seed = 9, .sequence_length = 16, .batch_sequences = 6};
  Batch whole(6, 16);
  LoadTrainingRows(dataset->train(), order, 41, 0, whole.tokens, whole.labels);
  for (int first = 0; first < 6; first += 2) {
    Batch part(2, 16);
    LoadTrainingRows(dataset->train(), order, 41, first, part.tokens,
                     part.labels);
    EXPECT_TRUE(std::equal(part.token_ids.begin(), part.token_ids.end(),
                           whole.token_ids.begin() + first * 16));
  }
}

TEST_F(DatasetTest, SeedAndStepChangeTheOrder) {
  const auto dataset = Make(Lines(200), 0);
  auto load = [&](uint64_t seed, int64_t step) {
    Batch batch(2, 16);
    LoadTrainingRows(
        dataset->train(),
        {.seed = seed, .sequence_length = 16, .batch_sequences = 2}, step, 0,
        batch.tokens, batch.labels);
    return batch.token_ids;
  };
  EXPECT_EQ(load(1, 7), load(1, 7));
  EXPECT_NE(load(1, 7), load(1, 8));
  EXPECT_NE(load(1, 7), load(2, 7));
}

TEST_F(DatasetTest, ShortestStreamGivesItsOneWindow) {
  const auto dataset = Make("abcdefgh!", 0);
  Batch batch(1, 8);
  LoadTrainingRows(dataset->train(),
                   {.seed = 1, .sequence_length = 8, .batch_sequences = 1}, 3,
                   0, batch.tokens, batch.labels);
  EXPECT_EQ(std::string(batch.token_ids.begin(), batch.token_ids.end()),
            "abcdefgh");
  EXPECT_EQ(batch.labels[0][7], '!');
}

TEST_F(DatasetTest, EvaluationPredictsEveryTokenButTheFirstOnce) {
  const std::string text = Lines(7);
  const auto dataset = Make(text, 0);
  const TokenStream& stream = dataset->train();
  const int64_t rows = NumEvaluationRows(stream, 32);
  EXPECT_EQ(rows, (static_cast<int64_t>(text.size()) - 1 + 31) / 32);
  Batch batch(rows, 32);
  LoadEvaluationRows(stream, 0, batch.tokens, batch.labels);
  std::string predicted;
  for (int32_t label : batch.label_ids) {
    if (label != kIgnoreLabel) predicted += static_cast<char>(label);
  }
  EXPECT_EQ(predicted, text.substr(1));
}

TEST(HoldoutBegin, CutsAfterALine) {
  EXPECT_EQ(HoldoutBegin("ab\ncd\nef\n", 0.5), 6u);
  EXPECT_EQ(HoldoutBegin("ab\ncd\nef\n", 0), 9u);
  EXPECT_EQ(HoldoutBegin("no newline", 0.5), 10u);
  EXPECT_EQ(HoldoutBegin("", 0.5), 0u);
}

}  // namespace
}  // namespace gla
