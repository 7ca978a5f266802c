// Token embedding: row lookup and its gradient.
#ifndef GLA_KERNELS_EMBEDDING_EMBEDDING_H_
#define GLA_KERNELS_EMBEDDING_EMBEDDING_H_

#include <cstdint>

#include "kernels/base/execution_context.h"
#include "kernels/base/tensor_view.h"

namespace gla {

// y[m] = table[tokens[m]]. Overwrites y. Token ids must lie in [0, vocab_size);
// CHECK-fails otherwise (callers validate at the boundary).
void EmbeddingFwd(const ExecutionContext& ctx,
                  TensorView<const int32_t, 1> tokens,  // [M]
                  TensorView<const float, 2> table,     // [vocab_size, D]
                  TensorView<float, 2> y);              // [M, D]

// dtable[tokens[m]] += dy[m], in the order of m: deterministic.
void EmbeddingBwd(const ExecutionContext& ctx,
                  TensorView<const int32_t, 1> tokens,  // [M]
                  TensorView<const float, 2> dy,        // [M, D]
                  TensorView<float, 2> dtable);         // [vocab_size, D]

}  // namespace gla

#endif  // GLA_KERNELS_EMBEDDING_EMBEDDING_H_
