#include "kernels/gla/repeat_heads.h"

#include <algorithm>

#include "glog/logging.h"
#include "kernels/base/row_blocks.h"
#include "kernels/base/vector_math.h"

namespace gla {
namespace {

// Heads of `many` [M, H, D] for each head of `few` [M, num_kv_heads, D].
int64_t NumGroups(const std::array<int64_t, 3>& many,
                  const std::array<int64_t, 3>& few) {
  CHECK(many[0] == few[0] && many[2] == few[2] && few[1] > 0 &&
        many[1] % few[1] == 0)
      << "repeat heads: cannot share [" << absl::StrJoin(few, ", ")
      << "] among [" << absl::StrJoin(many, ", ") << "]";
  return many[1] / few[1];
}

}  // namespace

void RepeatHeadsFwd(const ExecutionContext& ctx, TensorView<const float, 3> x,
                    TensorView<float, 3> y) {
  CHECK(ctx.device == Device::kCpu) << "RepeatHeadsFwd: CPU only so far";
  const int64_t groups = NumGroups(y.shape(), x.shape());
  const int64_t D = x.dim(2);
  ctx.threads->ParallelRanges(x.dim(0) * x.dim(1), RowGrain(groups * D),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t head = begin; head < end; ++head) {
                                  const float* const from = x.data() + head * D;
                                  float* to = y.data() + head * groups * D;
                                  for (int64_t i = 0; i < groups;
                                       ++i, to += D) {
                                    std::copy_n(from, D, to);
                                  }
                                }
                              });
}

void RepeatHeadsBwd(const ExecutionContext& ctx, TensorView<const float, 3> dy,
                    TensorView<float, 3> dx) {
  CHECK(ctx.device == Device::kCpu) << "RepeatHeadsBwd: CPU only so far";
  const int64_t groups = NumGroups(dy.shape(), dx.shape());
  const int64_t D = dx.dim(2);
  ctx.threads->ParallelRanges(dx.dim(0) * dx.dim(1), RowGrain(groups * D),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t head = begin; head < end; ++head) {
                                  const float* const from =
                                      dy.data() + head * groups * D;
                                  float* const to = dx.data() + head * D;
                                  ForEachVector(D, [&](int64_t d, auto lanes) {
                                    __m256 sum = lanes.Load(from + d);
                                    for (int64_t i = 1; i < groups; ++i) {
                                      sum += lanes.Load(from + i * D + d);
                                    }
                                    lanes.Store(to + d, sum);
                                  });
                                }
                              });
}

}  // namespace gla
