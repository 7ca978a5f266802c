// RMSNorm over the last dimension, with the residual addition before it.
//
//   sum = x + residual
//   y   = sum * rstd * weight,   rstd = 1 / sqrt(mean(sum^2) + eps)
//
// (Zhang & Sennrich, arXiv:1910.07467; fla `rms_norm` with `residual`,
// `prenorm=True`.) Statistics in float32. Deterministic. CPU and CUDA.
#ifndef GLA_KERNELS_NORM_RMS_NORM_H_
#define GLA_KERNELS_NORM_RMS_NORM_H_

#include "kernels/base/execution_context.h"
#include "kernels/base/tensor_view.h"

namespace gla {

struct RmsNormFwdArgs {
  // Inputs.
  TensorView<const float, 2> x;              // [M, D]
  TensorView<const float, 2> residual = {};  // [M, D]; empty: no addition
  TensorView<const float, 1> weight;         // [D]
  float eps = 0;
  // Outputs, overwritten.
  TensorView<float, 2> sum = {};   // [M, D]; with a residual only; may alias x
                                   // or residual
  TensorView<float, 2> y;          // [M, D]; may alias x when there is no
                                   // residual
  TensorView<float, 1> rstd = {};  // [M]; empty: not wanted
};
void RmsNormFwd(const ExecutionContext& ctx, const RmsNormFwdArgs& args);

// The gradient with respect to `sum` (which is that of x and of residual):
//   dsum = d(norm)/d(sum)^T dy + dresidual
struct RmsNormBwdArgs {
  // Inputs.
  TensorView<const float, 2> dy;              // [M, D]
  TensorView<const float, 2> sum;             // [M, D] input of the norm
  TensorView<const float, 1> weight;          // [D]
  TensorView<const float, 1> rstd;            // [M] from the forward pass
  TensorView<const float, 2> dresidual = {};  // [M, D] gradient that reaches
                                              // `sum` past the norm; empty:
                                              // zero
  // Outputs.
  TensorView<float, 2> dsum;  // [M, D] overwritten; may alias dresidual or dy
  TensorView<float, 1> dweight;  // [D] accumulated (+=)
};
void RmsNormBwd(const ExecutionContext& ctx, const RmsNormBwdArgs& args);

}  // namespace gla

#endif  // GLA_KERNELS_NORM_RMS_NORM_H_
