// Recurrent GLA on a GPU: what recurrent_gla.h computes, on device pointers
// with run-time element types. recurrent_gla.cc and the C interface call it;
// both have checked their arguments. Needs the CUDA runtime and nothing else.
// Float32 arithmetic and states. Queued on `stream`; allocates nothing;
// deterministic; a row's bits do not depend on the other rows.
//
// A call that decodes (a token for each of many sequences) starts while the
// kernel before it in the stream ends, and waits for it before it touches
// memory: a programmatic dependent launch. If that kernel was launched so, it
// must have waited for those before it, as such kernels do.
#ifndef GLA_KERNELS_GLA_RECURRENT_GLA_CUDA_H_
#define GLA_KERNELS_GLA_RECURRENT_GLA_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/base/dtype.h"

namespace gla {

// Without cu_seqlens each of the B rows is a sequence of T tokens (N = B). With
// it B = 1 and sequence n spans tokens [cu_seqlens[n], cu_seqlens[n+1]).
struct RecurrentGlaShape {
  int64_t B, T, H, K, V;  // K, V in [1, 512]
  int64_t N;              // sequences
  DType dtype;            // of q, k, v, o and their gradients: any
  DType gate_dtype;       // of g and dg: any
};

struct RecurrentGlaFwdCudaArgs {
  RecurrentGlaShape shape;
  float scale;
  // Inputs.
  const void *q, *k;           // [B, T, H, K] dtype
  const void* v;               // [B, T, H, V] dtype
  const void* g;               // [B, T, H, K] gate_dtype; -inf resets
  const int32_t* cu_seqlens;   // [N + 1] device memory; null: none
  const int32_t* slots;        // [N] device memory, all different: sequence n's
                               // states are at index slots[n]; null: n
  const float* initial_state;  // [num_slots, H, K, V]; null: zero; may be
                               // final_state itself (in place)
  // Outputs, overwritten.
  void* o;             // [B, T, H, V] dtype
  float* final_state;  // [num_slots, H, K, V]; null: not wanted; slots that no
                       // sequence names stay untouched
};
cudaError_t RecurrentGlaFwdCuda(const RecurrentGlaFwdCudaArgs& args,
                                cudaStream_t stream);

// The gradient, token by token. States are recomputed; no slots.
struct RecurrentGlaBwdCudaArgs {
  RecurrentGlaShape shape;
  float scale;
  // Inputs.
  const void *q, *k, *v, *g;
  const int32_t* cu_seqlens;
  const float* initial_state;  // [N, H, K, V]; null: zero
  const void* d_o;             // [B, T, H, V] dtype
  const float* d_final_state;  // [N, H, K, V]; null: zero
  // Outputs, overwritten.
  void *dq, *dk;           // [B, T, H, K] dtype
  void* dv;                // [B, T, H, V] dtype
  void* dg;                // [B, T, H, K] gate_dtype; 0 where g is -inf
  float* d_initial_state;  // [N, H, K, V]; null: not wanted
  void* workspace;         // RecurrentGlaBwdWorkspaceBytes(shape)
};
int64_t RecurrentGlaBwdWorkspaceBytes(const RecurrentGlaShape& shape);
cudaError_t RecurrentGlaBwdCuda(const RecurrentGlaBwdCudaArgs& args,
                                cudaStream_t stream);

}  // namespace gla

#endif  // GLA_KERNELS_GLA_RECURRENT_GLA_CUDA_H_
