#include <immintrin.h>

#include <algorithm>

#include "glog/logging.h"
#include "kernels/base/vector_math.h"
#include "kernels/optimizer/grad_norm.h"

namespace gla {
namespace {

constexpr int64_t kBlock = 16384;  // elements

double BlockSumOfSquares(const float* x, int64_t n) {
  __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
  ForEachVector(n, [&](int64_t i, auto lanes) {
    const __m256 values = lanes.Load(x + i);
    const __m256d a = _mm256_cvtps_pd(_mm256_castps256_ps128(values));
    const __m256d b = _mm256_cvtps_pd(_mm256_extractf128_ps(values, 1));
    low = _mm256_fmadd_pd(a, a, low);
    high = _mm256_fmadd_pd(b, b, high);
  });
  const __m256d sum = low + high;
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

}  // namespace

double SumOfSquares(const ExecutionContext& ctx, TensorView<const float, 1> x) {
  CHECK(ctx.device == Device::kCpu) << "grad_norm: built for the CPU only";
  const int64_t n = x.dim(0), num_blocks = (n + kBlock - 1) / kBlock;
  ArenaScope scope(ctx.scratch);
  double* sums = ctx.scratch->Allocate<double>(num_blocks);
  ctx.threads->ParallelFor(num_blocks, [&](int64_t block, int /*worker*/) {
    const int64_t begin = block * kBlock;
    sums[block] =
        BlockSumOfSquares(x.data() + begin, std::min(kBlock, n - begin));
  });
  double total = 0;
  for (int64_t block = 0; block < num_blocks; ++block) total += sums[block];
  return total;
}

float ClipFactor(double norm, double max_norm) {
  if (max_norm <= 0) return 1;
  const double factor = max_norm / (norm + 1e-6);
  return factor >= 1 ? 1 : factor;  // NaN stays NaN
}

}  // namespace gla
