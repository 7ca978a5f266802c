// Element types of device tensors, for code that learns them at run time.
#ifndef GLA_KERNELS_BASE_DTYPE_H_
#define GLA_KERNELS_BASE_DTYPE_H_

#include <cstdint>

namespace gla {

enum class DType { kFloat32, kBFloat16, kFloat16 };

inline int64_t DTypeBytes(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : 2;
}

}  // namespace gla

#endif  // GLA_KERNELS_BASE_DTYPE_H_
