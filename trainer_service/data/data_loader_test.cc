#include "trainer_service/data/data_loader.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "gtest/gtest.h"
#include "kernels/base/tensor_view.h"
#include "kernels/loss/linear_cross_entropy.h"
#include "model/tokenizer/tokenizer.h"
#include "trainer_service/data/dataset.h"
#include "trainer_service/data/tokenize_text.h"

namespace gla {
namespace {

// A dataset in which byte i of `text` is token i of the training split.
std::unique_ptr<Dataset> MakeDataset(const std::string& text) {
  const std::string directory = absl::StrCat(
      ::testing::TempDir(), "/",
      ::testing::UnitTest::GetInstance()->current_test_info()->name());
  std::filesystem::remove_all(directory);
  const std::string file = directory + ".txt";
  std::ofstream(file, std::ios::binary) << text;
  const auto manifest =
      TokenizeText(*MakeByteTokenizer(),
                   {.inputs = {file}, .output = directory, .holdout = 0});
  EXPECT_TRUE(manifest.ok()) << manifest.status();
  auto dataset = Dataset::Open(directory);
  EXPECT_TRUE(dataset.ok()) << dataset.status();
  return *std::move(dataset);
}

// Pseudo-random lines of readable text.
std::string Lines(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) {
    absl::StrAppend(&text, "line ", i * 7919 % 1000, " of ", count, "\n");
  }
  return text;
}

std::string Text(const std::vector<int32_t>& ids) {
  return std::string(ids.begin(), ids.end());
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

TEST(LoadTrainingRows, VisitEveryWindowOnceInAnEpoch) {
  // Any ten bytes hold a whole counter: their place can be found again.
  std::string text;
  for (int i = 0; i < 202; ++i) absl::StrAppendFormat(&text, "%04d;", i);
  const auto dataset = MakeDataset(text);
  const DataOrder order = {
      .seed = 5, .sequence_length = 10, .batch_sequences = 3};
  const int64_t windows = (1010 - 1) / 10 - 1;
  std::set<std::vector<size_t>> orders;
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    std::vector<size_t> places;  // of windows, in the order of the visits
    std::set<size_t> begins;
    for (int64_t s = epoch * windows; s < (epoch + 1) * windows; ++s) {
      Batch batch(1, 10);
      LoadTrainingRows(dataset->train(), order, s / 3, s % 3, batch.tokens,
                       batch.labels);
      const size_t begin = text.find(Text(batch.token_ids));
      ASSERT_NE(begin, std::string::npos);
      EXPECT_EQ(text.substr(begin + 1, 10), Text(batch.label_ids));
      begins.insert(begin);
      places.push_back(begin / 10);
    }
    std::set<size_t> want;  // windows without gap, from the epoch's offset
    for (int64_t w = 0; w < windows; ++w) want.insert(*begins.begin() + 10 * w);
    EXPECT_LT(*begins.begin(), 10u);
    EXPECT_EQ(begins, want);
    orders.insert(places);
  }
  EXPECT_EQ(orders.size(), 3u);  // another one in every epoch
}

TEST(LoadTrainingRows, DoNotDependOnHowAStepIsCut) {
  const auto dataset = MakeDataset(Lines(200));
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

TEST(LoadTrainingRows, ChangeWithSeedAndStep) {
  const auto dataset = MakeDataset(Lines(200));
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

TEST(LoadTrainingRows, AreTheOneWindowOfTheShortestStream) {
  const auto dataset = MakeDataset("abcdefgh!");
  Batch batch(1, 8);
  LoadTrainingRows(dataset->train(),
                   {.seed = 1, .sequence_length = 8, .batch_sequences = 1}, 3,
                   0, batch.tokens, batch.labels);
  EXPECT_EQ(Text(batch.token_ids), "abcdefgh");
  EXPECT_EQ(batch.labels[0][7], '!');
}

TEST(LoadEvaluationRows, PredictEveryTokenButTheFirstOnce) {
  const std::string text = Lines(7);
  const auto dataset = MakeDataset(text);
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

TEST(NumEvaluationRows, IsZeroForAnEmptyStream) {
  const auto dataset = MakeDataset("abc");
  EXPECT_EQ(NumEvaluationRows(dataset->validation(), 8), 0);
}

}  // namespace
}  // namespace gla
