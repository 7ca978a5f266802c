// Tensors of 16-bit elements for the tests of CUDA kernels with run-time types.
#ifndef GLA_KERNELS_DEVICE_TEST_ELEMENTS_H_
#define GLA_KERNELS_DEVICE_TEST_ELEMENTS_H_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <array>
#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/device/test_device.h"
#include "kernels/testing/random_tensor.h"

namespace gla {

inline uint16_t ToBits(float x, DType dtype) {
  return dtype == DType::kBFloat16
             ? __bfloat16_as_ushort(__float2bfloat16_rn(x))
             : __half_as_ushort(__float2half_rn(x));
}
inline float FromBits(uint16_t bits, DType dtype) {
  return dtype == DType::kBFloat16
             ? __bfloat162float(__ushort_as_bfloat16(bits))
             : __half2float(__ushort_as_half(bits));
}

// x with every element rounded to the type.
template <int Rank>
OwnedTensor<float, Rank> RoundTo(DType dtype, OwnedTensor<float, Rank> x) {
  if (dtype == DType::kFloat32) return x;
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = FromBits(ToBits(x[i], dtype), dtype);
  }
  return x;
}

// A copy of x on the device, as elements of the type.
template <int Rank>
void* UploadAs(DType dtype, TestDevice& device,
               const OwnedTensor<float, Rank>& x) {
  if (dtype == DType::kFloat32) return device.Upload(x).data();
  OwnedTensor<uint16_t, Rank> bits(x.shape());
  for (size_t i = 0; i < x.size(); ++i) bits[i] = ToBits(x[i], dtype);
  return device.Upload(bits).data();
}

// The tensor of that type at `data` on the device, as float.
template <size_t Rank>
OwnedTensor<float, static_cast<int>(Rank)> DownloadAs(
    DType dtype, TestDevice& device, void* data,
    const std::array<int64_t, Rank>& shape) {
  constexpr int kRank = Rank;
  if (dtype == DType::kFloat32) {
    return device.Download(
        TensorView<float, kRank>(static_cast<float*>(data), shape));
  }
  const OwnedTensor<uint16_t, kRank> bits = device.Download(
      TensorView<uint16_t, kRank>(static_cast<uint16_t*>(data), shape));
  OwnedTensor<float, kRank> x(shape);
  for (size_t i = 0; i < x.size(); ++i) x[i] = FromBits(bits[i], dtype);
  return x;
}

}  // namespace gla

#endif  // GLA_KERNELS_DEVICE_TEST_ELEMENTS_H_
