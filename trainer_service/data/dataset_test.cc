// Text to dataset, with the raw-bytes tokenizer, so that every expected token
// can be read off the text.
#include "trainer_service/data/dataset.h"

#include <sys/stat.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/util/json_util.h"
#include "gtest/gtest.h"
#include "model/tokenizer/tokenizer.h"
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

// A manifest.json that was changed by hand (or by an enemy).
class DatasetManifestTest : public DatasetTest {
 protected:
  DatasetManifestTest() {
    Make(Lines(50), 0.1);
    std::ifstream file(output() + "/manifest.json");
    const std::string json((std::istreambuf_iterator<char>(file)), {});
    EXPECT_TRUE(
        google::protobuf::util::JsonStringToMessage(json, &manifest_).ok());
  }

  gla::v1::Split* train() { return manifest_.mutable_splits(0); }

  // The shard and its split claim the same number, so that only the file can
  // tell.
  void ClaimTokens(int64_t tokens) {
    train()->set_tokens(tokens);
    train()->mutable_shards(0)->set_tokens(tokens);
  }

  // Opens with `manifest_`: DATA_LOSS with these words.
  void ExpectRefused(const std::vector<std::string>& words) {
    std::string json;
    ASSERT_TRUE(
        google::protobuf::util::MessageToJsonString(manifest_, &json).ok());
    std::ofstream(output() + "/manifest.json") << json;
    const absl::Status status = Dataset::Open(output()).status();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status;
    for (const std::string& word : words) {
      EXPECT_TRUE(absl::StrContains(status.message(), word))
          << word << " in " << status;
    }
  }

  gla::v1::DatasetManifest manifest_;
};

TEST_F(DatasetManifestTest, TokensWhoseBytesOverflow) {
  const int64_t right = train()->tokens();
  manifest_.set_bytes_per_token(4);
  std::filesystem::resize_file(output() + "/train-00000.tokens", 4 * right);
  for (const int64_t tokens :
       {(int64_t{1} << 62) + right, INT64_MAX, right + 1, right - 1}) {
    ClaimTokens(tokens);
    ExpectRefused(
        {"train-00000.tokens", absl::StrCat(tokens), absl::StrCat(4 * right)});
  }
}

TEST_F(DatasetManifestTest, NegativeTokens) {
  ClaimTokens(-3);
  ExpectRefused({"manifest.json", "train-00000.tokens", "-3"});
}

TEST_F(DatasetManifestTest, SumsThatOverflow) {
  *train()->add_shards() = train()->shards(0);
  train()->mutable_shards(0)->set_tokens(INT64_MAX);
  ExpectRefused({"manifest.json", "train"});
}

TEST_F(DatasetManifestTest, FilesOfHalfATokenMore) {
  const std::string path = output() + "/train-00000.tokens";
  std::filesystem::resize_file(path, std::filesystem::file_size(path) + 1);
  ExpectRefused({"train-00000.tokens", absl::StrCat(train()->tokens())});
}

TEST_F(DatasetManifestTest, ShardsOutsideTheDirectory) {
  for (const std::string path :
       {"../text.txt", "/etc/passwd", "a/b", "..", ".", ""}) {
    train()->mutable_shards(0)->set_path(path);
    ExpectRefused({"manifest.json", absl::StrCat("\"", path, "\"")});
  }
}

TEST_F(DatasetManifestTest, SplitsListedTwice) {
  *manifest_.add_splits() = *train();
  ExpectRefused({"manifest.json", "split train", "twice"});
}

TEST_F(DatasetManifestTest, TokensOfNoText) {
  for (const int64_t bytes : {0, -1}) {
    train()->set_text_bytes(bytes);
    ExpectRefused({"manifest.json", "textBytes",
                   absl::StrCat("got ", bytes, " for ", train()->tokens())});
  }
}

TEST_F(DatasetManifestTest, SplitsThatAreNotTheSumOfTheirShards) {
  const int64_t right = train()->tokens();
  train()->set_tokens(right + 1);
  ExpectRefused(
      {"manifest.json", absl::StrCat(right), absl::StrCat(right + 1)});
}

TEST_F(DatasetManifestTest, ShardsThatAreNoFiles) {
  const std::string path = output() + "/train-00000.tokens";
  std::filesystem::remove(path);
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  ExpectRefused({path});
}

TEST(HoldoutBegin, CutsAfterALine) {
  EXPECT_EQ(HoldoutBegin("ab\ncd\nef\n", 0.5), 6u);
  EXPECT_EQ(HoldoutBegin("ab\ncd\nef\n", 0), 9u);
  EXPECT_EQ(HoldoutBegin("no newline", 0.5), 10u);
  EXPECT_EQ(HoldoutBegin("", 0.5), 0u);
}

}  // namespace
}  // namespace gla
