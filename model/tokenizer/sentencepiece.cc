#include "model/tokenizer/sentencepiece.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "glog/logging.h"
#include "kernels/base/status_macros.h"
#include "model/checkpoint/durable_file.h"
#include "model/checkpoint/sha256.h"
#include "model/tokenizer/sentencepiece_model.h"
#include "model/tokenizer/sentencepiece_training_text.h"
#include "nlohmann/json.hpp"

namespace gla {
namespace {

using internal::SentencePieceModel;
using Kind = SentencePieceModel::Kind;

// U+2581, which stands for a space in pieces. Real ones in a text are written
// as bytes.
constexpr std::string_view kSpaceEscape = "\xe2\x96\x81";

// ModelProto.normalizer_spec (field 3, 10 bytes) { name (1) "",
// precompiled_charsmap (2) "", add_dummy_prefix (3) false,
// remove_extra_whitespaces (4) false, escape_whitespaces (5) true }. Appended
// to a serialized model, it replaces these fields of the model's own.
constexpr std::string_view kPlainNormalizer(
    "\x1a\x0a\x0a\x00\x12\x00\x18\x00\x20\x00\x28\x01", 12);

std::string BytesOf(const SentencePieceModel::Piece& piece) {
  switch (piece.kind) {
    case Kind::kControl:
    case Kind::kUnknown:
      return "";
    case Kind::kByte:  // "<0x41>"
      return std::string(1, static_cast<char>(std::strtol(
                                piece.text.c_str() + 1, nullptr, 16)));
    case Kind::kText:
      break;
  }
  return absl::StrReplaceAll(piece.text, {{"\xe2\x96\x81", " "}});
}

class SentencePieceTokenizer : public Tokenizer {
 public:
  SentencePieceTokenizer(std::string serialized,
                         std::unique_ptr<SentencePieceModel> model)
      : serialized_(std::move(serialized)), model_(std::move(model)) {
    const auto& pieces = model_->pieces();
    for (size_t id = 0; id < pieces.size(); ++id) {
      bytes_.push_back(BytesOf(pieces[id]));
      const size_t newline = bytes_.back().find('\n');
      if (newline != std::string::npos && newline + 1 < bytes_.back().size()) {
        lines_are_apart_ = false;
      }
      if (pieces[id].kind == Kind::kByte) {
        byte_ids_[static_cast<unsigned char>(bytes_.back()[0])] =
            static_cast<int32_t>(id);
      }
    }
  }

  int32_t vocab_size() const override {
    return static_cast<int32_t>(bytes_.size());
  }
  int32_t eos_id() const override { return model_->eos_id(); }

  absl::StatusOr<std::vector<int32_t>> Encode(
      std::string_view text) const override {
    RETURN_IF_ERROR(ValidateUtf8(text));
    std::vector<int32_t> ids;
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = SegmentEnd(text, begin);
      const std::string_view segment = text.substr(begin, end - begin);
      if (segment == kSpaceEscape) {
        AppendBytes(segment, &ids);
      } else {
        model_->Encode(segment, &ids);
      }
      begin = end;
    }
    RETURN_IF_ERROR(CheckLossless(text, ids));
    return ids;
  }

  std::string TokenBytes(int32_t id) const override {
    CHECK(id >= 0 && id < vocab_size()) << "token id " << id;
    return bytes_[id];
  }

  std::string Digest() const override { return Sha256(serialized_); }

  absl::Status Save(const std::string& directory) const override;

 private:
  // What is encoded at once: a U+2581, or what comes before the next, or a
  // line, because the time grows faster than the length.
  size_t SegmentEnd(std::string_view text, size_t begin) const {
    constexpr size_t npos = std::string_view::npos;
    const size_t escape = text.find(kSpaceEscape, begin);
    if (escape == begin) return begin + kSpaceEscape.size();
    const size_t newline = lines_are_apart_ ? text.find('\n', begin) : npos;
    return std::min(
        {escape, newline == npos ? npos : newline + 1, text.size()});
  }

  // Without byte fallback nothing is appended, and CheckLossless will say so.
  void AppendBytes(std::string_view bytes, std::vector<int32_t>* ids) const {
    for (const unsigned char byte : bytes) {
      if (byte_ids_[byte] >= 0) ids->push_back(byte_ids_[byte]);
    }
  }

