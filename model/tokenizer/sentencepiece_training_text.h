// A text file as the sentences that SentencePiece trains on.
#ifndef GLA_MODEL_TOKENIZER_SENTENCEPIECE_TRAINING_TEXT_H_
#define GLA_MODEL_TOKENIZER_SENTENCEPIECE_TRAINING_TEXT_H_

#include <cstdint>
#include <fstream>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace gla {

// Lines, and parts of lines: they end where a character comes that the trainer
// reserves for itself, and, when long, at a space. Of a large file every n-th
// line is used, so that about kMaxBytes are read. Deterministic.
class TrainingText {
 public:
  static constexpr int64_t kMaxBytes = int64_t{1} << 28;
  static constexpr size_t kMaxSentenceBytes = size_t{1} << 14;

  // NOT_FOUND: cannot be read. INVALID_ARGUMENT: not UTF-8 (names the byte
  // offset), or empty.
  static absl::StatusOr<std::unique_ptr<TrainingText>> Open(
      const std::string& path);

  // The next sentence, never empty. False at the end.
  bool Next(std::string* sentence);

 private:
  TrainingText(std::ifstream file, int64_t stride);
  bool NextLine();

  std::ifstream file_;
  const int64_t stride_;  // of the lines that are used
  int64_t lines_ = 0;     // read so far
  std::string line_;
  size_t place_ = 0;  // in line_
};

}  // namespace gla

#endif  // GLA_MODEL_TOKENIZER_SENTENCEPIECE_TRAINING_TEXT_H_
