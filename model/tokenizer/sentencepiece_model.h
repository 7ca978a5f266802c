// The SentencePiece library in plain C++: its own headers declare names in
// `absl` and may meet no Abseil header, so they stay in the .cc of this one.
#ifndef GLA_MODEL_TOKENIZER_SENTENCEPIECE_MODEL_H_
#define GLA_MODEL_TOKENIZER_SENTENCEPIECE_MODEL_H_

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace gla::internal {

// A loaded model. Immutable, hence thread-safe.
class SentencePieceModel {
 public:
  enum class Kind { kText, kByte, kControl, kUnknown };
  struct Piece {
    std::string text;
    Kind kind = Kind::kText;
  };

  // Null, and a message in `error`, when the bytes are not a model.
  static std::unique_ptr<SentencePieceModel> Parse(std::string_view serialized,
                                                   std::string* error);
  ~SentencePieceModel();

  const std::vector<Piece>& pieces() const { return pieces_; }  // by id
  int bos_id() const;  // -1: none, as the next two
  int eos_id() const;
  int unk_id() const;

  // Appends the ids of `text` under the model's own normaliser.
  void Encode(std::string_view text, std::vector<int>* ids) const;

 private:
  struct Processor;
  SentencePieceModel();
  std::unique_ptr<Processor> processor_;
  std::vector<Piece> pieces_;
};

// Trains a model on the sentences that `next` gives (false: no more). `flags`
// are SentencePiece's training options. False, and a message in `error`, when
// it fails; prints nothing.
bool TrainSentencePieceModel(
    const std::unordered_map<std::string, std::string>& flags,
    const std::function<bool(std::string* sentence)>& next,
    std::string* serialized, std::string* error);

}  // namespace gla::internal

#endif  // GLA_MODEL_TOKENIZER_SENTENCEPIECE_MODEL_H_
