// Global gradient norm and the factor that clips it.
#ifndef GLA_KERNELS_OPTIMIZER_GRAD_NORM_H_
#define GLA_KERNELS_OPTIMIZER_GRAD_NORM_H_

#include "kernels/base/execution_context.h"
#include "kernels/base/tensor_view.h"

namespace gla {

// Sum of squares of all elements, in float64, over blocks of fixed size added
// in order: the same bits whatever the thread count. NaN or inf in the input
// shows in the result.
double SumOfSquares(const ExecutionContext& ctx, TensorView<const float, 1> x);

// min(1, max_norm / norm), as torch.nn.utils.clip_grad_norm_ (eps 1e-6);
// max_norm <= 0 means no clipping.
float ClipFactor(double norm, double max_norm);

}  // namespace gla

#endif  // GLA_KERNELS_OPTIMIZER_GRAD_NORM_H_
