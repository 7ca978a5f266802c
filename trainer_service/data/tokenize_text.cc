#include "trainer_service/data/tokenize_text.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string_view>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "google/protobuf/util/json_util.h"
#include "kernels/base/status_macros.h"
#include "model/checkpoint/sha256.h"

namespace gla {
namespace {

// Tokens in a shard file; the last of a split may be shorter.
constexpr int64_t kShardTokens = int64_t{1} << 26;
// Text is encoded in pieces of about this size, cut at line borders.
constexpr size_t kPieceBytes = size_t{1} << 20;

absl::StatusOr<std::string> ReadTextFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::error_code error;
  if (!file || std::filesystem::is_directory(path, error)) {
    return absl::NotFoundError(absl::StrCat(path, ": cannot read this file"));
  }
  return std::string((std::istreambuf_iterator<char>(file)),
                     std::istreambuf_iterator<char>());
}

// The end of the piece of `text` that starts at `begin`: after a newline if one
// is near the wanted size.
size_t PieceEnd(std::string_view text, size_t begin) {
  if (text.size() - begin <= kPieceBytes) return text.size();
  const size_t newline = text.find('\n', begin + kPieceBytes);
  return newline == std::string_view::npos ? text.size() : newline + 1;
}

// Writes one split: a stream of tokens into numbered shard files.
class SplitWriter {
 public:
  SplitWriter(std::string directory, std::string name, int bytes_per_token)
      : directory_(std::move(directory)), bytes_per_token_(bytes_per_token) {
    split_.set_name(std::move(name));
  }

  absl::Status Append(absl::Span<const int32_t> tokens) {
    for (int32_t id : tokens) {
      for (int byte = 0; byte < bytes_per_token_; ++byte) {
        buffer_.push_back(static_cast<char>(id >> (8 * byte)));
      }
      if (static_cast<int64_t>(buffer_.size()) ==
          kShardTokens * bytes_per_token_) {
        RETURN_IF_ERROR(Flush());
      }
    }
    return absl::OkStatus();
  }

  void AddTextBytes(int64_t bytes) {
    split_.set_text_bytes(split_.text_bytes() + bytes);
  }

  absl::StatusOr<gla::v1::Split> Finish() {
    RETURN_IF_ERROR(Flush());
    return split_;
  }

 private:
  absl::Status Flush() {
    if (buffer_.empty()) return absl::OkStatus();
    gla::v1::Shard* shard = split_.add_shards();
    shard->set_path(absl::StrCat(
        split_.name(), "-",
        absl::Dec(split_.shards_size() - 1, absl::kZeroPad5), ".tokens"));
    shard->set_tokens(buffer_.size() / bytes_per_token_);
    shard->set_sha256(Sha256(buffer_));
    split_.set_tokens(split_.tokens() + shard->tokens());
    const std::string path = absl::StrCat(directory_, "/", shard->path());
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    file.write(buffer_.data(), buffer_.size());
    file.close();
    buffer_.clear();
    if (!file) return absl::InternalError(absl::StrCat(path, ": write failed"));
    return absl::OkStatus();
  }

  const std::string directory_;
  const int bytes_per_token_;
  gla::v1::Split split_;
  std::string buffer_;
};

// Encodes `text` of `file` into `writer`; `base` is its place in the file.
absl::Status EncodeInto(const Tokenizer& tokenizer, const std::string& file,
                        std::string_view text, size_t base,
                        SplitWriter& writer) {
  if (text.empty()) return absl::OkStatus();
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = PieceEnd(text, begin);
    const auto ids = tokenizer.Encode(text.substr(begin, end - begin));
    if (!ids.ok()) {
      return absl::Status(
          ids.status().code(),
          absl::StrCat(file, ", in the piece from byte ", base + begin, ": ",
                       ids.status().message()));
    }
    RETURN_IF_ERROR(writer.Append(*ids));
    begin = end;
  }
  if (tokenizer.eos_id() >= 0) {
    RETURN_IF_ERROR(writer.Append({tokenizer.eos_id()}));
  }
  writer.AddTextBytes(text.size());
  return absl::OkStatus();
}

