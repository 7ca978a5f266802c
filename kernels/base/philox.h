// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011).
//
// A value is a pure function of (seed, stream, index): nothing depends on how
// often or in which order somebody asked, so runs resume and requests repeat
// bit for bit.
#ifndef GLA_KERNELS_BASE_PHILOX_H_
#define GLA_KERNELS_BASE_PHILOX_H_

#include <array>
#include <cstdint>

namespace gla {

// The four 32-bit words at position (`stream`, `index`) of generator `seed`.
std::array<uint32_t, 4> Philox(uint64_t seed, uint64_t stream, uint64_t index);

// Uniform in [0, 1), 24 bits; from the first word of Philox().
float PhiloxUniform(uint64_t seed, uint64_t stream, uint64_t index);

// Standard normal (Box-Muller on the first two words).
float PhiloxNormal(uint64_t seed, uint64_t stream, uint64_t index);

}  // namespace gla

#endif  // GLA_KERNELS_BASE_PHILOX_H_
