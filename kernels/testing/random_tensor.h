// Owning tensors for tests: seeded random values, zeros, or NaN.
//
//   OwnedTensor<float, 2> x = RandomNormal<2>({M, D}, /*seed=*/1);
//   OwnedTensor<float, 2> y = PoisonedTensor<2>({M, D});
//   SomeOp(test.ctx(), x, y);   // converts to TensorView
#ifndef GLA_KERNELS_TESTING_RANDOM_TENSOR_H_
#define GLA_KERNELS_TESTING_RANDOM_TENSOR_H_

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/base/philox.h"
#include "kernels/base/tensor_view.h"
#include "kernels/testing/poison.h"

namespace gla {

// A row-major tensor that owns its elements, all zero at first.
template <typename T, int Rank>
class OwnedTensor {
 public:
  using Shape = std::array<int64_t, Rank>;

  explicit OwnedTensor(const Shape& shape)
      : shape_(shape), values_(TensorView<T, Rank>(nullptr, shape).size()) {}

  const Shape& shape() const { return shape_; }
  int64_t dim(int i) const { return shape_[i]; }
  size_t size() const { return values_.size(); }
  T* data() { return values_.data(); }
  const T* data() const { return values_.data(); }

  // Element `i` in row-major order.
  T& operator[](int64_t i) { return values_[i]; }
  const T& operator[](int64_t i) const { return values_[i]; }

  TensorView<T, Rank> view() { return {data(), shape_}; }
  TensorView<const T, Rank> view() const { return {data(), shape_}; }
  operator TensorView<T, Rank>() { return view(); }              // NOLINT
  operator TensorView<const T, Rank>() const { return view(); }  // NOLINT

  const std::vector<T>& values() const { return values_; }
  // For references: the same values as float64.
  std::vector<double> AsDouble() const {
    return std::vector<double>(values_.begin(), values_.end());
  }

  friend bool operator==(const OwnedTensor& a, const OwnedTensor& b) {
    return a.shape_ == b.shape_ && a.values_ == b.values_;
  }

 private:
  Shape shape_;
  std::vector<T> values_;
};

// Normal with mean 0 and standard deviation `scale`.
template <int Rank>
OwnedTensor<float, Rank> RandomNormal(const std::array<int64_t, Rank>& shape,
                                      uint64_t seed, float scale = 1) {
  OwnedTensor<float, Rank> x(shape);
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = scale * PhiloxNormal(seed, /*stream=*/0, i);
  }
  return x;
}

// Uniform in [low, high).
template <int Rank>
OwnedTensor<float, Rank> RandomUniform(const std::array<int64_t, Rank>& shape,
                                       uint64_t seed, float low, float high) {
  OwnedTensor<float, Rank> x(shape);
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = low + (high - low) * PhiloxUniform(seed, /*stream=*/0, i);
  }
  return x;
}

// All NaN: for outputs that an op must overwrite.
template <int Rank>
OwnedTensor<float, Rank> PoisonedTensor(
    const std::array<int64_t, Rank>& shape) {
  OwnedTensor<float, Rank> x(shape);
  Poison(absl::MakeSpan(x.data(), x.size()));
  return x;
}

}  // namespace gla

#endif  // GLA_KERNELS_TESTING_RANDOM_TENSOR_H_
