// The error metric of all op tests, as in fla: rms(x - ref) / rms(ref).
//
//   EXPECT_TRUE(RelativeRmsAtMost(1e-5, y, y_ref));
#ifndef GLA_KERNELS_TESTING_RELATIVE_RMS_H_
#define GLA_KERNELS_TESTING_RELATIVE_RMS_H_

#include "absl/types/span.h"
#include "gtest/gtest.h"

namespace gla {

// rms(x - ref) / rms(ref); rms(x) where ref is all zeros; NaN where x or ref
// holds one, and inf where the sizes differ.
double RelativeRms(absl::Span<const float> x, absl::Span<const double> ref);

// Passes if RelativeRms(x, ref) <= limit (NaN fails). The message tells the
// figure, the limit, both rms and the element that is furthest off.
testing::AssertionResult RelativeRmsAtMost(double limit,
                                           absl::Span<const float> x,
                                           absl::Span<const double> ref);

}  // namespace gla

#endif  // GLA_KERNELS_TESTING_RELATIVE_RMS_H_
