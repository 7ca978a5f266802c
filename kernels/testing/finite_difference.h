// Numerical gradients by central differences.
//
// `f` is a scalar function of an array that it reads through a captured
// reference; `x` is that array, changed for each evaluation and restored. Use
// float64 with a step near 1e-5; with float32 arrays a step near 1e-2, and the
// rounding of f limits the accuracy.
#ifndef GLA_KERNELS_TESTING_FINITE_DIFFERENCE_H_
#define GLA_KERNELS_TESTING_FINITE_DIFFERENCE_H_

#include <cstddef>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"

namespace gla {

// df / dx[i] for every element: 2 x.size() evaluations.
template <typename T>
std::vector<double> FiniteDifferenceGradient(absl::Span<T> x, double step,
                                             absl::FunctionRef<double()> f) {
  std::vector<double> gradient(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const T saved = x[i];
    const T above = saved + step;
    const T below = saved - step;
    x[i] = above;
    const double f_above = f();
    x[i] = below;
    const double f_below = f();
    x[i] = saved;
    gradient[i] = (f_above - f_below) / (double{above} - double{below});
  }
  return gradient;
}

// sum_i df / dx[i] * direction[i]: two evaluations, for large arrays.
template <typename T>
double DirectionalDerivative(absl::Span<T> x, absl::Span<const T> direction,
                             double step, absl::FunctionRef<double()> f) {
  const std::vector<T> saved(x.begin(), x.end());
  auto at = [&](double t) {
    for (size_t i = 0; i < x.size(); ++i) x[i] = saved[i] + t * direction[i];
    return f();
  };
  const double derivative = (at(step) - at(-step)) / (2 * step);
  for (size_t i = 0; i < x.size(); ++i) x[i] = saved[i];
  return derivative;
}

}  // namespace gla

#endif  // GLA_KERNELS_TESTING_FINITE_DIFFERENCE_H_
