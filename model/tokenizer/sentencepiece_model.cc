#include "model/tokenizer/sentencepiece_model.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <utility>

namespace gla::internal {
namespace {

using Kind = SentencePieceModel::Kind;

Kind KindOf(const sentencepiece::SentencePieceProcessor& processor, int id) {
  if (processor.IsByte(id)) return Kind::kByte;
  if (processor.IsUnknown(id)) return Kind::kUnknown;
  if (processor.IsControl(id)) return Kind::kControl;
  return Kind::kText;
}

class Sentences : public sentencepiece::SentenceIterator {
 public:
  explicit Sentences(const std::function<bool(std::string*)>& next)
      : next_(next) {
    Next();
  }
  bool done() const override { return done_; }
  void Next() override { done_ = !next_(&value_); }
  const std::string& value() const override { return value_; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::function<bool(std::string*)>& next_;
  std::string value_;
  bool done_ = false;
};

}  // namespace

struct SentencePieceModel::Processor {
  sentencepiece::SentencePieceProcessor library;
};

SentencePieceModel::SentencePieceModel()
    : processor_(std::make_unique<Processor>()) {}
SentencePieceModel::~SentencePieceModel() = default;

std::unique_ptr<SentencePieceModel> SentencePieceModel::Parse(
    std::string_view serialized, std::string* error) {
  std::unique_ptr<SentencePieceModel> model(new SentencePieceModel);
  auto& library = model->processor_->library;
  const auto status = library.LoadFromSerializedProto(serialized);
  if (!status.ok()) {
    *error = status.message();
    return nullptr;
  }
  for (int id = 0; id < library.GetPieceSize(); ++id) {
    model->pieces_.push_back({library.IdToPiece(id), KindOf(library, id)});
  }
  return model;
}

int SentencePieceModel::bos_id() const { return processor_->library.bos_id(); }
int SentencePieceModel::unk_id() const { return processor_->library.unk_id(); }
int SentencePieceModel::eos_id() const { return processor_->library.eos_id(); }

void SentencePieceModel::Encode(std::string_view text,
                                std::vector<int>* ids) const {
  const std::vector<int> encoded = processor_->library.EncodeAsIds(text);
  ids->insert(ids->end(), encoded.begin(), encoded.end());
}

bool TrainSentencePieceModel(
    const std::unordered_map<std::string, std::string>& flags,
    const std::function<bool(std::string* sentence)>& next,
    std::string* serialized, std::string* error) {
  Sentences sentences(next);
  const auto status =
      sentencepiece::SentencePieceTrainer::Train(flags, &sentences, serialized);
  if (!status.ok()) *error = status.message();
  return status.ok();
}

}  // namespace gla::internal
