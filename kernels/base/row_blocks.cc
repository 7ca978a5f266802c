#include "kernels/base/row_blocks.h"

#include <algorithm>

#include "kernels/base/vector_math.h"

namespace gla {
namespace {

constexpr int64_t kMaxBlocks = 64;
constexpr int64_t kMinElementsPerThread = 8192;

}  // namespace

void AccumulateOverRows(
    const ExecutionContext& ctx, int64_t num_rows, TensorView<float, 1> sum,
    absl::FunctionRef<void(int64_t begin, int64_t end, float* partial)> fn) {
  if (num_rows == 0) return;
  const int64_t D = sum.dim(0);
  const int64_t block_rows = (num_rows + kMaxBlocks - 1) / kMaxBlocks;
  const int64_t num_blocks = (num_rows + block_rows - 1) / block_rows;

  ArenaScope scope(ctx.scratch);
  float* const partials = ctx.scratch->Allocate<float>(num_blocks * D);
  ctx.threads->ParallelFor(num_blocks, [&](int64_t block, int /*worker*/) {
    float* const partial = partials + block * D;
    std::fill_n(partial, D, 0.0f);
    const int64_t begin = block * block_rows;
    fn(begin, std::min(begin + block_rows, num_rows), partial);
  });

  ForEachVector(D, [&](int64_t d, auto lanes) {
    __m256 total = _mm256_setzero_ps();
    for (int64_t block = 0; block < num_blocks; ++block) {
      total += lanes.Load(partials + block * D + d);
    }
    lanes.Store(sum.data() + d, lanes.Load(sum.data() + d) + total);
  });
}

int64_t RowGrain(int64_t D) {
  return std::max<int64_t>(1, kMinElementsPerThread / std::max<int64_t>(1, D));
}

}  // namespace gla
