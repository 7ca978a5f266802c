// Element types of device tensors, and types for views of what the host only
// moves.
#ifndef GLA_KERNELS_BASE_DTYPE_H_
#define GLA_KERNELS_BASE_DTYPE_H_

#include <cstdint>
#include <type_traits>

namespace gla {

enum class DType { kFloat32, kBFloat16, kFloat16 };

inline int64_t DTypeBytes(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : 2;
}

struct BFloat16 {
  uint16_t bits;
  bool operator==(const BFloat16&) const = default;
};
struct Float16 {
  uint16_t bits;
  bool operator==(const Float16&) const = default;
};

template <typename T>
constexpr DType DTypeOf() {
  if constexpr (std::is_same_v<T, BFloat16>) return DType::kBFloat16;
  if constexpr (std::is_same_v<T, Float16>) return DType::kFloat16;
  static_assert(sizeof(T) == 2 || std::is_same_v<T, float>);
  return DType::kFloat32;
}

}  // namespace gla

#endif  // GLA_KERNELS_BASE_DTYPE_H_
