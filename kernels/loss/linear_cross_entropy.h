// Output projection, softmax cross-entropy and their gradients in one op, a
// slice of tokens at a time, so that the [M, vocab_size] logits of a whole
// batch never exist. (fla `FusedLinearCrossEntropyLoss`.)
//
//   logits = x * weight^T
//   loss[m] = logsumexp(logits[m]) - logits[m, labels[m]]     (natural log)
//
// Float32, sums in a fixed order. Deterministic. CPU only so far.
#ifndef GLA_KERNELS_LOSS_LINEAR_CROSS_ENTROPY_H_
#define GLA_KERNELS_LOSS_LINEAR_CROSS_ENTROPY_H_

#include <cstdint>

#include "kernels/base/execution_context.h"
#include "kernels/base/tensor_view.h"

namespace gla {

inline constexpr int32_t kIgnoreLabel = -100;  // a token without a target

struct LinearCrossEntropyArgs {
  // Inputs.
  TensorView<const float, 2> x;         // [M, D]
  TensorView<const float, 2> weight;    // [vocab_size, D]
  TensorView<const int32_t, 1> labels;  // [M] in [0, vocab_size), or
                                        // kIgnoreLabel
  float grad_scale = 1;  // d(objective) / d(loss[m]), e.g. 1 / predictions
  // Outputs.
  TensorView<float, 1> loss;          // [M] overwritten; 0 where ignored
  TensorView<float, 2> dx = {};       // [M, D] overwritten; empty: no gradients
  TensorView<float, 2> dweight = {};  // [vocab_size, D] accumulated (+=); empty
                                      // with dx
};
void LinearCrossEntropy(const ExecutionContext& ctx,
                        const LinearCrossEntropyArgs& args);

}  // namespace gla

#endif  // GLA_KERNELS_LOSS_LINEAR_CROSS_ENTROPY_H_
