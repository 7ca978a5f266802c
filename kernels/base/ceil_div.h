#ifndef GLA_KERNELS_BASE_CEIL_DIV_H_
#define GLA_KERNELS_BASE_CEIL_DIV_H_

#include <cstdint>

namespace gla {

// The least integer >= a / b, for a >= 0 and b > 0.
inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace gla

#endif  // GLA_KERNELS_BASE_CEIL_DIV_H_
