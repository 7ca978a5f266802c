#include "model/layers/gla_mixer.h"

#include <algorithm>
#include <new>

#include "absl/strings/str_cat.h"
#include "kernels/gla/chunk_gla.h"
#include "kernels/gla/gate.h"
#include "kernels/gla/recurrent_gla.h"
#include "kernels/gla/repeat_heads.h"
#include "kernels/norm/gated_rms_norm.h"
#include "kernels/norm/rms_norm.h"

namespace gla {
namespace {

// [M, H*K] as the op sees it: [B, T, H, K]. Empty stays empty.
TensorView<float, 4> Heads(const Pass& pass, int64_t H,
                           TensorView<float, 2> x) {
  if (x.empty()) return {};
  return x.Reshape<4>({pass.B, pass.T, H, x.dim(1) / H});
}

// [M, H*V] with one row per token and head: [M*H, V].
TensorView<float, 2> HeadRows(TensorView<float, 2> x, int64_t V) {
  return x.Reshape<2>({x.size() / V, V});
}

// A copy in scratch: the forward pass replaces the state that the backward pass
// starts from.
TensorView<float, 4> Copy(const ExecutionContext& ctx,
                          TensorView<const float, 4> x) {
  if (x.empty()) return {};
  const auto y = ctx.scratch->Tensor<float>(x.shape());
  std::copy_n(x.data(), x.size(), y.data());
  return y;
}

}  // namespace

// M rows each. For all H heads; a name ending in _kv: for the key/value heads.
struct GlaMixer::Saved : TokenMixer::Saved {
  TensorView<const float, 2> x;        // [M, D]
  TensorView<float, 2> q, k, g;        // [M, H*K]
  TensorView<float, 2> v;              // [M, H*V]
  TensorView<float, 2> low;            // [M, 16] inside the low-rank projection
  TensorView<float, 2> g_kv;           // [M, Hkv*K]
  TensorView<float, 2> gate;           // [M, H*V] output gate before its swish
  TensorView<float, 4> initial_state;  // [B, H, K, V] empty: zero
  TensorView<float, 1> chunks;         // what the chunk form saved
  TensorView<float, 2> o;              // [M, H*V]
  TensorView<float, 1> rstd;           // [M*H]
  TensorView<float, 2> normed;  // [M, H*V] input of the output projection
};

struct GlaMixer::Gradients {
  TensorView<float, 2> o;     // [M, H*V]
  TensorView<float, 2> q;     // [M, H*K]
  TensorView<float, 2> k, g;  // [M, Hkv*K]
  TensorView<float, 2> v;     // [M, Hkv*V]
  TensorView<float, 2> low;   // [M, 16]
  TensorView<float, 2> gate;  // [M, H*V]
};

GlaMixer::GlaMixer(const GlaConfig& config, const Parameters& parameters,
                   int layer)
    : layer_(layer),
      H_(config.num_heads),
      K_(config.head_k_dim()),
      V_(config.head_v_dim()),
      kv_heads_(config.kv_heads()),
      scale_(config.attention_scale()),
      norm_eps_(static_cast<float>(config.norm_eps)),
      has_forget_gate_(config.use_forget_gate),
      has_output_gate_(config.use_output_gate) {
  const std::string prefix = absl::StrCat("model.layers.", layer, ".attn.");
  q_proj_ = Linear(parameters, prefix + "q_proj.weight");
  k_proj_ = Linear(parameters, prefix + "k_proj.weight");
  v_proj_ = Linear(parameters, prefix + "v_proj.weight");
  if (has_forget_gate_) {
    gk_proj_0_ = Linear(parameters, prefix + "gk_proj.0.weight");
    gk_proj_1_ = Linear(parameters, prefix + "gk_proj.1.weight");
    gk_bias_ = Weight<1>(parameters, prefix + "gk_proj.1.bias");
  }
  if (has_output_gate_) g_proj_ = Linear(parameters, prefix + "g_proj.weight");
  norm_ = Weight<1>(parameters, prefix + (has_output_gate_ && config.fuse_norm
                                              ? "g_norm_swish_gate.weight"
                                              : "g_norm.weight"));
  o_proj_ = Linear(parameters, prefix + "o_proj.weight");
}

TokenMixer::Saved* GlaMixer::Forward(const ExecutionContext& ctx,
                                     const Pass& pass,
                                     TensorView<const float, 2> x,
                                     TensorView<float, 2> y) const {
  Saved* saved = new (ctx.scratch->Allocate<Saved>(1)) Saved;
  Project(ctx, pass.form, x, saved);
  ForgetGate(ctx, pass.form, saved);
  Recur(ctx, pass, saved);
  GatedNorm(ctx, saved);
  o_proj_.Forward(ctx, pass.form, saved->normed, y);
  return saved;
}

void GlaMixer::Project(const ExecutionContext& ctx, Pass::Form form,
                       TensorView<const float, 2> x, Saved* saved) const {
  saved->x = x;
  saved->q = q_proj_.Forward(ctx, form, x);
  saved->k = ToQueryHeads(ctx, k_proj_.Forward(ctx, form, x));
  saved->v = ToQueryHeads(ctx, v_proj_.Forward(ctx, form, x));
  if (has_output_gate_) saved->gate = g_proj_.Forward(ctx, form, x);
}

void GlaMixer::ForgetGate(const ExecutionContext& ctx, Pass::Form form,
                          Saved* saved) const {
  if (!has_forget_gate_) {
    saved->g = ctx.scratch->Tensor<float>(saved->q.shape());
    std::fill_n(saved->g.data(), saved->g.size(), 0.0f);
    return;
  }
  saved->low = gk_proj_0_.Forward(ctx, form, saved->x);
  saved->g_kv = gk_proj_1_.Forward(ctx, form, saved->low);
  GateFwdArgs gate;
  gate.logits = saved->g_kv;
  gate.bias = gk_bias_.value();
  gate.normalizer = GlaConfig::kGateLogitNormalizer;
  gate.g = saved->g_kv;
  GateFwd(ctx, gate);
  saved->g = ToQueryHeads(ctx, saved->g_kv);
}

void GlaMixer::Recur(const ExecutionContext& ctx, const Pass& pass,
                     Saved* saved) const {
  const auto q = Heads(pass, H_, saved->q), k = Heads(pass, H_, saved->k),
             v = Heads(pass, H_, saved->v), g = Heads(pass, H_, saved->g);
  const TensorView<float, 4> state = pass.state(layer_);
  saved->o = ctx.scratch->Tensor<float>(saved->v.shape());
  if (pass.form == Pass::Form::kStep) {
    RecurrentGlaFwdArgs gla;
    gla.q = q;
    gla.k = k;
    gla.v = v;
    gla.g = g;
    gla.slots = pass.slots;
    gla.scale = scale_;
    gla.o = Heads(pass, H_, saved->o);
    gla.state = state;
    RecurrentGlaFwd(ctx, gla);
    return;
  }
  ChunkGlaFwdArgs gla;
  gla.q = q;
  gla.k = k;
  gla.v = v;
  gla.g = g;
  gla.initial_state = state;
  gla.scale = scale_;
  gla.o = Heads(pass, H_, saved->o);
  gla.final_state = state;
  if (pass.keep) {
    gla.initial_state = saved->initial_state = Copy(ctx, state);
    gla.saved = saved->chunks = ctx.scratch->Tensor<float, 1>(
        {ChunkGlaSavedFloats(k.shape(), v.shape(), {})});
  }
  ChunkGlaFwd(ctx, gla);
}

void GlaMixer::GatedNorm(const ExecutionContext& ctx, Saved* saved) const {
  saved->normed = ctx.scratch->Tensor<float>(saved->o.shape());
  saved->rstd = ctx.scratch->Tensor<float, 1>({saved->o.size() / V_});
  if (has_output_gate_) {
    GatedRmsNormFwdArgs norm;
    norm.x = HeadRows(saved->o, V_);
    norm.gate = HeadRows(saved->gate, V_);
    norm.weight = norm_.value();
    norm.eps = norm_eps_;
    norm.y = HeadRows(saved->normed, V_);
    norm.rstd = saved->rstd;
    GatedRmsNormFwd(ctx, norm);
  } else {
    RmsNormFwdArgs norm;
    norm.x = HeadRows(saved->o, V_);
    norm.weight = norm_.value();
    norm.eps = norm_eps_;
    norm.y = HeadRows(saved->normed, V_);
    norm.rstd = saved->rstd;
    RmsNormFwd(ctx, norm);
  }
}

void GlaMixer::Backward(const ExecutionContext& ctx, const Pass& pass,
                        const TokenMixer::Saved* base,
                        TensorView<const float, 2> dy, Parameters* gradients,
                        TensorView<float, 2> dx) const {
  ArenaScope scope(ctx.scratch);
  const Saved& saved = *static_cast<const Saved*>(base);
  Gradients d;
  d.o = ctx.scratch->Tensor<float>(saved.o.shape());
  o_proj_.BackwardWeight(ctx, saved.normed, dy, gradients);
  o_proj_.BackwardInput(ctx, dy, d.o, Accumulate::kNo);
  GatedNormBackward(ctx, saved, gradients, &d);
  RecurBackward(ctx, pass, saved, &d);
  ForgetGateBackward(ctx, saved, gradients, &d);
  ProjectBackward(ctx, saved, d, gradients, dx);
}

// From the gradient of the norm's output to that of its input, both in d->o.
void GlaMixer::GatedNormBackward(const ExecutionContext& ctx,
                                 const Saved& saved, Parameters* gradients,
                                 Gradients* d) const {
  const auto d_o = HeadRows(d->o, V_);
  if (has_output_gate_) {
    d->gate = ctx.scratch->Tensor<float>(saved.gate.shape());
    GatedRmsNormBwdArgs norm;
    norm.dy = d_o;
    norm.x = HeadRows(saved.o, V_);
    norm.gate = HeadRows(saved.gate, V_);
    norm.weight = norm_.value();
    norm.rstd = saved.rstd;
    norm.dx = d_o;
    norm.dgate = HeadRows(d->gate, V_);
    norm.dweight = norm_.GradientIn(gradients);
    GatedRmsNormBwd(ctx, norm);
  } else {
    RmsNormBwdArgs norm;
    norm.dy = d_o;
    norm.sum = HeadRows(saved.o, V_);
    norm.weight = norm_.value();
    norm.rstd = saved.rstd;
    norm.dsum = d_o;
    norm.dweight = norm_.GradientIn(gradients);
    RmsNormBwd(ctx, norm);
  }
}

void GlaMixer::RecurBackward(const ExecutionContext& ctx, const Pass& pass,
                             const Saved& saved, Gradients* d) const {
  d->q = ctx.scratch->Tensor<float>(saved.q.shape());
  d->k = ctx.scratch->Tensor<float>(saved.k.shape());
  d->v = ctx.scratch->Tensor<float>(saved.v.shape());
  if (has_forget_gate_) d->g = ctx.scratch->Tensor<float>(saved.g.shape());
  ChunkGlaBwdArgs gla;
  gla.q = Heads(pass, H_, saved.q);
  gla.k = Heads(pass, H_, saved.k);
  gla.v = Heads(pass, H_, saved.v);
  gla.g = Heads(pass, H_, saved.g);
  gla.initial_state = saved.initial_state;
  gla.scale = scale_;
  gla.saved = saved.chunks;
  gla.d_o = Heads(pass, H_, d->o);
  gla.dq = Heads(pass, H_, d->q);
  gla.dk = Heads(pass, H_, d->k);
  gla.dv = Heads(pass, H_, d->v);
  gla.dg = Heads(pass, H_, d->g);
  ChunkGlaBwd(ctx, gla);
  d->k = ToKvHeads(ctx, d->k);
  d->v = ToKvHeads(ctx, d->v);
  d->g = ToKvHeads(ctx, d->g);
}

void GlaMixer::ForgetGateBackward(const ExecutionContext& ctx,
                                  const Saved& saved, Parameters* gradients,
                                  Gradients* d) const {
  if (!has_forget_gate_) return;
  GateBwdArgs gate;
  gate.dg = d->g;
  gate.g = saved.g_kv;
  gate.normalizer = GlaConfig::kGateLogitNormalizer;
  gate.dlogits = d->g;
  gate.dbias = gk_bias_.GradientIn(gradients);
  GateBwd(ctx, gate);
  d->low = ctx.scratch->Tensor<float>(saved.low.shape());
  gk_proj_1_.BackwardWeight(ctx, saved.low, d->g, gradients);
  gk_proj_1_.BackwardInput(ctx, d->g, d->low, Accumulate::kNo);
}

void GlaMixer::ProjectBackward(const ExecutionContext& ctx, const Saved& saved,
                               const Gradients& d, Parameters* gradients,
                               TensorView<float, 2> dx) const {
  const auto back = [&](const Linear& proj, TensorView<const float, 2> dy,
                        Accumulate accumulate) {
    proj.BackwardWeight(ctx, saved.x, dy, gradients);
    proj.BackwardInput(ctx, dy, dx, accumulate);
  };
  back(q_proj_, d.q, Accumulate::kNo);
  back(k_proj_, d.k, Accumulate::kYes);
  back(v_proj_, d.v, Accumulate::kYes);
  if (has_output_gate_) back(g_proj_, d.gate, Accumulate::kYes);
  if (has_forget_gate_) back(gk_proj_0_, d.low, Accumulate::kYes);
}

TensorView<float, 2> GlaMixer::ToQueryHeads(const ExecutionContext& ctx,
                                            TensorView<float, 2> x) const {
  if (kv_heads_ == H_) return x;
  const int64_t M = x.dim(0), width = x.dim(1) / kv_heads_;
  const auto y = ctx.scratch->Tensor<float, 3>({M, H_, width});
  RepeatHeadsFwd(ctx, x.Reshape<3>({M, kv_heads_, width}), y);
  return y.Reshape<2>({M, H_ * width});
}

TensorView<float, 2> GlaMixer::ToKvHeads(const ExecutionContext& ctx,
                                         TensorView<float, 2> dy) const {
  if (kv_heads_ == H_ || dy.empty()) return dy;
  const int64_t M = dy.dim(0), width = dy.dim(1) / H_;
  const auto dx = ctx.scratch->Tensor<float, 3>({M, kv_heads_, width});
  RepeatHeadsBwd(ctx, dy.Reshape<3>({M, H_, width}), dx);
  return dx.Reshape<2>({M, kv_heads_ * width});
}

}  // namespace gla
