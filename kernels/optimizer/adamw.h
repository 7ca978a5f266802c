// AdamW with decoupled weight decay (Loshchilov & Hutter, arXiv:1711.05101;
// equals torch.optim.AdamW), one tensor at a time:
//
//   g      = grad_scale * grad
//   m      = beta1 m + (1 - beta1) g
//   v      = beta2 v + (1 - beta2) g^2
//   param -= learning_rate * (m / (1 - beta1^step) /
//            (sqrt(v / (1 - beta2^step)) + eps) + weight_decay * param)
//
// Elementwise, deterministic. CPU only so far.
#ifndef GLA_KERNELS_OPTIMIZER_ADAMW_H_
#define GLA_KERNELS_OPTIMIZER_ADAMW_H_

#include <cstdint>

#include "kernels/base/execution_context.h"
#include "kernels/base/tensor_view.h"

namespace gla {

struct AdamWArgs {
  TensorView<const float, 1> grad;   // [n]
  TensorView<float, 1> param, m, v;  // [n] updated in place
  float learning_rate = 0;
  float beta1 = 0.9f, beta2 = 0.95f, eps = 1e-8f;
  float weight_decay = 0;  // 0 for norms and biases
  float grad_scale = 1;    // clip factor of ClipFactor()
  int64_t step = 1;        // 1 for the first update
};
void AdamW(const ExecutionContext& ctx, const AdamWArgs& args);

}  // namespace gla

#endif  // GLA_KERNELS_OPTIMIZER_ADAMW_H_