absl::Status WriteManifest(const std::string& directory,
                           const gla::v1::DatasetManifest& manifest) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  std::string json;
  const auto status =
      google::protobuf::util::MessageToJsonString(manifest, &json, options);
  if (!status.ok()) return absl::InternalError(std::string(status.message()));
  const std::string path = absl::StrCat(directory, "/manifest.json");
  std::ofstream file(path + ".tmp", std::ios::binary | std::ios::trunc);
  file << json;
  file.close();
  std::error_code error;
  if (file) std::filesystem::rename(path + ".tmp", path, error);
  if (!file || error) {
    return absl::InternalError(absl::StrCat(path, ": write failed"));
  }
  return absl::OkStatus();
}

absl::Status PrepareOutput(const TokenizeOptions& options) {
  if (options.inputs.empty()) {
    return absl::InvalidArgumentError("no input file given");
  }
  if (!(options.holdout >= 0 && options.holdout < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("holdout: want a share in [0, 1), got ", options.holdout));
  }
  std::error_code error;
  if (std::filesystem::exists(options.output + "/manifest.json", error)) {
    return absl::AlreadyExistsError(
        absl::StrCat(options.output, ": holds a dataset already"));
  }
  std::filesystem::create_directories(options.output, error);
  if (error) {
    return absl::FailedPreconditionError(
        absl::StrCat(options.output, ": cannot create: ", error.message()));
  }
  return absl::OkStatus();
}

}  // namespace

size_t HoldoutBegin(std::string_view text, double holdout) {
  const auto wanted =
      static_cast<size_t>(std::llround((1 - holdout) * text.size()));
  if (wanted == 0 || wanted >= text.size())
    return std::min(wanted, text.size());
  const size_t newline = text.find('\n', wanted - 1);
  return newline == std::string_view::npos ? text.size() : newline + 1;
}

absl::StatusOr<gla::v1::DatasetManifest> TokenizeText(
    const Tokenizer& tokenizer, const TokenizeOptions& options) {
  RETURN_IF_ERROR(PrepareOutput(options));
  gla::v1::DatasetManifest manifest;
  manifest.set_format_version(1);
  manifest.set_tokenizer_sha256(tokenizer.Digest());
  manifest.set_vocab_size(tokenizer.vocab_size());
  manifest.set_bytes_per_token(tokenizer.vocab_size() <= 1 << 16 ? 2 : 4);
  SplitWriter train(options.output, "train", manifest.bytes_per_token());
  SplitWriter validation(options.output, "validation",
                         manifest.bytes_per_token());
  for (const std::string& input : options.inputs) {
    ASSIGN_OR_RETURN(const std::string text, ReadTextFile(input));
    gla::v1::Source* source = manifest.add_sources();
    source->set_name(std::filesystem::path(input).filename());
    source->set_size_bytes(text.size());
    source->set_sha256(Sha256(text));
    const size_t border = HoldoutBegin(text, options.holdout);
    const std::string_view view = text;
    RETURN_IF_ERROR(
        EncodeInto(tokenizer, input, view.substr(0, border), 0, train));
    RETURN_IF_ERROR(
        EncodeInto(tokenizer, input, view.substr(border), border, validation));
  }
  ASSIGN_OR_RETURN(*manifest.add_splits(), train.Finish());
  ASSIGN_OR_RETURN(*manifest.add_splits(), validation.Finish());
  if (manifest.splits(0).tokens() == 0) {
    return absl::InvalidArgumentError("the inputs hold no text to train on");
  }
  RETURN_IF_ERROR(tokenizer.Save(options.output));
  RETURN_IF_ERROR(WriteManifest(options.output, manifest));
  return manifest;
}

}  // namespace gla
