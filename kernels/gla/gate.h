// Activation of the forget gate: from the low-rank projection's output to the
// log gate,
//
//   g = log_sigmoid(logits + bias) / normalizer     (natural log, <= 0)
//
// (GLA, arXiv:2312.06635 section 4.4; fla layers/gla.py, `gk`, with
// gate_logit_normalizer 16.) The projection itself is two matrix products.
// Deterministic. CPU and CUDA; on CUDA GateBwd takes device workspace.
#ifndef GLA_KERNELS_GLA_GATE_H_
#define GLA_KERNELS_GLA_GATE_H_

#include "kernels/base/execution_context.h"
#include "kernels/base/tensor_view.h"

namespace gla {

struct GateFwdArgs {
  // Inputs. D counts heads times K.
  TensorView<const float, 2> logits;  // [M, D], without the bias
  TensorView<const float, 1> bias;    // [D]
  float normalizer = 16;
  // Output, overwritten; may alias logits.
  TensorView<float, 2> g;  // [M, D]
};
void GateFwd(const ExecutionContext& ctx, const GateFwdArgs& args);

// Works from g alone: sigmoid(-(logits + bias)) = 1 - exp(g * normalizer),
// computed without cancellation.
struct GateBwdArgs {
  // Inputs.
  TensorView<const float, 2> dg;  // [M, D]
  TensorView<const float, 2> g;   // [M, D] from the forward pass
  float normalizer = 16;
  // Outputs.
  TensorView<float, 2> dlogits;  // [M, D] overwritten; may alias dg
  TensorView<float, 1> dbias;    // [D] accumulated (+=)
};
void GateBwd(const ExecutionContext& ctx, const GateBwdArgs& args);

}  // namespace gla

#endif  // GLA_KERNELS_GLA_GATE_H_
