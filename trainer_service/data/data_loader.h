// Which tokens a training step sees: a pure function of (seed, step, row).
//
// The stream is cut into windows of `sequence_length` tokens; an epoch visits
// every window once, in an order (and from a start offset) that depends on seed
// and epoch alone. Sample s = step * batch_sequences + row is window number
// s mod windows of epoch s / windows. So nothing has to be stored to resume,
// and how rows are spread over workers or micro-batches never changes what is
// learned from.
#ifndef GLA_TRAINER_SERVICE_DATA_DATA_LOADER_H_
#define GLA_TRAINER_SERVICE_DATA_DATA_LOADER_H_

#include <cstdint>

#include "kernels/base/tensor_view.h"
#include "trainer_service/data/dataset.h"

namespace gla {

struct DataOrder {
  uint64_t seed = 0;
  int32_t sequence_length = 0;  // T
  int32_t batch_sequences = 0;  // rows of a whole step, over all workers
};

// Tokens needed to make one window: sequence_length + 1 (labels are shifted).
inline int64_t MinimumStreamTokens(int32_t sequence_length) {
  return static_cast<int64_t>(sequence_length) + 1;
}

// Rows [first_row, first_row + rows) of step `step` (0-based): tokens [rows, T]
// and labels [rows, T] with labels[r][t] the token after tokens[r][t].
// Overwrites both. CHECK-fails when the stream is shorter than
// MinimumStreamTokens.
void LoadTrainingRows(const TokenStream& stream, const DataOrder& order,
                      int64_t step, int32_t first_row,
                      TensorView<int32_t, 2> tokens,
                      TensorView<int32_t, 2> labels);

// Evaluation: the stream in its own order, cut into rows of sequence_length
// predictions; row r covers tokens [r * T, (r + 1) * T], the last row is
// shorter (labels padded with kIgnoreLabel, tokens with 0). Every token but the
// first of the stream is predicted exactly once.
int64_t NumEvaluationRows(const TokenStream& stream, int32_t sequence_length);
void LoadEvaluationRows(const TokenStream& stream, int64_t first_row,
                        TensorView<int32_t, 2> tokens,   // [rows, T]
                        TensorView<int32_t, 2> labels);  // [rows, T]

}  // namespace gla

#endif  // GLA_TRAINER_SERVICE_DATA_DATA_LOADER_H_
