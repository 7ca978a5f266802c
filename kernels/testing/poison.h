// NaN fill for output buffers: what an op forgets to write stays NaN and fails
// every comparison.
#ifndef GLA_KERNELS_TESTING_POISON_H_
#define GLA_KERNELS_TESTING_POISON_H_

#include <algorithm>
#include <limits>

#include "absl/types/span.h"

namespace gla {

inline void Poison(absl::Span<float> x) {
  std::fill(x.begin(), x.end(), std::numeric_limits<float>::quiet_NaN());
}

}  // namespace gla

#endif  // GLA_KERNELS_TESTING_POISON_H_
