#include "model/layers/residual_norm.h"

#include "kernels/norm/rms_norm.h"

namespace gla {

ResidualNorm::Saved ResidualNorm::Forward(const ExecutionContext& ctx,
                                          ResidualStream stream) const {
  const int64_t M = stream.delta.dim(0);
  Saved saved;
  saved.sum = stream.delta;
  saved.y = ctx.scratch->Tensor<float, 2>(stream.delta.shape());
  saved.rstd = ctx.scratch->Tensor<float, 1>({M});
  RmsNormFwdArgs norm;
  norm.x = stream.delta;
  norm.residual = stream.h;
  norm.weight = weight_.value();
  norm.eps = eps_;
  if (!stream.h.empty()) norm.sum = saved.sum;
  norm.y = saved.y;
  norm.rstd = saved.rstd;
  RmsNormFwd(ctx, norm);
  return saved;
}

void ResidualNorm::Backward(const ExecutionContext& ctx, const Saved& saved,
                            const BackwardArgs& args,
                            Parameters* gradients) const {
  RmsNormBwdArgs norm;
  norm.dy = args.dy;
  norm.sum = saved.sum;
  norm.weight = weight_.value();
  norm.rstd = saved.rstd;
  norm.dresidual = args.dresidual;
  norm.dsum = args.dsum;
  norm.dweight = weight_.GradientIn(gradients);
  RmsNormBwd(ctx, norm);
}

}  // namespace gla
