// The GLA language model: embedding, blocks, final norm, output projection.
// Start here; model/README.md has one block with its shapes.
#ifndef GLA_MODEL_GLA_MODEL_H_
#define GLA_MODEL_GLA_MODEL_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "kernels/base/execution_context.h"
#include "kernels/base/tensor_view.h"
#include "model/config.h"
#include "model/decode_states.h"
#include "model/parameters.h"

namespace gla {

// Computes with weights that it does not own. Holds no other state: a call's
// activations live in ctx.scratch, which is rewound at its end. Calls on one
// model may run at the same time with different contexts (but see Loss about
// gradients). Token ids must be in [0, vocab_size): CHECKed, so validate at the
// boundary. Deterministic.
class GlaModel {
 public:
  // `parameters` must outlive this and belong to a table of `config`.
  GlaModel(const GlaConfig& config, const Parameters* parameters);
  ~GlaModel();

  const GlaConfig& config() const { return config_; }

  // Cross-entropy of every position, and gradients when asked.
  struct LossArgs {
    TensorView<const int32_t, 2> tokens;  // [B, T]
    TensorView<const int32_t, 2> labels;  // [B, T]; kIgnoreLabel: no target
    float grad_scale = 1;                 // weight of each position's loss in
                                          // the objective
    Parameters* gradients = nullptr;      // accumulated (+=); null: none
    // Sequences start from `states` slots 0..B-1 and leave their final states
    // there; null: from zero. Gradients do not flow into states.
    DecodeStates* states = nullptr;
    TensorView<float, 2> loss;  // [B, T] overwritten, nats; 0 where
                                // ignored
  };
  void Loss(const ExecutionContext& ctx, const LossArgs& args) const;

  // Logits of every position, for verification and scoring: [B, T, vocab_size],
  // overwritten. States as in LossArgs.
  void Forward(const ExecutionContext& ctx, TensorView<const int32_t, 2> tokens,
               DecodeStates* states, TensorView<float, 3> logits) const;

  // Feeds prompt tokens (at least one) to the sequence in `slot` in chunk form.
  // `logits` [vocab_size] of the last token; empty: not wanted. The result
  // depends on the slot's state and the tokens of this call alone.
  void Prefill(const ExecutionContext& ctx, absl::Span<const int32_t> tokens,
               int slot, DecodeStates* states,
               TensorView<float, 1> logits) const;

  // One token for each of n sequences (slots all different): logits
  // [n, vocab_size]. A row's bits do not depend on the other rows.
  void DecodeStep(const ExecutionContext& ctx, absl::Span<const int32_t> tokens,
                  absl::Span<const int32_t> slots, DecodeStates* states,
                  TensorView<float, 2> logits) const;

 private:
  struct Layers;
  const GlaConfig config_;
  const Parameters* const parameters_;
  std::unique_ptr<Layers> layers_;
};

}  // namespace gla

#endif  // GLA_MODEL_GLA_MODEL_H_
