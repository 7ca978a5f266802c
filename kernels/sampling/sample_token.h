// Choice of the next token from one row of logits.
#ifndef GLA_KERNELS_SAMPLING_SAMPLE_TOKEN_H_
#define GLA_KERNELS_SAMPLING_SAMPLE_TOKEN_H_

#include <cstdint>

#include "kernels/base/execution_context.h"
#include "kernels/base/tensor_view.h"

namespace gla {

struct SamplingOptions {
  float temperature = 0;  // 0: greedy, the first of the largest logits
  int32_t top_k = 0;      // keep the k most likely; 0: all
  float top_p = 1;        // then keep the smallest set with at least this mass
  uint64_t seed = 0;      // of the request
};

// The token drawn for output position `position` (0-based). A pure function of
// its arguments: Philox number (seed, stream 0, position) against the
// cumulative distribution, most likely token first, ties by lower id. The rest
// of a batch has no influence. Order of filters: temperature, top_k, top_p.
// NaN logits are never chosen; CHECK-fails when no logit is a number.
int32_t SampleToken(const ExecutionContext& ctx,
                    TensorView<const float, 1> logits,  // [vocab_size]
                    const SamplingOptions& options, int64_t position);

}  // namespace gla

#endif  // GLA_KERNELS_SAMPLING_SAMPLE_TOKEN_H_
