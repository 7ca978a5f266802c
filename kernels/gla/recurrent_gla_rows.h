// Internal to recurrent_gla_cuda: dq, dk, dg and the gradient of the initial
// state.
#ifndef GLA_KERNELS_GLA_RECURRENT_GLA_ROWS_H_
#define GLA_KERNELS_GLA_RECURRENT_GLA_ROWS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/gla/recurrent_gla_cuda.h"

namespace gla::internal {

// Tokens of a sequence from one anchor, a saved state, to the next. A function
// of K and V alone, so that a sequence's gradient does not depend on the
// others.
int AnchorPeriod(const RecurrentGlaShape& shape);
int64_t AnchorCount(const RecurrentGlaShape& shape);

struct RowParams {
  RecurrentGlaBwdCudaArgs args;
  // The workspace, in parts.
  float* dq;       // [B, T, H, K] without what a token's own key adds
  float* last_dg;  // [N, H, K] <e^g S_{T-1}, dS_T> of the last token, by row
  float* anchors;  // [AnchorCount, H, K, V]
};
cudaError_t RowSweeps(const RowParams& params, cudaStream_t stream);

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_RECURRENT_GLA_ROWS_H_
