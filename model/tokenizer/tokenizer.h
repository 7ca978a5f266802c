// Text to token ids and back, losslessly: Decode(Encode(x)) == x for all valid
// UTF-8, newlines and runs of spaces included.
#ifndef GLA_MODEL_TOKENIZER_TOKENIZER_H_
#define GLA_MODEL_TOKENIZER_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace gla {

// Immutable, hence thread-safe.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Ids are in [0, vocab_size()).
  virtual int32_t vocab_size() const = 0;

  // End-of-text id, or -1 when the tokenizer has none.
  virtual int32_t eos_id() const = 0;

  // No begin or end token is added. INVALID_ARGUMENT: not UTF-8 (names the byte
  // offset).
  virtual absl::StatusOr<std::vector<int32_t>> Encode(
      std::string_view text) const = 0;

  // The bytes that a token stands for; a token may be part of a character.
  // Control tokens (end of text, ...) are empty. `id` must be valid.
  virtual std::string TokenBytes(int32_t id) const = 0;

  // Concatenated TokenBytes.
  std::string Decode(absl::Span<const int32_t> ids) const;

  // SHA-256 (32 bytes) that tells tokenizers apart: of tokenizer.model, or of
  // the name "bytes".
  virtual std::string Digest() const = 0;

  // Writes the files that make `directory` (which exists) loadable by
  // LoadTokenizer and, for SentencePiece, by transformers.
  virtual absl::Status Save(const std::string& directory) const = 0;
};

// Raw bytes: 256 ids, no control tokens.
std::unique_ptr<Tokenizer> MakeByteTokenizer();

// The tokenizer of a model or tokenizer directory: tokenizer.model
// (SentencePiece), or tokenizer_config.json with tokenizer_class
// "ByteTokenizer". NOT_FOUND when there is neither.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(
    const std::string& directory);

// OK if `text` is valid UTF-8, else INVALID_ARGUMENT with the byte offset.
absl::Status ValidateUtf8(std::string_view text);

// The length of the longest prefix of `bytes` that ends on a character border:
// what a stream may send now. Malformed bytes count as characters.
size_t CompleteUtf8Prefix(std::string_view bytes);

}  // namespace gla

#endif  // GLA_MODEL_TOKENIZER_TOKENIZER_H_
