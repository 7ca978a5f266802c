// RMSNorm times a swish gate, the output stage of a GLA head:
//
//   y = (x * rstd * weight) * gate * sigmoid(gate)
//
// over the last dimension; `weight` is shared by all heads. (GLA,
// arXiv:2312.06635 section 4.4; fla `FusedRMSNormGated`, activation swish.)
// Statistics in float32. Deterministic. CPU and CUDA; on CUDA GatedRmsNormBwd
// takes device workspace.
#ifndef GLA_KERNELS_NORM_GATED_RMS_NORM_H_
#define GLA_KERNELS_NORM_GATED_RMS_NORM_H_

#include "kernels/base/execution_context.h"
#include "kernels/base/tensor_view.h"

namespace gla {

struct GatedRmsNormFwdArgs {
  // Inputs. M counts tokens times heads.
  TensorView<const float, 2> x;       // [M, V]
  TensorView<const float, 2> gate;    // [M, V]
  TensorView<const float, 1> weight;  // [V]
  float eps = 0;
  // Outputs, overwritten.
  TensorView<float, 2> y;          // [M, V]; may alias x
  TensorView<float, 1> rstd = {};  // [M]; empty: not wanted
};
void GatedRmsNormFwd(const ExecutionContext& ctx,
                     const GatedRmsNormFwdArgs& args);

struct GatedRmsNormBwdArgs {
  // Inputs.
  TensorView<const float, 2> dy;      // [M, V]
  TensorView<const float, 2> x;       // [M, V]
  TensorView<const float, 2> gate;    // [M, V]
  TensorView<const float, 1> weight;  // [V]
  TensorView<const float, 1> rstd;    // [M] from the forward pass
  // Outputs.
  TensorView<float, 2> dx;       // [M, V] overwritten; may alias dy
  TensorView<float, 2> dgate;    // [M, V] overwritten; must not alias dy
  TensorView<float, 1> dweight;  // [V] accumulated (+=)
};
void GatedRmsNormBwd(const ExecutionContext& ctx,
                     const GatedRmsNormBwdArgs& args);

}  // namespace gla

#endif  // GLA_KERNELS_NORM_GATED_RMS_NORM_H_
