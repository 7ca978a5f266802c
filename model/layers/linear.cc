#include "model/layers/linear.h"

namespace gla {

TensorView<float, 2> Linear::Forward(const ExecutionContext& ctx,
                                     Pass::Form form,
                                     TensorView<const float, 2> x) const {
  const auto y =
      ctx.scratch->Tensor<float, 2>({x.dim(0), weight_.value().dim(0)});
  Forward(ctx, form, x, y);
  return y;
}

void Linear::Forward(const ExecutionContext& ctx, Pass::Form form,
                     TensorView<const float, 2> x,
                     TensorView<float, 2> y) const {
  if (form == Pass::Form::kStep) {
    RowInvariantMatmulNT(ctx, x, weight_.value(), y);
  } else {
    MatmulNT(ctx, x, weight_.value(), y);
  }
}

void Linear::BackwardWeight(const ExecutionContext& ctx,
                            TensorView<const float, 2> x,
                            TensorView<const float, 2> dy,
                            Parameters* gradients) const {
  MatmulTN(ctx, dy, x, weight_.GradientIn(gradients), Accumulate::kYes);
}

void Linear::BackwardInput(const ExecutionContext& ctx,
                           TensorView<const float, 2> dy,
                           TensorView<float, 2> dx,
                           Accumulate accumulate) const {
  MatmulNN(ctx, dy, weight_.value(), dx, accumulate);
}

}  // namespace gla
