// The end of the model: final norm, output projection, loss.
#ifndef GLA_MODEL_LAYERS_LM_HEAD_H_
#define GLA_MODEL_LAYERS_LM_HEAD_H_

#include <cstdint>

#include "kernels/base/execution_context.h"
#include "kernels/base/tensor_view.h"
#include "model/config.h"
#include "model/layers/linear.h"
#include "model/layers/pass.h"
#include "model/layers/residual_norm.h"
#include "model/parameters.h"

namespace gla {

class LmHead {
 public:
  // Tensors "model.norm.weight" [D] and "lm_head.weight" [vocab_size, D], or
  // "model.embeddings.weight" when they are tied.
  LmHead(const GlaConfig& config, const Parameters& parameters);

  // logits [M, vocab_size], overwritten. `x` is used up.
  void Logits(const ExecutionContext& ctx, Pass::Form form, ResidualStream x,
              TensorView<float, 2> logits) const;

  struct LossArgs {
    ResidualStream x;                     // used up
    TensorView<const int32_t, 1> labels;  // [M] or kIgnoreLabel
    float grad_scale = 1;
    TensorView<float, 1> loss;        // [M] overwritten
    Parameters* gradients = nullptr;  // accumulated; null: none
    TensorView<float, 2> dx;  // [M, D] gradient of the stream, overwritten;
                              // empty without gradients
  };
  // Cross-entropy and its gradients in one go: the logits of a whole batch
  // never exist.
  void Loss(const ExecutionContext& ctx, const LossArgs& args) const;

 private:
  ResidualNorm norm_;
  Linear projection_;
};

}  // namespace gla

#endif  // GLA_MODEL_LAYERS_LM_HEAD_H_
