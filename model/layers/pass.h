// One pass over the model: how the rows of the [M, D] activations form
// sequences, where their states are, and which form the layers compute in.
#ifndef GLA_MODEL_LAYERS_PASS_H_
#define GLA_MODEL_LAYERS_PASS_H_

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/base/tensor_view.h"
#include "model/decode_states.h"

namespace gla {

struct Pass {
  enum class Form {
    kChunk,  // T tokens of each of B sequences: row b * T + t. Matrix products
             // by BLAS, token mixing in chunk form.
    kStep,   // one token of each of B sequences (T = 1). A row's bits do not
             // depend on the other rows; token mixing in recurrent form.
  };

  Form form = Form::kChunk;
  int64_t B = 0;
  int64_t T = 1;
  DecodeStates* states = nullptr;   // read, then replaced by the states after
                                    // this pass; null: from zero, not wanted
  int first_slot = 0;               // kChunk: sequence b is in first_slot + b
  absl::Span<const int32_t> slots;  // kStep: sequence b is in slots[b]
  bool keep = false;  // what Backward needs stays in scratch (kChunk only)

  int64_t M() const { return B * T; }

  // Layer `layer`'s states: [B, H, K, V] in kChunk (empty without states),
  // [num_slots, H, K, V] in kStep.
  TensorView<float, 4> state(int layer) const {
    if (states == nullptr) return {};
    const TensorView<float, 4> all = states->layer(layer);
    if (form == Form::kStep) return all;
    CHECK_LE(first_slot + B, all.dim(0)) << "more sequences than slots";
    return {all[first_slot].data(), {B, all.dim(1), all.dim(2), all.dim(3)}};
  }
};

}  // namespace gla

#endif  // GLA_MODEL_LAYERS_PASS_H_
