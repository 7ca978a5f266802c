#include "model/tokenizer/tokenizer.h"

#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "glog/logging.h"
#include "kernels/base/status_macros.h"
#include "model/checkpoint/durable_file.h"
#include "model/checkpoint/sha256.h"
#include "model/tokenizer/sentencepiece.h"
#include "nlohmann/json.hpp"

namespace gla {
namespace {

constexpr char kByteTokenizer[] = "ByteTokenizer";
constexpr char kConfigFile[] = "/tokenizer_config.json";

class ByteTokenizer : public Tokenizer {
 public:
  int32_t vocab_size() const override { return 256; }
  int32_t eos_id() const override { return -1; }

  absl::StatusOr<std::vector<int32_t>> Encode(
      std::string_view text) const override {
    RETURN_IF_ERROR(ValidateUtf8(text));
    std::vector<int32_t> ids;
    ids.reserve(text.size());
    for (const unsigned char byte : text) ids.push_back(byte);
    return ids;
  }

  std::string TokenBytes(int32_t id) const override {
    CHECK(id >= 0 && id < vocab_size()) << "token id " << id;
    return std::string(1, static_cast<char>(id));
  }

  std::string Digest() const override { return Sha256("bytes"); }

  absl::Status Save(const std::string& directory) const override {
    const nlohmann::json config = {{"tokenizer_class", kByteTokenizer}};
    return WriteDurableFile(directory + kConfigFile, config.dump(2) + "\n");
  }
};

// What a character's first byte says: how many bytes follow, and the range of
// the second (the others are 0x80 to 0xBF). `size` 0: not a first byte.
struct CharacterForm {
  int size;
  unsigned char low = 0x80, high = 0xBF;
};

CharacterForm FormOf(unsigned char first) {
  if (first < 0x80) return {1};
  if (first < 0xC2) return {0};  // continuation, or longer than needed
  if (first < 0xE0) return {2};
  if (first == 0xE0) return {3, 0xA0};
  if (first == 0xED) return {3, 0x80, 0x9F};  // not surrogates
  if (first < 0xF0) return {3};
  if (first == 0xF0) return {4, 0x90};
  if (first < 0xF4) return {4};
  if (first == 0xF4) return {4, 0x80, 0x8F};  // up to U+10FFFF
  return {0};
}

// The bytes of the character that `text` begins with: its size; 0: malformed;
// -1: well formed so far, but cut short.
int CharacterSize(std::string_view text) {
  const CharacterForm form = FormOf(text[0]);
  for (int i = 1; i < form.size; ++i) {
    if (i == static_cast<int>(text.size())) return -1;
    const unsigned char byte = text[i];
    const bool good = i == 1 ? byte >= form.low && byte <= form.high
                             : byte >= 0x80 && byte <= 0xBF;
    if (!good) return 0;
  }
  return form.size;
}

}  // namespace

std::string Tokenizer::Decode(absl::Span<const int32_t> ids) const {
  std::string text;
  for (const int32_t id : ids) text += TokenBytes(id);
  return text;
}

std::unique_ptr<Tokenizer> MakeByteTokenizer() {
  return std::make_unique<ByteTokenizer>();
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(
    const std::string& directory) {
  const std::string model = directory + "/tokenizer.model";
  std::error_code error;
  if (std::filesystem::exists(model, error)) return LoadSentencePiece(model);
  const auto text = ReadFile(directory + kConfigFile);
  if (text.ok()) {
    const auto config = nlohmann::json::parse(*text, /*cb=*/nullptr,
                                              /*allow_exceptions=*/false);
    const auto name =
        config.is_object() ? config.find("tokenizer_class") : config.end();
    if (name != config.end() && *name == kByteTokenizer) {
      return MakeByteTokenizer();
    }
  }
  return absl::NotFoundError(
      absl::StrCat(directory,
                   ": no tokenizer.model, and no tokenizer_config.json of the "
                   "class ByteTokenizer"));
}

absl::Status ValidateUtf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const int size = CharacterSize(text.substr(i));
    if (size <= 0) {
      return absl::InvalidArgumentError(absl::StrCat("not UTF-8 at byte ", i));
    }
    i += size;
  }
  return absl::OkStatus();
}

size_t CompleteUtf8Prefix(std::string_view bytes) {
  for (size_t tail = 1; tail <= 3 && tail <= bytes.size(); ++tail) {
    const size_t begin = bytes.size() - tail;
    const bool continues = (bytes[begin] & 0xC0) == 0x80;
    if (continues) continue;
    return CharacterSize(bytes.substr(begin)) < 0 ? begin : bytes.size();
  }
  return bytes.size();
}

}  // namespace gla
