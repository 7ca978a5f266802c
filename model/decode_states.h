// The recurrent states of sequences being decoded: a fixed pool of slots, each
// of which holds one sequence's whole past, in all layers.
#ifndef GLA_MODEL_DECODE_STATES_H_
#define GLA_MODEL_DECODE_STATES_H_

#include <cstdint>
#include <memory>

#include "kernels/base/tensor_view.h"
#include "model/config.h"

namespace gla {

// Owns the memory; who uses which slot is the caller's business.
// Thread-compatible.
class DecodeStates {
 public:
  DecodeStates(const GlaConfig& config, int num_slots);  // all zero

  int num_slots() const { return num_slots_; }
  int64_t bytes_per_slot() const;  // of all layers

  // A slot that has seen no tokens.
  void SetZero(int slot);

  // Layer `layer` of all slots, and of one: float32.
  TensorView<float, 4> layer(int layer);           // [slots, H, K, V]
  TensorView<float, 4> slot(int layer, int slot);  // [1, H, K, V]

 private:
  const int num_slots_;
  const int num_layers_;
  const int64_t heads_, head_k_, head_v_;
  std::unique_ptr<float[]> data_;  // [layers, slots, H, K, V]
};

}  // namespace gla

#endif  // GLA_MODEL_DECODE_STATES_H_
