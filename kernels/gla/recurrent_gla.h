// Gated linear attention token by token, for decoding and short inputs. The
// same function as chunk_gla.h,
//
//   S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T,    o_t = scale * S_t^T q_t,
//
// on states that live in a pool of slots and are updated in place. (fla
// `fused_recurrent_gla`.) Float32. Every row's result has the same bits
// whatever the other rows are and however its tokens are split over calls.
// CPU; CUDA for head sizes K, V up to 512, where RecurrentGlaBwd takes device
// workspace.
#ifndef GLA_KERNELS_GLA_RECURRENT_GLA_H_
#define GLA_KERNELS_GLA_RECURRENT_GLA_H_

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/base/execution_context.h"
#include "kernels/base/tensor_view.h"

namespace gla {

struct RecurrentGlaFwdArgs {
  // Inputs.
  TensorView<const float, 4> q, k;  // [B, T, H, K]
  TensorView<const float, 4> v;     // [B, T, H, V]
  TensorView<const float, 4> g;     // [B, T, H, K] log gate, <= 0; -inf resets
  absl::Span<const int32_t> slots;  // [B] row b's state; all different; empty:
                                    // slot b; memory of the context's device
  float scale = 1;                  // usually 1 / sqrt(K)
  // Outputs.
  TensorView<float, 4> o;      // [B, T, H, V] overwritten
  TensorView<float, 4> state;  // [num_slots, H, K, V] read, then replaced by
                               // the state after T tokens
};
void RecurrentGlaFwd(const ExecutionContext& ctx,
                     const RecurrentGlaFwdArgs& args);

// The gradient, token by token (no saved tensors; the states are recomputed).
struct RecurrentGlaBwdArgs {
  // Inputs.
  TensorView<const float, 4> q, k;           // [B, T, H, K]
  TensorView<const float, 4> v;              // [B, T, H, V]
  TensorView<const float, 4> g;              // [B, T, H, K]
  TensorView<const float, 4> initial_state;  // [B, H, K, V]; empty: zero
  float scale = 1;
  TensorView<const float, 4> d_o;            // [B, T, H, V]
  TensorView<const float, 4> d_final_state;  // [B, H, K, V]; empty: zero
  // Outputs, overwritten.
  TensorView<float, 4> dq, dk;           // [B, T, H, K]
  TensorView<float, 4> dv;               // [B, T, H, V]
  TensorView<float, 4> dg;               // [B, T, H, K]
  TensorView<float, 4> d_initial_state;  // [B, H, K, V]; empty: not wanted
};
void RecurrentGlaBwd(const ExecutionContext& ctx,
                     const RecurrentGlaBwdArgs& args);

}  // namespace gla

#endif  // GLA_KERNELS_GLA_RECURRENT_GLA_H_
