// Sums over the rows of a matrix: gradients of parameters that all rows share.
#ifndef GLA_KERNELS_BASE_ROW_BLOCKS_H_
#define GLA_KERNELS_BASE_ROW_BLOCKS_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "kernels/base/execution_context.h"
#include "kernels/base/tensor_view.h"

namespace gla {

// Adds to `sum` [D] what rows [0, num_rows) contribute. fn(begin, end, partial)
// adds the contributions of rows [begin, end) to partial[0 .. D), which starts
// at zero; calls run in parallel and cover every row once.
//
// Deterministic: the blocks depend on num_rows alone, and their partial sums
// are added in order, so the result has the same bits for any thread count.
// Takes at most 64 D floats of scratch. CPU only.
void AccumulateOverRows(
    const ExecutionContext& ctx, int64_t num_rows, TensorView<float, 1> sum,
    absl::FunctionRef<void(int64_t begin, int64_t end, float* partial)> fn);

// The least number of rows of length D that are worth a thread of their own.
int64_t RowGrain(int64_t D);

}  // namespace gla

#endif  // GLA_KERNELS_BASE_ROW_BLOCKS_H_
