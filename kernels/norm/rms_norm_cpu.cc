#include <cmath>

#include "kernels/base/row_blocks.h"
#include "kernels/base/vector_math.h"
#include "kernels/norm/rms_norm_device.h"

namespace gla {
namespace {

// Writes x + residual to `sum` and returns the sum of its squares.
float AddRow(int64_t D, const float* x, const float* residual, float* sum) {
  __m256 squares = _mm256_setzero_ps();
  ForEachVector(D, [&](int64_t d, auto lanes) {
    const __m256 s = lanes.Load(x + d) + lanes.Load(residual + d);
    lanes.Store(sum + d, s);
    squares = _mm256_fmadd_ps(s, s, squares);
  });
  return Sum8(squares);
}

float SumOfSquares(int64_t D, const float* x) {
  __m256 squares = _mm256_setzero_ps();
  ForEachVector(D, [&](int64_t d, auto lanes) {
    const __m256 s = lanes.Load(x + d);
    squares = _mm256_fmadd_ps(s, s, squares);
  });
  return Sum8(squares);
}

void ForwardRow(const RmsNormFwdArgs& args, int64_t row) {
  const int64_t D = args.x.dim(1);
  const float* x = args.x[row].data();
  float squares;
  if (args.residual.empty()) {
    squares = SumOfSquares(D, x);
  } else {
    float* const sum = args.sum[row].data();
    squares = AddRow(D, x, args.residual[row].data(), sum);
    x = sum;
  }
  const float rstd = 1 / std::sqrt(squares / D + args.eps);
  if (!args.rstd.empty()) args.rstd[row] = rstd;

  const float* const weight = args.weight.data();
  float* const y = args.y[row].data();
  ForEachVector(D, [&](int64_t d, auto lanes) {
    lanes.Store(y + d, lanes.Load(x + d) * rstd * lanes.Load(weight + d));
  });
}

// With n = sum * rstd (the normalised row) and h = weight * dy:
//   dsum = rstd * (h - n * mean(h * n)) + dresidual,  dweight += dy * n.
void BackwardRow(const RmsNormBwdArgs& args, int64_t row, float* dweight) {
  const int64_t D = args.sum.dim(1);
  const float* const dy = args.dy[row].data();
  const float* const sum = args.sum[row].data();
  const float* const weight = args.weight.data();
  const float rstd = args.rstd[row];

  __m256 products = _mm256_setzero_ps();
  ForEachVector(D, [&](int64_t d, auto lanes) {
    const __m256 dyn = lanes.Load(dy + d) * lanes.Load(sum + d) * rstd;
    lanes.Store(dweight + d, lanes.Load(dweight + d) + dyn);
    products = _mm256_fmadd_ps(lanes.Load(weight + d), dyn, products);
  });
  const float mean = Sum8(products) / D;

  const float* const dresidual =
      args.dresidual.empty() ? nullptr : args.dresidual[row].data();
  float* const dsum = args.dsum[row].data();
  ForEachVector(D, [&](int64_t d, auto lanes) {
    const __m256 n = lanes.Load(sum + d) * rstd;
    const __m256 h = lanes.Load(weight + d) * lanes.Load(dy + d);
    __m256 ds = rstd * (h - n * mean);
    if (dresidual != nullptr) ds += lanes.Load(dresidual + d);
    lanes.Store(dsum + d, ds);
  });
}

}  // namespace

void RmsNormFwdCpu(const ExecutionContext& ctx, const RmsNormFwdArgs& args) {
  ctx.threads->ParallelRanges(args.x.dim(0), RowGrain(args.x.dim(1)),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t row = begin; row < end; ++row)
                                  ForwardRow(args, row);
                              });
}

void RmsNormBwdCpu(const ExecutionContext& ctx, const RmsNormBwdArgs& args) {
  AccumulateOverRows(ctx, args.sum.dim(0), args.dweight,
                     [&](int64_t begin, int64_t end, float* dweight) {
                       for (int64_t row = begin; row < end; ++row) {
                         BackwardRow(args, row, dweight);
                       }
                     });
}

}  // namespace gla
