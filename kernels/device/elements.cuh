// Device code: tensors of float, bfloat16 or half, read and written as floats.
#ifndef GLA_KERNELS_DEVICE_ELEMENTS_CUH_
#define GLA_KERNELS_DEVICE_ELEMENTS_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <initializer_list>

#include "kernels/base/dtype.h"

namespace gla {

__device__ inline float ToFloat(float x) { return x; }
__device__ inline float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float ToFloat(__half x) { return __half2float(x); }

__device__ inline void FromFloat(float x, float* to) { *to = x; }
__device__ inline void FromFloat(float x, __nv_bfloat16* to) {
  *to = __float2bfloat16_rn(x);
}
__device__ inline void FromFloat(float x, __half* to) {
  *to = __float2half_rn(x);
}

// ---------------------------------------------------------------------------
// One element, type known at run time.

// In two steps, so that a thread can have several loads under way before it
// waits for the first.
__device__ inline uint32_t LoadBits(const void* p, DType dtype, int64_t i) {
  return dtype == DType::kFloat32 ? static_cast<const uint32_t*>(p)[i]
                                  : static_cast<const uint16_t*>(p)[i];
}
__device__ inline float BitsToFloat(uint32_t bits, DType dtype) {
  if (dtype == DType::kFloat32) return __uint_as_float(bits);
  if (dtype == DType::kBFloat16) return __uint_as_float(bits << 16);
  return __half2float(__ushort_as_half(static_cast<uint16_t>(bits)));
}

__device__ inline void StoreElement(float x, void* p, DType dtype, int64_t i) {
  if (dtype == DType::kFloat32) {
    FromFloat(x, static_cast<float*>(p) + i);
  } else if (dtype == DType::kBFloat16) {
    FromFloat(x, static_cast<__nv_bfloat16*>(p) + i);
  } else {
    FromFloat(x, static_cast<__half*>(p) + i);
  }
}

// ---------------------------------------------------------------------------
// Neighbouring elements, type known when compiled.

template <int kWidth>
struct Lanes {
  float lane[kWidth];
};

// Moves 16 bytes at a time if kWidth elements are a multiple of that, and then
// the address must be one too; else element by element.
template <int kWidth, typename T>
__device__ Lanes<kWidth> LoadLanes(const T* p) {
  Lanes<kWidth> x;
  if constexpr (kWidth * sizeof(T) % 16 == 0) {
    constexpr int kPacked = 16 / sizeof(T);
#pragma unroll
    for (int i = 0; i < kWidth; i += kPacked) {
      const uint4 bits = *reinterpret_cast<const uint4*>(p + i);
      const T* const elements = reinterpret_cast<const T*>(&bits);
#pragma unroll
      for (int j = 0; j < kPacked; ++j) x.lane[i + j] = ToFloat(elements[j]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) x.lane[i] = ToFloat(p[i]);
  }
  return x;
}

template <int kWidth, typename T>
__device__ void StoreLanes(const Lanes<kWidth>& x, T* p) {
  if constexpr (kWidth * sizeof(T) % 16 == 0) {
    constexpr int kPacked = 16 / sizeof(T);
#pragma unroll
    for (int i = 0; i < kWidth; i += kPacked) {
      uint4 bits;
      T* const elements = reinterpret_cast<T*>(&bits);
#pragma unroll
      for (int j = 0; j < kPacked; ++j) FromFloat(x.lane[i + j], elements + j);
      *reinterpret_cast<uint4*>(p + i) = bits;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) FromFloat(x.lane[i], p + i);
  }
}

// ---------------------------------------------------------------------------
// Host: which code to launch.

// A type as a value: WithElementType(dtype, [&](auto tag) {
//   using T = typename decltype(tag)::type; ... })
template <typename T>
struct TypeTag {
  using type = T;
};
template <typename Fn>
auto WithElementType(DType dtype, Fn fn) {
  if (dtype == DType::kFloat32) return fn(TypeTag<float>());
  if (dtype == DType::kBFloat16) return fn(TypeTag<__nv_bfloat16>());
  return fn(TypeTag<__half>());
}

// Whether rows of `row_bytes` that start at these addresses (null: not given)
// can be read 16 bytes at a time.
inline bool Aligned16(int64_t row_bytes,
                      std::initializer_list<const void*> rows) {
  uintptr_t bits = row_bytes;
  for (const void* p : rows) bits |= reinterpret_cast<uintptr_t>(p);
  return bits % 16 == 0;
}

}  // namespace gla

#endif  // GLA_KERNELS_DEVICE_ELEMENTS_CUH_
