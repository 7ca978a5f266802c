#include <algorithm>

#include "glog/logging.h"
#include "kernels/base/vector_math.h"
#include "kernels/embedding/embedding.h"

namespace gla {
namespace {

void CheckTokens(const ExecutionContext& ctx,
                 TensorView<const int32_t, 1> tokens, int64_t vocab_size) {
  CHECK(ctx.device == Device::kCpu) << "embedding: built for the CPU only";
  for (int64_t m = 0; m < tokens.dim(0); ++m) {
    CHECK(tokens[m] >= 0 && tokens[m] < vocab_size)
        << "token " << tokens[m] << " at " << m << ", vocab_size "
        << vocab_size;
  }
}

}  // namespace

void EmbeddingFwd(const ExecutionContext& ctx,
                  TensorView<const int32_t, 1> tokens,
                  TensorView<const float, 2> table, TensorView<float, 2> y) {
  constexpr int64_t kMinRows = 16;
  const int64_t M = tokens.dim(0), D = table.dim(1);
  CheckShape("y", y, {M, D});
  CheckTokens(ctx, tokens, table.dim(0));
  ctx.threads->ParallelRanges(M, kMinRows, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      std::copy_n(table.data() + tokens[m] * D, D, y.data() + m * D);
    }
  });
}

// Threads share out the columns, so each adds the rows of dy in order.
void EmbeddingBwd(const ExecutionContext& ctx,
                  TensorView<const int32_t, 1> tokens,
                  TensorView<const float, 2> dy, TensorView<float, 2> dtable) {
  constexpr int64_t kMinColumns = 64;
  const int64_t M = tokens.dim(0), D = dtable.dim(1);
  CheckShape("dy", dy, {M, D});
  CheckTokens(ctx, tokens, dtable.dim(0));
  ctx.threads->ParallelRanges(D, kMinColumns, [&](int64_t begin, int64_t end) {
    for (int64_t m = 0; m < M; ++m) {
      const float* from = dy.data() + m * D + begin;
      float* to = dtable.data() + tokens[m] * D + begin;
      ForEachVector(end - begin, [&](int64_t i, auto lanes) {
        lanes.Store(to + i, lanes.Load(to + i) + lanes.Load(from + i));
      });
    }
  });
}

}  // namespace gla
