// A linear map without bias: y = x W^T, W [out, in].
#ifndef GLA_MODEL_LAYERS_LINEAR_H_
#define GLA_MODEL_LAYERS_LINEAR_H_

#include <string>

#include "kernels/base/execution_context.h"
#include "kernels/base/tensor_view.h"
#include "kernels/matmul/matmul.h"
#include "model/layers/pass.h"
#include "model/layers/weight.h"
#include "model/parameters.h"

namespace gla {

class Linear {
 public:
  Linear() = default;  // a map that the model does not have
  Linear(const Parameters& parameters, const std::string& name)
      : weight_(parameters, name) {}

  const Weight<2>& weight() const { return weight_; }

  // y [M, out] in new scratch memory.
  TensorView<float, 2> Forward(const ExecutionContext& ctx, Pass::Form form,
                               TensorView<const float, 2> x) const;  // [M, in]
  // The same into `y`, overwritten.
  void Forward(const ExecutionContext& ctx, Pass::Form form,
               TensorView<const float, 2> x, TensorView<float, 2> y) const;

  // dW += dy^T x.
  void BackwardWeight(const ExecutionContext& ctx,
                      TensorView<const float, 2> x,   // [M, in]
                      TensorView<const float, 2> dy,  // [M, out]
                      Parameters* gradients) const;

  // dx = dy W, or dx += dy W.
  void BackwardInput(const ExecutionContext& ctx,
                     TensorView<const float, 2> dy,  // [M, out]
                     TensorView<float, 2> dx,        // [M, in]
                     Accumulate accumulate) const;

 private:
  Weight<2> weight_;
};

}  // namespace gla

#endif  // GLA_MODEL_LAYERS_LINEAR_H_
