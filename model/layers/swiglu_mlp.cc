#include "model/layers/swiglu_mlp.h"

#include "kernels/activation/swiglu.h"

namespace gla {

SwigluMlp::SwigluMlp(const Parameters& parameters, const std::string& prefix)
    : gate_proj_(parameters, prefix + "gate_proj.weight"),
      up_proj_(parameters, prefix + "up_proj.weight"),
      down_proj_(parameters, prefix + "down_proj.weight") {}

SwigluMlp::Saved SwigluMlp::Forward(const ExecutionContext& ctx,
                                    Pass::Form form,
                                    TensorView<const float, 2> x,
                                    TensorView<float, 2> y) const {
  Saved saved;
  saved.x = x;
  saved.gate = gate_proj_.Forward(ctx, form, x);
  saved.up = up_proj_.Forward(ctx, form, x);
  // The backward pass computes this product again, so it need not be kept.
  ArenaScope scope(ctx.scratch);
  const auto hidden = ctx.scratch->Tensor<float, 2>(saved.gate.shape());
  SwigluFwd(ctx, saved.gate, saved.up, hidden);
  down_proj_.Forward(ctx, form, hidden, y);
  return saved;
}

void SwigluMlp::Backward(const ExecutionContext& ctx, const Saved& saved,
                         TensorView<const float, 2> dy, Parameters* gradients,
                         TensorView<float, 2> dx) const {
  ArenaScope scope(ctx.scratch);
  const auto dhidden = ctx.scratch->Tensor<float, 2>(saved.gate.shape());
  down_proj_.BackwardInput(ctx, dy, dhidden, Accumulate::kNo);

  SwigluBwdArgs swiglu;
  swiglu.dy = dhidden;
  swiglu.gate = saved.gate;
  swiglu.up = saved.up;
  swiglu.dgate = saved.gate;
  swiglu.dup = saved.up;
  swiglu.y = dhidden;
  SwigluBwd(ctx, swiglu);
  const auto &dgate = saved.gate, &dup = saved.up, &hidden = dhidden;

  down_proj_.BackwardWeight(ctx, hidden, dy, gradients);
  gate_proj_.BackwardWeight(ctx, saved.x, dgate, gradients);
  up_proj_.BackwardWeight(ctx, saved.x, dup, gradients);
  gate_proj_.BackwardInput(ctx, dgate, dx, Accumulate::kNo);
  up_proj_.BackwardInput(ctx, dup, dx, Accumulate::kYes);
}

}  // namespace gla
