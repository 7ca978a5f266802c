// Gated linear attention in chunk form, for training and for prompts. Per
// sequence and head:
//
//   S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T        S [K, V]
//   o_t = scale * S_t^T q_t
//
// computed in chunks of kGlaChunk tokens: matrix products inside a chunk, one
// state update between chunks. (GLA, arXiv:2312.06635v6, section 4 and
// algorithms 1-4; fla `chunk_gla`.) Equals the token-by-token recurrence up to
// rounding. Deterministic, whatever the thread count.
//
// T is the element type of q, k, v, o and their gradients, Gate that of g and
// dg; states are float:
//
//   CPU   float, float. Float32 throughout; any B, T, H, K, V >= 1.
//   CUDA  BFloat16 or Float16, float or BFloat16. Hopper; K, V <= 512. Sums and
//         states are float32, operands of products are rounded (to bfloat16 or
//         fp16 on the tuned path, else to TF32). Takes device workspace.
//
// Range of g: any value <= 0, -inf included. Log gates down to -7 per step in
// all channels or -30 in single ones keep full accuracy; on CUDA dg then has
// twice its usual error (docs/kernels.md, "Tests"). g = -inf is a reset: that
// channel's past is forgotten exactly, and its gradient dg is 0.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_H_
#define GLA_KERNELS_GLA_CHUNK_GLA_H_

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/base/dtype.h"
#include "kernels/base/execution_context.h"
#include "kernels/base/tensor_view.h"

namespace gla {

inline constexpr int kGlaChunk = 64;  // tokens in a chunk

// Sequences. Without cu_seqlens each of the B rows is one sequence (N = B).
// With it, B = 1 and sequence n spans tokens [cu_seqlens[n], cu_seqlens[n+1]);
// cu_seqlens[0] = 0, the last entry is T; empty sequences are legal (final
// state = initial state). On CUDA it is device memory and not checked.
template <typename T, typename Gate = float>
struct ChunkGlaFwdArgsOf {
  // Inputs.
  TensorView<const T, 4> q, k;               // [B, T, H, K]
  TensorView<const T, 4> v;                  // [B, T, H, V]
  TensorView<const Gate, 4> g;               // [B, T, H, K] log gate, <= 0
  TensorView<const float, 4> initial_state;  // [N, H, K, V]; empty: zero
  absl::Span<const int32_t> cu_seqlens;      // [N + 1] or empty
  float scale = 1;                           // usually 1 / sqrt(K)
  // Outputs, overwritten.
  TensorView<T, 4> o;                // [B, T, H, V]
  TensorView<float, 4> final_state;  // [N, H, K, V]; empty: not wanted; on the
                                     // CPU it may alias initial_state
  // What the backward pass reuses; ChunkGlaSavedFloats() elements; empty when
  // there will be none.
  TensorView<float, 1> saved;
};
using ChunkGlaFwdArgs = ChunkGlaFwdArgsOf<float>;

template <typename T, typename Gate>
void ChunkGlaFwd(const ExecutionContext& ctx,
                 const ChunkGlaFwdArgsOf<T, Gate>& args);

// Size of `saved` in floats, for inputs of these shapes.
template <typename T = float, typename Gate = float>
int64_t ChunkGlaSavedFloats(const std::array<int64_t, 4>& k_shape,  // B,T,H,K
                            const std::array<int64_t, 4>& v_shape,  // B,T,H,V
                            absl::Span<const int32_t> cu_seqlens);

// Device workspace in bytes that both passes take; 0 for the CPU's types.
template <typename T, typename Gate = float>
int64_t ChunkGlaWorkspaceBytes(const std::array<int64_t, 4>& k_shape,
                               const std::array<int64_t, 4>& v_shape,
                               absl::Span<const int32_t> cu_seqlens);

template <typename T, typename Gate = float>
struct ChunkGlaBwdArgsOf {
  // Inputs: those of the forward pass, unchanged (so its final_state was not
  // initial_state), what it saved, and gradients.
  TensorView<const T, 4> q, k;               // [B, T, H, K]
  TensorView<const T, 4> v;                  // [B, T, H, V]
  TensorView<const Gate, 4> g;               // [B, T, H, K]
  TensorView<const float, 4> initial_state;  // [N, H, K, V]; empty: zero
  absl::Span<const int32_t> cu_seqlens;      // [N + 1] or empty
  float scale = 1;
  TensorView<const float, 1> saved;
  TensorView<const T, 4> d_o;                // [B, T, H, V]
  TensorView<const float, 4> d_final_state;  // [N, H, K, V]; empty: zero
  // Outputs, overwritten. d_o and the inputs are left as they are.
  TensorView<T, 4> dq, dk;               // [B, T, H, K]
  TensorView<T, 4> dv;                   // [B, T, H, V]
  TensorView<Gate, 4> dg;                // [B, T, H, K]; on the CPU it may be
                                         // empty: not wanted
  TensorView<float, 4> d_initial_state;  // [N, H, K, V]; empty: not wanted
};
using ChunkGlaBwdArgs = ChunkGlaBwdArgsOf<float>;

template <typename T, typename Gate>
void ChunkGlaBwd(const ExecutionContext& ctx,
                 const ChunkGlaBwdArgsOf<T, Gate>& args);

}  // namespace gla

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_H_
