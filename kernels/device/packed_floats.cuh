// Device code: kWidth neighbouring floats that move in one memory instruction.
#ifndef GLA_KERNELS_DEVICE_PACKED_FLOATS_CUH_
#define GLA_KERNELS_DEVICE_PACKED_FLOATS_CUH_

#include <cstdint>
#include <initializer_list>

namespace gla {

// Width 4 is a 16-byte access; its address must be a multiple of 16.
template <int kWidth>
struct alignas(kWidth * sizeof(float)) PackedFloats {
  float lane[kWidth];

  static __device__ PackedFloats Load(const float* p) {
    return *reinterpret_cast<const PackedFloats*>(p);
  }
  __device__ void Store(float* p) const {
    *reinterpret_cast<PackedFloats*>(p) = *this;
  }
};

// 4 if rows of D floats that start at these addresses can be read 16 bytes at a
// time, else 1. (A null pointer, an argument that is not given, always can.)
inline int PackedWidth(int64_t D, std::initializer_list<const void*> rows) {
  uintptr_t bits = D * sizeof(float);
  for (const void* p : rows) bits |= reinterpret_cast<uintptr_t>(p);
  return bits % 16 == 0 ? 4 : 1;
}

}  // namespace gla

#endif  // GLA_KERNELS_DEVICE_PACKED_FLOATS_CUH_
