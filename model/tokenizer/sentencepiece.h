// SentencePiece, wrapped so that its names (it declares some in `absl`) stay in
// one source file.
#ifndef GLA_MODEL_TOKENIZER_SENTENCEPIECE_H_
#define GLA_MODEL_TOKENIZER_SENTENCEPIECE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/tokenizer/tokenizer.h"

namespace gla {

// Opens a tokenizer.model (also Llama's and Mistral's). The tokenizer is
// lossless on text whatever the model's normaliser says, as long as the model
// has byte fallback or covers the characters; otherwise Encode refuses text
// that would not come back, naming the byte offset.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadSentencePiece(
    const std::string& model_file);

struct SentencePieceTraining {
  std::string input_file;        // UTF-8 text
  std::string output_directory;  // exists; gets tokenizer.model and json files
  int32_t vocab_size = 0;        // exact
  int threads = 1;
};

// Trains a lossless BPE: identity normalisation, byte fallback, no dummy
// prefix, no whitespace removal, newline as a symbol of its own; ids 0 <unk>,
// 1 <s>, 2 </s>. Deterministic. INVALID_ARGUMENT when the text cannot give
// that many pieces or vocab_size is too small for bytes and characters.
absl::Status TrainSentencePiece(const SentencePieceTraining& options);

}  // namespace gla

#endif  // GLA_MODEL_TOKENIZER_SENTENCEPIECE_H_