  absl::Status CheckLossless(std::string_view text,
                             const std::vector<int32_t>& ids) const {
    size_t offset = 0;
    for (const int32_t id : ids) {
      const std::string& bytes = bytes_[id];
      if (bytes.empty() || text.substr(offset, bytes.size()) != bytes) break;
      offset += bytes.size();
    }
    if (offset == text.size()) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        "the tokenizer has no tokens for the text at byte ", offset));
  }

  const std::string serialized_;
  const std::unique_ptr<SentencePieceModel> model_;
  std::vector<std::string> bytes_;  // by id
  std::vector<int32_t> byte_ids_ = std::vector<int32_t>(256, -1);
  bool lines_are_apart_ = true;  // no piece goes on after a newline
};

nlohmann::ordered_json TextOrNull(const SentencePieceModel& model, int id) {
  if (id < 0) return nullptr;
  return model.pieces()[id].text;
}

absl::Status SentencePieceTokenizer::Save(const std::string& directory) const {
  nlohmann::ordered_json special;
  special["bos_token"] = TextOrNull(*model_, model_->bos_id());
  special["eos_token"] = TextOrNull(*model_, model_->eos_id());
  special["unk_token"] = TextOrNull(*model_, model_->unk_id());
  nlohmann::ordered_json config = special;
  config["tokenizer_class"] = "LlamaTokenizer";
  config["legacy"] = false;
  config["add_bos_token"] = false;
  config["add_eos_token"] = false;
  config["add_prefix_space"] = false;
  config["clean_up_tokenization_spaces"] = false;
  RETURN_IF_ERROR(
      WriteDurableFile(directory + "/tokenizer.model", serialized_));
  RETURN_IF_ERROR(WriteDurableFile(directory + "/tokenizer_config.json",
                                   config.dump(2) + "\n"));
  return WriteDurableFile(directory + "/special_tokens_map.json",
                          special.dump(2) + "\n");
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadSentencePiece(
    const std::string& model_file) {
  ASSIGN_OR_RETURN(std::string serialized, ReadFile(model_file));
  std::string error;
  auto model = SentencePieceModel::Parse(
      absl::StrCat(serialized, std::string(kPlainNormalizer)), &error);
  if (model == nullptr) {
    return absl::DataLossError(
        absl::StrCat(model_file, ": not a SentencePiece model: ", error));
  }
  return std::make_unique<SentencePieceTokenizer>(std::move(serialized),
                                                  std::move(model));
}

absl::Status TrainSentencePiece(const SentencePieceTraining& options) {
  ASSIGN_OR_RETURN(auto text, TrainingText::Open(options.input_file));
  const std::unordered_map<std::string, std::string> flags = {
      {"model_type", "bpe"},
      {"vocab_size", absl::StrCat(options.vocab_size)},
      {"num_threads", absl::StrCat(options.threads)},
      {"normalization_rule_name", "identity"},
      {"add_dummy_prefix", "false"},
      {"remove_extra_whitespaces", "false"},
      {"byte_fallback", "true"},
      {"user_defined_symbols", "\n"},
      {"allow_whitespace_only_pieces", "true"},
      {"character_coverage", "0.9999"},
      {"max_sentence_length", absl::StrCat(TrainingText::kMaxSentenceBytes)},
      {"minloglevel", "3"},
  };
  std::string serialized, error;
  if (!internal::TrainSentencePieceModel(
          flags, [&](std::string* sentence) { return text->Next(sentence); },
          &serialized, &error)) {
    return absl::InvalidArgumentError(
        absl::StrCat("vocab_size ", options.vocab_size, " of ",
                     options.input_file, ": ", error));
  }
  auto model = SentencePieceModel::Parse(serialized, &error);
  CHECK(model != nullptr) << error;
  if (static_cast<int32_t>(model->pieces().size()) != options.vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.input_file, " gives ", model->pieces().size(),
                     " pieces, want vocab_size ", options.vocab_size));
  }
  return SentencePieceTokenizer(std::move(serialized), std::move(model))
      .Save(options.output_directory);
}

}  // namespace gla
