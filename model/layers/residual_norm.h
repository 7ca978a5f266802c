// The residual stream, and the norm through which every sublayer reads it.
#ifndef GLA_MODEL_LAYERS_RESIDUAL_NORM_H_
#define GLA_MODEL_LAYERS_RESIDUAL_NORM_H_

#include <string>

#include "kernels/base/execution_context.h"
#include "kernels/base/tensor_view.h"
#include "model/layers/weight.h"
#include "model/parameters.h"

namespace gla {

// The stream between sublayers. Its value is h + delta, where delta is the
// newest sublayer's output; the next norm does the addition on its way.
struct ResidualStream {
  TensorView<float, 2> h;      // [M, D]; empty: zero
  TensorView<float, 2> delta;  // [M, D]
};

// y = RMSNorm(h + delta).
class ResidualNorm {
 public:
  ResidualNorm(const Parameters& parameters, const std::string& name, float eps)
      : weight_(parameters, name), eps_(eps) {}

  // Views of what the forward pass leaves behind, in scratch memory.
  struct Saved {
    TensorView<float, 2> sum;   // [M, D] the stream's value, where delta was
    TensorView<float, 2> y;     // [M, D]
    TensorView<float, 1> rstd;  // [M]
  };
  Saved Forward(const ExecutionContext& ctx, ResidualStream stream) const;

  struct BackwardArgs {
    TensorView<const float, 2> dy;         // [M, D]
    TensorView<const float, 2> dresidual;  // [M, D] gradient of the stream's
                                           // value from past the norm; empty:
                                           // zero
    TensorView<float, 2> dsum;  // [M, D] overwritten; may alias dy or dresidual
  };
  // Gradient of the stream's value; the weight's is accumulated.
  void Backward(const ExecutionContext& ctx, const Saved& saved,
                const BackwardArgs& args, Parameters* gradients) const;

 private:
  Weight<1> weight_;
  float eps_;
};

}  // namespace gla

#endif  // GLA_MODEL_LAYERS_RESIDUAL_NORM_H_
