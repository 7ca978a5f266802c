// SwiGLU: y = gate * sigmoid(gate) * up, elementwise. (Shazeer,
// arXiv:2002.05202; fla `swiglu`.) Float32. Deterministic. CPU only so far.
#ifndef GLA_KERNELS_ACTIVATION_SWIGLU_H_
#define GLA_KERNELS_ACTIVATION_SWIGLU_H_

#include "kernels/base/execution_context.h"
#include "kernels/base/tensor_view.h"

namespace gla {

// Overwrites y, which may alias gate or up.
void SwigluFwd(const ExecutionContext& ctx, TensorView<const float, 2> gate,
               TensorView<const float, 2> up,
               TensorView<float, 2> y);  // [M, I]

struct SwigluBwdArgs {
  TensorView<const float, 2> dy, gate, up;  // [M, I]
  // Outputs, overwritten. dgate may alias gate, dup may alias up.
  TensorView<float, 2> dgate, dup;  // [M, I]
  TensorView<float, 2> y = {};  // [M, I] the forward value again (so that it
                                // need not be kept); empty: not wanted; may
                                // alias dy
};
void SwigluBwd(const ExecutionContext& ctx, const SwigluBwdArgs& args);

}  // namespace gla

#endif  // GLA_KERNELS_ACTIVATION_SWIGLU_H_
