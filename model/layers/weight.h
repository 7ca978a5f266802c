// One tensor of the model as a layer sees it: its value, and its place in any
// other Parameters of the same table.
#ifndef GLA_MODEL_LAYERS_WEIGHT_H_
#define GLA_MODEL_LAYERS_WEIGHT_H_

#include <cstdint>
#include <string>

#include "kernels/base/tensor_view.h"
#include "model/parameters.h"

namespace gla {

template <int Rank>
class Weight {
  static_assert(Rank == 1 || Rank == 2);

 public:
  Weight() = default;  // a tensor that the model does not have

  // CHECK-fails when `parameters`, which must outlive this, has no `name` of
  // this rank.
  Weight(const Parameters& parameters, const std::string& name) {
    if constexpr (Rank == 1) {
      value_ = parameters.vector(name);
    } else {
      value_ = parameters.matrix(name);
    }
    offset_ = value_.data() - parameters.flat().data();
  }

  TensorView<const float, Rank> value() const { return value_; }

  TensorView<float, Rank> GradientIn(Parameters* gradients) const {
    return {gradients->flat().data() + offset_, value_.shape()};
  }

 private:
  TensorView<const float, Rank> value_;
  int64_t offset_ = 0;  // elements from the start of the flat buffer
};

}  // namespace gla

#endif  // GLA_MODEL_LAYERS_WEIGHT_H_
