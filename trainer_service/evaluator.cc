#include "trainer_service/evaluator.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "trainer_service/data/data_loader.h"

namespace gla::trainer {

double BitsPerByte(const TokenStream& stream, int32_t vocab_size, double loss) {
  const double predictions = static_cast<double>(stream.size() - 1);
  const double bits =
      loss * predictions / std::numbers::ln2 + std::log2(vocab_size);
  return bits / static_cast<double>(stream.text_bytes());
}

Evaluator::Evaluator(const GlaModel* model, const TokenStream* stream,
                     int32_t sequence_length, int64_t rows)
    : model_(model),
      stream_(stream),
      sequence_length_(sequence_length),
      rows_(std::min(rows, NumEvaluationRows(*stream, sequence_length))),
      tokens_(rows_ * sequence_length_),
      labels_(rows_ * sequence_length_),
      loss_(rows_ * sequence_length_) {}

std::optional<EvaluationResult> Evaluator::Run(const ExecutionContext& ctx,
                                               absl::FunctionRef<bool()> stop) {
  const int64_t num_rows =
      NumEvaluationRows(*stream_, static_cast<int32_t>(sequence_length_));
  double total = 0;
  for (int64_t row = 0; row < num_rows; row += rows_) {
    if (stop()) return std::nullopt;
    const std::array<int64_t, 2> shape = {std::min(rows_, num_rows - row),
                                          sequence_length_};
    const TensorView<int32_t, 2> tokens(tokens_.data(), shape);
    const TensorView<int32_t, 2> labels(labels_.data(), shape);
    const TensorView<float, 2> loss(loss_.data(), shape);
    LoadEvaluationRows(*stream_, row, tokens, labels);
    GlaModel::LossArgs args;
    args.tokens = tokens;
    args.labels = labels;
    args.loss = loss;
    model_->Loss(ctx, args);
    for (int64_t i = 0; i < loss.size(); ++i) total += loss.data()[i];
  }
  EvaluationResult result;
  result.loss = total / static_cast<double>(stream_->size() - 1);
  result.bits_per_byte =
      BitsPerByte(*stream_, model_->config().vocab_size, result.loss);
  return result;
}

}  // namespace gla::trainer
