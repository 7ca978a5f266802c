#include "kernels/testing/relative_rms.h"

#include <cmath>
#include <limits>

namespace gla {
namespace {

struct Comparison {
  double rms_ref = 0;
  double rms_error = 0;
  size_t worst = 0;  // index of the largest |x - ref|, or of the first NaN
};

Comparison Compare(absl::Span<const float> x, absl::Span<const double> ref) {
  Comparison result;
  double worst_error = -1;
  for (size_t i = 0; i < x.size(); ++i) {
    const double error = std::abs(x[i] - ref[i]);
    result.rms_ref += ref[i] * ref[i];
    result.rms_error += error * error;
    if (error > worst_error || (std::isnan(error) && worst_error >= 0)) {
      worst_error = std::isnan(error) ? std::nan("") : error;
      result.worst = i;
    }
  }
  if (!x.empty()) {
    result.rms_ref = std::sqrt(result.rms_ref / x.size());
    result.rms_error = std::sqrt(result.rms_error / x.size());
  }
  return result;
}

double Relative(const Comparison& c) {
  return c.rms_ref == 0 ? c.rms_error : c.rms_error / c.rms_ref;
}

}  // namespace

double RelativeRms(absl::Span<const float> x, absl::Span<const double> ref) {
  if (x.size() != ref.size()) return std::numeric_limits<double>::infinity();
  return Relative(Compare(x, ref));
}

testing::AssertionResult RelativeRmsAtMost(double limit,
                                           absl::Span<const float> x,
                                           absl::Span<const double> ref) {
  if (x.size() != ref.size()) {
    return testing::AssertionFailure()
           << x.size() << " elements where the reference has " << ref.size();
  }
  const Comparison c = Compare(x, ref);
  const double relative = Relative(c);
  if (relative <= limit) return testing::AssertionSuccess();
  return testing::AssertionFailure()
         << "relative rms " << relative << ", limit " << limit
         << "; rms(x - ref) " << c.rms_error << ", rms(ref) " << c.rms_ref
         << "; worst at " << c.worst << " of " << x.size() << ": got "
         << x[c.worst] << ", want " << ref[c.worst];
}

}  // namespace gla
