// A non-owning, contiguous, row-major tensor: a typed pointer and a shape.
//
// Views are cheap values that say at every call what an argument is: dtype and
// rank in the type, sizes in the value. They never outlive the call they are
// passed to unless the callee says so. An empty view (data() == nullptr) stands
// for "not given" where a contract allows it.
#ifndef GLA_KERNELS_BASE_TENSOR_VIEW_H_
#define GLA_KERNELS_BASE_TENSOR_VIEW_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "glog/logging.h"

namespace gla {

template <typename T, int Rank>
class TensorView {
 public:
  using Shape = std::array<int64_t, Rank>;

  TensorView() = default;
  TensorView(T* data, const Shape& shape) : data_(data), shape_(shape) {}

  // A mutable view is accepted where a read-only one is wanted.
  template <typename U, typename = std::enable_if_t<std::is_same_v<const U, T>>>
  TensorView(const TensorView<U, Rank>& other)  // NOLINT: implicit by design
      : data_(other.data()), shape_(other.shape()) {}

  T* data() const { return data_; }
  bool empty() const { return data_ == nullptr; }
  const Shape& shape() const { return shape_; }
  int64_t dim(int i) const { return shape_[i]; }

  // Number of elements; 0 for a default-constructed view.
  int64_t size() const {
    int64_t n = 1;
    for (int64_t d : shape_) n *= d;
    return n;
  }

  // The sub-tensor at index `i` of the first dimension.
  TensorView<T, Rank - 1> operator[](int64_t i) const requires(Rank > 1) {
    std::array<int64_t, Rank - 1> rest;
    int64_t stride = 1;
    for (int d = 1; d < Rank; ++d) {
      rest[d - 1] = shape_[d];
      stride *= shape_[d];
    }
    return {data_ + i * stride, rest};
  }
  T& operator[](int64_t i) const requires(Rank == 1) { return data_[i]; }

  // The same elements under another shape. CHECK-fails if the sizes differ.
  template <size_t NewRank>
  TensorView<T, static_cast<int>(NewRank)> Reshape(
      const std::array<int64_t, NewRank>& shape) const {
    TensorView<T, static_cast<int>(NewRank)> view(data_, shape);
    CHECK_EQ(view.size(), size()) << "reshape of " << ShapeString();
    return view;
  }

  // "[2, 3, 4]", for error messages.
  std::string ShapeString() const {
    return absl::StrCat("[", absl::StrJoin(shape_, ", "), "]");
  }

 private:
  T* data_ = nullptr;
  Shape shape_ = {};
};

// CHECK-fails with the tensor's name and both shapes unless `view` has exactly
// the shape `want`. Ops call it on every argument before they compute.
template <typename T, int Rank>
void CheckShape(const char* name, const TensorView<T, Rank>& view,
                const typename TensorView<T, Rank>::Shape& want) {
  CHECK(view.shape() == want) << name << ": want [" << absl::StrJoin(want, ", ")
                              << "], got " << view.ShapeString();
}

}  // namespace gla

#endif  // GLA_KERNELS_BASE_TENSOR_VIEW_H_
