// The part of a block that mixes tokens over time, behind one interface, so
// that blocks, model and serving do not know which one they have.
#ifndef GLA_MODEL_LAYERS_TOKEN_MIXER_H_
#define GLA_MODEL_LAYERS_TOKEN_MIXER_H_

#include <array>
#include <cstdint>

#include "kernels/base/execution_context.h"
#include "kernels/base/tensor_view.h"
#include "model/layers/pass.h"
#include "model/parameters.h"

namespace gla {

// Immutable; computes with weights that it does not own.
class TokenMixer {
 public:
  virtual ~TokenMixer() = default;

  // What a sequence's past is in this layer: a state of [H, K, V] floats.
  virtual std::array<int64_t, 3> state_shape() const = 0;

  // What the forward pass leaves behind for Backward. Each mixer derives its
  // own; it lives in scratch memory, so it holds views and no destructor.
  struct Saved {};

  // y = mix(x), causal within each sequence of `pass`, from the states of
  // `pass` if it has any, which it moves on. The result of pass.keep is valid
  // until scratch is rewound; without keep it means nothing.
  virtual Saved* Forward(const ExecutionContext& ctx, const Pass& pass,
                         TensorView<const float, 2> x,       // [M, D]
                         TensorView<float, 2> y) const = 0;  // [M, D]

  // dx, overwritten; weight gradients are accumulated. No gradient flows into
  // or out of the states.
  virtual void Backward(const ExecutionContext& ctx, const Pass& pass,
                        const Saved* saved,
                        TensorView<const float, 2> dy,  // [M, D]
                        Parameters* gradients,
                        TensorView<float, 2> dx) const = 0;  // [M, D]
};

}  // namespace gla

#endif  // GLA_MODEL_LAYERS_TOKEN_MIXER_H_
