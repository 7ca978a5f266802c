#include <algorithm>
#include <cmath>
#include <limits>

#include "glog/logging.h"
#include "kernels/base/vector_math.h"
#include "kernels/loss/linear_cross_entropy.h"
#include "kernels/matmul/matmul.h"

namespace gla {
namespace {

// Tokens per slice. Enough for the matrix products to run at full speed, few
// enough for the logits of a slice to stay near the last-level cache.
constexpr int64_t kSliceTokens = 512;

void CheckArgs(const ExecutionContext& ctx, const LinearCrossEntropyArgs& a) {
  CHECK(ctx.device == Device::kCpu) << "loss: built for the CPU only";
  const int64_t M = a.x.dim(0), D = a.x.dim(1), vocab_size = a.weight.dim(0);
  CheckShape("weight", a.weight, {vocab_size, D});
  CheckShape("labels", a.labels, {M});
  CheckShape("loss", a.loss, {M});
  CHECK_EQ(a.dx.empty(), a.dweight.empty());
  if (!a.dx.empty()) {
    CheckShape("dx", a.dx, {M, D});
    CheckShape("dweight", a.dweight, {vocab_size, D});
  }
  for (int64_t m = 0; m < M; ++m) {
    const int32_t label = a.labels[m];
    CHECK(label == kIgnoreLabel || (label >= 0 && label < vocab_size))
        << "label " << label << " at " << m << ", vocab_size " << vocab_size;
  }
}

float RowMax(const float* x, int64_t n) {
  __m256 max8 = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    max8 = _mm256_max_ps(max8, _mm256_loadu_ps(x + i));
  }
  float max = Max8(max8);
  for (; i < n; ++i) max = std::max(max, x[i]);
  return max;
}

// Replaces x by e^(x - max); returns the sum.
float ExponentiateRow(float max, float* x, int64_t n) {
  const __m256 max8 = _mm256_set1_ps(max);
  __m256 sum = _mm256_setzero_ps();
  ForEachVector(n, [&](int64_t i, auto lanes) {
    lanes.Store(x + i, Exp8(lanes.Load(x + i) - max8));
    sum += lanes.Load(x + i);  // only lanes that are part of the row
  });
  return Sum8(sum);
}

// Returns the loss of one token. With gradients wanted, turns its logits into
// grad_scale * (softmax - one_hot(label)), the gradient.
float RowLoss(float* logits, int64_t vocab_size, int32_t label,
              bool want_gradient, float grad_scale) {
  if (label == kIgnoreLabel) {
    if (want_gradient) std::fill_n(logits, vocab_size, 0.0f);
    return 0;
  }
  const float label_logit = logits[label];
  const float max = RowMax(logits, vocab_size);
  const float sum = ExponentiateRow(max, logits, vocab_size);
  if (want_gradient) {
    const __m256 scale = _mm256_set1_ps(grad_scale / sum);
    ForEachVector(vocab_size, [&](int64_t i, auto lanes) {
      lanes.Store(logits + i, scale * lanes.Load(logits + i));
    });
    logits[label] -= grad_scale;
  }
  return std::log(sum) + (max - label_logit);
}

// Rows [begin, begin + count) of a matrix.
template <typename T>
TensorView<T, 2> RowRange(TensorView<T, 2> x, int64_t begin, int64_t count) {
  return {x.data() + begin * x.dim(1), {count, x.dim(1)}};
}

void ComputeSlice(const ExecutionContext& ctx, const LinearCrossEntropyArgs& a,
                  int64_t begin, TensorView<float, 2> logits) {
  const int64_t tokens = logits.dim(0), vocab_size = logits.dim(1);
  const bool want_gradient = !a.dx.empty();
  const TensorView<const float, 2> x = RowRange(a.x, begin, tokens);
  MatmulNT(ctx, x, a.weight, logits);
  ctx.threads->ParallelRanges(tokens, /*grain=*/1, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      a.loss[begin + i] =
          RowLoss(logits[i].data(), vocab_size, a.labels[begin + i],
                  want_gradient, a.grad_scale);
    }
  });
  if (!want_gradient) return;
  MatmulNN(ctx, logits, a.weight, RowRange(a.dx, begin, tokens));
  MatmulTN(ctx, logits, x, a.dweight, Accumulate::kYes);
}

}  // namespace

void LinearCrossEntropy(const ExecutionContext& ctx,
                        const LinearCrossEntropyArgs& args) {
  CheckArgs(ctx, args);
  const int64_t M = args.x.dim(0), vocab_size = args.weight.dim(0);
  ArenaScope scope(ctx.scratch);
  float* logits =
      ctx.scratch->Allocate<float>(std::min(M, kSliceTokens) * vocab_size);
  for (int64_t begin = 0; begin < M; begin += kSliceTokens) {
    const int64_t tokens = std::min(kSliceTokens, M - begin);
    ComputeSlice(ctx, args, begin, {logits, {tokens, vocab_size}});
  }
}

}  // namespace gla
