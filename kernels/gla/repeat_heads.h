// Grouped key/value heads: every KV head serves `groups` consecutive query
// heads (fla: repeat_interleave before the kernel). CPU only so far.
#ifndef GLA_KERNELS_GLA_REPEAT_HEADS_H_
#define GLA_KERNELS_GLA_REPEAT_HEADS_H_

#include "kernels/base/execution_context.h"
#include "kernels/base/tensor_view.h"

namespace gla {

// y[m, h] = x[m, h / groups], groups = H / num_kv_heads. Overwrites y.
void RepeatHeadsFwd(const ExecutionContext& ctx,
                    TensorView<const float, 3> x,  // [M, num_kv_heads, D]
                    TensorView<float, 3> y);       // [M, H, D]

// dx[m, j] = sum of dy[m, h] over the heads h of group j. Overwrites dx.
void RepeatHeadsBwd(const ExecutionContext& ctx,
                    TensorView<const float, 3> dy,  // [M, H, D]
                    TensorView<float, 3> dx);       // [M, num_kv_heads, D]

}  // namespace gla

#endif  // GLA_KERNELS_GLA_REPEAT_HEADS_H_
