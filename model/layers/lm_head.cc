#include "model/layers/lm_head.h"

#include <string>

#include "kernels/loss/linear_cross_entropy.h"

namespace gla {
namespace {

std::string WeightName(const GlaConfig& config) {
  return config.tie_word_embeddings ? "model.embeddings.weight"
                                    : "lm_head.weight";
}

}  // namespace

LmHead::LmHead(const GlaConfig& config, const Parameters& parameters)
    : norm_(parameters, "model.norm.weight",
            static_cast<float>(config.norm_eps)),
      projection_(parameters, WeightName(config)) {}

void LmHead::Logits(const ExecutionContext& ctx, Pass::Form form,
                    ResidualStream x, TensorView<float, 2> logits) const {
  ArenaScope scope(ctx.scratch);
  projection_.Forward(ctx, form, norm_.Forward(ctx, x).y, logits);
}

void LmHead::Loss(const ExecutionContext& ctx, const LossArgs& args) const {
  ArenaScope scope(ctx.scratch);
  const ResidualNorm::Saved norm = norm_.Forward(ctx, args.x);
  LinearCrossEntropyArgs loss;
  loss.x = norm.y;
  loss.weight = projection_.weight().value();
  loss.labels = args.labels;
  loss.grad_scale = args.grad_scale;
  loss.loss = args.loss;
  if (args.gradients != nullptr) {
    loss.dx = args.dx;
    loss.dweight = projection_.weight().GradientIn(args.gradients);
  }
  LinearCrossEntropy(ctx, loss);
  if (args.gradients != nullptr) {
    norm_.Backward(ctx, norm, {args.dx, {}, args.dx}, args.gradients);
  }
}

}  // namespace gla
