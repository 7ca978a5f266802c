// One block of the model, pre-norm:
//
//   h = x + mixer(attn_norm(x)),   y = h + mlp(mlp_norm(h))
//
// (fla models/gla, GLABlock.)
#ifndef GLA_MODEL_LAYERS_GLA_BLOCK_H_
#define GLA_MODEL_LAYERS_GLA_BLOCK_H_

#include <memory>

#include "kernels/base/execution_context.h"
#include "kernels/base/tensor_view.h"
#include "model/config.h"
#include "model/layers/pass.h"
#include "model/layers/residual_norm.h"
#include "model/layers/swiglu_mlp.h"
#include "model/layers/token_mixer.h"
#include "model/parameters.h"

namespace gla {

class GlaBlock {
 public:
  GlaBlock(const GlaConfig& config, const Parameters& parameters, int layer);

  const TokenMixer& mixer() const { return *mixer_; }

  // Views of what the forward pass leaves behind, in scratch memory.
  struct Saved {
    ResidualNorm::Saved attn_norm, mlp_norm;
    TokenMixer::Saved* mixer = nullptr;
    SwigluMlp::Saved mlp;
  };

  // The stream after this block. With pass.keep its two tensors are new and
  // `saved` is filled; without, they reuse the incoming two (one more is
  // allocated when x.h is empty) and `saved` means nothing.
  ResidualStream Forward(const ExecutionContext& ctx, const Pass& pass,
                         ResidualStream x, Saved* saved) const;

  // From the gradient of the stream after this block to that before it, in
  // place: dx [M, D]. Weight gradients are accumulated; uses up `saved`.
  void Backward(const ExecutionContext& ctx, const Pass& pass,
                const Saved& saved, Parameters* gradients,
                TensorView<float, 2> dx) const;

 private:
  ResidualNorm attn_norm_;
  std::unique_ptr<TokenMixer> mixer_;
  ResidualNorm mlp_norm_;
  SwigluMlp mlp_;
};

}  // namespace gla

#endif  // GLA_MODEL_LAYERS_GLA_BLOCK_H_
