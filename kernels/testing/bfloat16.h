// bfloat16 on the host, for tests of device code.
#ifndef GLA_KERNELS_TESTING_BFLOAT16_H_
#define GLA_KERNELS_TESTING_BFLOAT16_H_

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/base/dtype.h"

namespace gla {

inline float ToFloat(BFloat16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}

// To the nearest, ties to even.
inline BFloat16 ToBFloat16(float x) {
  if (std::isnan(x)) return {0x7fff};
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounding = 0x7fff + (bits >> 16 & 1);
  return {static_cast<uint16_t>((bits + rounding) >> 16)};
}

}  // namespace gla

#endif  // GLA_KERNELS_TESTING_BFLOAT16_H_
