#include "model/layers/gla_block.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "model/layers/make_token_mixer.h"

namespace gla {
namespace {

std::string Prefix(int layer) {
  return absl::StrCat("model.layers.", layer, ".");
}

}  // namespace

GlaBlock::GlaBlock(const GlaConfig& config, const Parameters& parameters,
                   int layer)
    : attn_norm_(parameters, Prefix(layer) + "attn_norm.weight",
                 static_cast<float>(config.norm_eps)),
      mixer_(MakeTokenMixer(config, parameters, layer)),
      mlp_norm_(parameters, Prefix(layer) + "mlp_norm.weight",
                static_cast<float>(config.norm_eps)),
      mlp_(parameters, Prefix(layer) + "mlp.") {}

ResidualStream GlaBlock::Forward(const ExecutionContext& ctx, const Pass& pass,
                                 ResidualStream x, Saved* saved) const {
  // A norm leaves the stream's value in its delta, so the other tensor is free
  // for the sublayer's output, unless the backward pass wants it.
  const auto output = [&](TensorView<float, 2> free) {
    return pass.keep || free.empty()
               ? ctx.scratch->Tensor<float>(x.delta.shape())
               : free;
  };
  const ResidualStream h = {x.delta, output(x.h)};
  const ResidualStream y = {h.delta, output(x.delta)};
  const Arena::Mark mark = ctx.scratch->mark();

  saved->attn_norm = attn_norm_.Forward(ctx, x);
  saved->mixer = mixer_->Forward(ctx, pass, saved->attn_norm.y, h.delta);
  saved->mlp_norm = mlp_norm_.Forward(ctx, h);
  saved->mlp = mlp_.Forward(ctx, pass.form, saved->mlp_norm.y, y.delta);

  if (!pass.keep) ctx.scratch->Rewind(mark);
  return y;
}

void GlaBlock::Backward(const ExecutionContext& ctx, const Pass& pass,
                        const Saved& saved, Parameters* gradients,
                        TensorView<float, 2> dx) const {
  ArenaScope scope(ctx.scratch);
  const auto dnorm = ctx.scratch->Tensor<float>(dx.shape());
  mlp_.Backward(ctx, saved.mlp, dx, gradients, dnorm);
  mlp_norm_.Backward(ctx, saved.mlp_norm, {dnorm, dx, dx}, gradients);
  mixer_->Backward(ctx, pass, saved.mixer, dx, gradients, dnorm);
  attn_norm_.Backward(ctx, saved.attn_norm, {dnorm, dx, dx}, gradients);
}

}  // namespace gla
