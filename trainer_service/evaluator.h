// Loss on held-out text.
#ifndef GLA_TRAINER_SERVICE_EVALUATOR_H_
#define GLA_TRAINER_SERVICE_EVALUATOR_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "kernels/base/execution_context.h"
#include "model/gla_model.h"
#include "trainer_service/data/dataset.h"

namespace gla::trainer {

struct EvaluationResult {
  double loss = 0;           // mean nats per predicted token
  double bits_per_byte = 0;  // of the text that the stream encodes
};

// What a mean loss on `stream` costs to store its text:
//   (loss * (tokens - 1) / ln 2 + log2(vocab_size)) / text_bytes
// The first token has nothing before it and is charged as one of vocab_size
// equals, so the figure compares with a compressor of the same bytes.
double BitsPerByte(const TokenStream& stream, int32_t vocab_size, double loss);

// Predicts every token of a stream but the first, in rows of `sequence_length`
// that each start from a zero state, `rows` at a time. Deterministic. Keeps its
// buffers from run to run. Thread-compatible.
class Evaluator {
 public:
  // `model` and `stream` (at least two tokens) must outlive this.
  Evaluator(const GlaModel* model, const TokenStream* stream,
            int32_t sequence_length, int64_t rows);

  // nullopt: `stop`, asked before each batch, said yes.
  std::optional<EvaluationResult> Run(const ExecutionContext& ctx,
                                      absl::FunctionRef<bool()> stop);

 private:
  const GlaModel* const model_;
  const TokenStream* const stream_;
  const int64_t sequence_length_;
  const int64_t rows_;
  std::vector<int32_t> tokens_, labels_;  // [rows, T]
  std::vector<float> loss_;               // [rows, T]
};

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_EVALUATOR_H_
