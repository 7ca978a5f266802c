// Gated linear attention with its projections, gates and output norm (GLA,
// arXiv:2312.06635v6, section 4; fla layers/gla.py):
//
//   q, k, v = Wq x, Wk x, Wv x
//   g       = log_sigmoid(W1 W0 x + b) / 16            log forget gate
//   S_t     = diag(exp(g_t)) S_{t-1} + k_t v_t^T,  o_t = K^-0.5 S_t^T q_t
//   y       = Wo (RMSNorm(o) * swish(Wg x))            norm per head
#ifndef GLA_MODEL_LAYERS_GLA_MIXER_H_
#define GLA_MODEL_LAYERS_GLA_MIXER_H_

#include <array>
#include <cstdint>
#include <string>

#include "kernels/base/execution_context.h"
#include "kernels/base/tensor_view.h"
#include "model/config.h"
#include "model/layers/linear.h"
#include "model/layers/pass.h"
#include "model/layers/token_mixer.h"
#include "model/layers/weight.h"
#include "model/parameters.h"

namespace gla {

// By config: no forget gate means g = 0; no output gate means y = Wo
// RMSNorm(o). With fewer key/value heads than query heads, k, v and g are
// computed for the former (Hkv of them) and each serves H / Hkv consecutive
// query heads.
class GlaMixer : public TokenMixer {
 public:
  GlaMixer(const GlaConfig& config, const Parameters& parameters, int layer);

  std::array<int64_t, 3> state_shape() const override { return {H_, K_, V_}; }

  TokenMixer::Saved* Forward(const ExecutionContext& ctx, const Pass& pass,
                             TensorView<const float, 2> x,
                             TensorView<float, 2> y) const override;
  void Backward(const ExecutionContext& ctx, const Pass& pass,
                const TokenMixer::Saved* saved, TensorView<const float, 2> dy,
                Parameters* gradients, TensorView<float, 2> dx) const override;

 private:
  struct Saved;      // of a forward pass
  struct Gradients;  // with respect to the projections' outputs

  // The steps of Forward; each fills its part of `saved`.
  void Project(const ExecutionContext& ctx, Pass::Form form,
               TensorView<const float, 2> x, Saved* saved) const;
  void ForgetGate(const ExecutionContext& ctx, Pass::Form form,
                  Saved* saved) const;
  void Recur(const ExecutionContext& ctx, const Pass& pass, Saved* saved) const;
  void GatedNorm(const ExecutionContext& ctx, Saved* saved) const;

  // The steps of Backward, in the opposite order.
  void GatedNormBackward(const ExecutionContext& ctx, const Saved& saved,
                         Parameters* gradients, Gradients* d) const;
  void RecurBackward(const ExecutionContext& ctx, const Pass& pass,
                     const Saved& saved, Gradients* d) const;
  void ForgetGateBackward(const ExecutionContext& ctx, const Saved& saved,
                          Parameters* gradients, Gradients* d) const;
  void ProjectBackward(const ExecutionContext& ctx, const Saved& saved,
                       const Gradients& d, Parameters* gradients,
                       TensorView<float, 2> dx) const;

  // x for all H heads: x itself when every head has its own.
  TensorView<float, 2> ToQueryHeads(const ExecutionContext& ctx,
                                    TensorView<float, 2> x) const;
  // And the gradient's way back.
  TensorView<float, 2> ToKvHeads(const ExecutionContext& ctx,
                                 TensorView<float, 2> dx) const;

  const int layer_;
  const int64_t H_, K_, V_, kv_heads_;
  const float scale_, norm_eps_;
  const bool has_forget_gate_, has_output_gate_;

  Linear q_proj_, k_proj_, v_proj_;  // [H*K, D], [Hkv*K, D], [Hkv*V, D]
  Linear gk_proj_0_, gk_proj_1_;     // [16, D], [Hkv*K, 16]
  Weight<1> gk_bias_;                // [Hkv*K]
  Linear g_proj_;                    // [H*V, D] output gate
  Weight<1> norm_;                   // [V]
  Linear o_proj_;                    // [D, H*V]
};

}  // namespace gla

#endif  // GLA_MODEL_LAYERS_GLA_MIXER_H_
