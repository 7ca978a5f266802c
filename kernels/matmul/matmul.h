// Matrix products. The CPU side is OpenBLAS, split over the context's threads,
// but for RowInvariantMatmulNT, which is our own.
//
// Linear weights are stored [out, in], as in PyTorch, hence three products:
//   forward           y  [M, out] = x  [M, in]  * w [out, in]^T   MatmulNT
//   input gradient    dx [M, in]  = dy [M, out] * w [out, in]     MatmulNN
//   weight gradient   dw [out, in] += dy [M, out]^T * x [M, in]   MatmulTN
//
// All are deterministic for a given thread count; CHECK-fail on shapes that do
// not fit. Outputs must not alias inputs. M, N, K may be 0 (K = 0 gives zeros).
#ifndef GLA_KERNELS_MATMUL_MATMUL_H_
#define GLA_KERNELS_MATMUL_MATMUL_H_

#include "kernels/base/execution_context.h"
#include "kernels/base/tensor_view.h"

namespace gla {

enum class Accumulate { kNo, kYes };  // c = product, or c += product

// c [M, N] = a [M, K] * b [N, K]^T.
void MatmulNT(const ExecutionContext& ctx, TensorView<const float, 2> a,
              TensorView<const float, 2> b, TensorView<float, 2> c,
              Accumulate accumulate = Accumulate::kNo);

// c [M, N] = a [M, K] * b [K, N].
void MatmulNN(const ExecutionContext& ctx, TensorView<const float, 2> a,
              TensorView<const float, 2> b, TensorView<float, 2> c,
              Accumulate accumulate = Accumulate::kNo);

// c [M, N] = a [K, M]^T * b [K, N].
void MatmulTN(const ExecutionContext& ctx, TensorView<const float, 2> a,
              TensorView<const float, 2> b, TensorView<float, 2> c,
              Accumulate accumulate = Accumulate::kNo);

// c [M, N] = a [M, K] * b [N, K]^T for the few rows of a decode step. Every
// row of c has the same bits whatever the other rows and M are, and whatever
// the thread count: one fixed order of additions over K. Reads b once, at the
// memory's speed, which is what bounds it while M is small.
void RowInvariantMatmulNT(const ExecutionContext& ctx,
                          TensorView<const float, 2> a,
                          TensorView<const float, 2> b, TensorView<float, 2> c);

}  // namespace gla

#endif  // GLA_KERNELS_MATMUL_MATMUL_H_
