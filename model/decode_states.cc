#include "model/decode_states.h"

#include <algorithm>

#include "glog/logging.h"

namespace gla {

DecodeStates::DecodeStates(const GlaConfig& config, int num_slots)
    : num_slots_(num_slots),
      num_layers_(config.num_hidden_layers),
      heads_(config.num_heads),
      head_k_(config.head_k_dim()),
      head_v_(config.head_v_dim()),
      data_(
          new float[num_layers_ * num_slots_ * heads_ * head_k_ * head_v_]()) {
  CHECK_GE(num_slots, 1);
}

int64_t DecodeStates::bytes_per_slot() const {
  return num_layers_ * heads_ * head_k_ * head_v_ * sizeof(float);
}

void DecodeStates::SetZero(int slot) {
  for (int l = 0; l < num_layers_; ++l) {
    const TensorView<float, 4> state = this->slot(l, slot);
    std::fill_n(state.data(), state.size(), 0.0f);
  }
}

TensorView<float, 4> DecodeStates::layer(int layer) {
  CHECK(layer >= 0 && layer < num_layers_) << layer;
  const int64_t size = num_slots_ * heads_ * head_k_ * head_v_;
  return {data_.get() + layer * size, {num_slots_, heads_, head_k_, head_v_}};
}

TensorView<float, 4> DecodeStates::slot(int layer, int slot) {
  CHECK(slot >= 0 && slot < num_slots_) << slot;
  return {this->layer(layer)[slot].data(), {1, heads_, head_k_, head_v_}};
}

}  // namespace gla
