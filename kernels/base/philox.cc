#include "kernels/base/philox.h"

#include <cmath>
#include <numbers>

namespace gla {
namespace {

constexpr int kRounds = 10;
constexpr float kTwoToMinus24 = 1.0f / (1 << 24);

}  // namespace

std::array<uint32_t, 4> Philox(uint64_t seed, uint64_t stream, uint64_t index) {
  auto low = [](uint64_t x) { return static_cast<uint32_t>(x); };
  auto high = [](uint64_t x) { return static_cast<uint32_t>(x >> 32); };
  std::array<uint32_t, 4> c = {low(index), high(index), low(stream),
                               high(stream)};
  uint32_t key0 = low(seed), key1 = high(seed);
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57} * c[2];
    c = {high(p1) ^ c[1] ^ key0, low(p1), high(p0) ^ c[3] ^ key1, low(p0)};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return c;
}

float PhiloxUniform(uint64_t seed, uint64_t stream, uint64_t index) {
  return (Philox(seed, stream, index)[0] >> 8) * kTwoToMinus24;
}

float PhiloxNormal(uint64_t seed, uint64_t stream, uint64_t index) {
  const auto words = Philox(seed, stream, index);
  // In float64, so that the float32 result does not depend on the libm.
  const double in_0_1 = ((words[0] >> 8) + 1.0) * kTwoToMinus24;  // never 0
  const double turn = (words[1] >> 8) * kTwoToMinus24;
  return std::sqrt(-2 * std::log(in_0_1)) *
         std::cos(2 * std::numbers::pi * turn);
}

}  // namespace gla
