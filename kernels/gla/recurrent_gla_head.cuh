// Device code internal to recurrent_gla_cuda: where the tokens and the states
// of one head of one sequence are.
#ifndef GLA_KERNELS_GLA_RECURRENT_GLA_HEAD_CUH_
#define GLA_KERNELS_GLA_RECURRENT_GLA_HEAD_CUH_

#include <cstdint>

#include "kernels/gla/recurrent_gla_cuda.h"

namespace gla::internal {

// One head of one sequence.
struct Head {
  int64_t n, h;    // sequence, head
  int64_t begin;   // first token, counted through the batch
  int64_t tokens;  // may be 0
};

__device__ inline Head HeadAt(const RecurrentGlaShape& shape,
                              const int32_t* cu_seqlens, uint32_t index) {
  const uint32_t H = shape.H;  // 64-bit division is slow
  Head head = {index / H, index % H, 0, 0};
  if (cu_seqlens == nullptr) {
    head.begin = head.n * shape.T;
    head.tokens = shape.T;
  } else {
    head.begin = cu_seqlens[head.n];
    head.tokens = cu_seqlens[head.n + 1] - head.begin;
  }
  return head;
}

// Offset of the row of `width` elements that token t of the head has.
__device__ inline int64_t TokenRow(const RecurrentGlaShape& shape,
                                   const Head& head, int64_t t, int64_t width) {
  return ((head.begin + t) * shape.H + head.h) * width;
}

__device__ inline int64_t StateOffset(const RecurrentGlaShape& shape,
                                      int64_t slot, int64_t h) {
  return (slot * shape.H + h) * shape.K * shape.V;
}

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_RECURRENT_GLA_HEAD_CUH_
