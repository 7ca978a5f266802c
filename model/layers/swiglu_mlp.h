// The feed-forward half of a block: y = down(silu(gate(x)) * up(x)).
#ifndef GLA_MODEL_LAYERS_SWIGLU_MLP_H_
#define GLA_MODEL_LAYERS_SWIGLU_MLP_H_

#include <string>

#include "kernels/base/execution_context.h"
#include "kernels/base/tensor_view.h"
#include "model/layers/linear.h"
#include "model/layers/pass.h"
#include "model/parameters.h"

namespace gla {

// I is the intermediate size.
class SwigluMlp {
 public:
  // Tensors `prefix` + "gate_proj.weight", "up_proj.weight" [I, D] and
  // "down_proj.weight" [D, I].
  SwigluMlp(const Parameters& parameters, const std::string& prefix);

  // Views of what the forward pass leaves behind, in scratch memory.
  struct Saved {
    TensorView<const float, 2> x;   // [M, D]
    TensorView<float, 2> gate, up;  // [M, I]
  };
  Saved Forward(const ExecutionContext& ctx, Pass::Form form,
                TensorView<const float, 2> x,   // [M, D]
                TensorView<float, 2> y) const;  // [M, D] overwritten

  // Uses up saved.gate and saved.up. Weight gradients are accumulated.
  void Backward(const ExecutionContext& ctx, const Saved& saved,
                TensorView<const float, 2> dy,  // [M, D]
                Parameters* gradients,
                TensorView<float, 2> dx) const;  // [M, D] overwritten

 private:
  Linear gate_proj_, up_proj_, down_proj_;
};

}  // namespace gla

#endif  // GLA_MODEL_LAYERS_SWIGLU_MLP_H_
