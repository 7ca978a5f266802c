// Chunk GLA on a Hopper GPU: what chunk_gla.h computes, on device pointers with
// run-time element types. chunk_gla.cc and the C interface call it; both have
// checked shapes, types and alignment. Needs the CUDA runtime and nothing else.
//
//   S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T,    o_t = scale * S_t^T q_t
//
// Operands are rounded before each tensor-core product, to bfloat16 on the
// tuned path (to TF32 those of the scores of 256 channels; in two parts, of the
// gradients of 128 values, what queries and keys are in; going forward, below
// 256 channels, scores, with 256 values those of a chunk's first 32 keys, and a
// sequence's last keys in its final state; and to fp16, scaled, of dq, dk and
// dg of more than 128 values, where queries and keys meet) and to TF32 on the
// general one; sums, gates, states and their gradients are float32. Any log
// gate <= 0: chunks, or 16 tokens of them, whose gates would overflow the usual
// operands take an exact slower path, chosen for each and each channel on the
// device. Deterministic: every sum has one order.
//
// All work is queued on `stream`; nothing is allocated, nothing waits, so calls
// can be captured into a CUDA graph. Returns the first error of a launch.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_CUDA_H_
#define GLA_KERNELS_GLA_CHUNK_GLA_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/base/dtype.h"

namespace gla {

// Sizes and types of one call. Without cu_seqlens each of the B rows is a
// sequence (N = B). With it B = 1 and sequence n spans tokens
// [cu_seqlens[n], cu_seqlens[n+1]) of the T; empty sequences are legal.
struct ChunkGlaShape {
  int64_t B, T, H, K, V;  // K, V in [1, 512]
  int64_t N;              // sequences
  DType dtype;            // of q, k, v, o and their gradients: bf16 or fp16
  DType gate_dtype;       // of g and dg: fp32 or bf16
};

// Bytes of `saved` and of the workspaces: pure functions of the shape. Base
// addresses must be multiples of 256.
int64_t ChunkGlaSavedBytes(const ChunkGlaShape& shape);
int64_t ChunkGlaFwdWorkspaceBytes(const ChunkGlaShape& shape);
int64_t ChunkGlaBwdWorkspaceBytes(const ChunkGlaShape& shape);

struct ChunkGlaFwdCudaArgs {
  ChunkGlaShape shape;
  float scale;
  // Inputs.
  const void *q, *k;           // [B, T, H, K] dtype
  const void* v;               // [B, T, H, V] dtype
  const void* g;               // [B, T, H, K] gate_dtype; natural log, <= 0
  const float* initial_state;  // [N, H, K, V]; null: zero
  const int32_t* cu_seqlens;   // [N + 1] device memory; null: none
  // Outputs, overwritten.
  void* o;             // [B, T, H, V] dtype
  float* final_state;  // [N, H, K, V]; null: not wanted
  void* saved;         // for the backward pass; null: there will be none
  void* workspace;
};
cudaError_t ChunkGlaFwdCuda(const ChunkGlaFwdCudaArgs& args,
                            cudaStream_t stream);

struct ChunkGlaBwdCudaArgs {
  ChunkGlaShape shape;
  float scale;
  // Inputs: those of the forward pass, what it saved, and gradients.
  const void *q, *k;           // [B, T, H, K] dtype
  const void* v;               // [B, T, H, V] dtype
  const void* g;               // [B, T, H, K] gate_dtype
  const float* initial_state;  // [N, H, K, V]; null if it was
  const int32_t* cu_seqlens;   // [N + 1] device memory; null: none
  const void* saved;
  const void* d_o;             // [B, T, H, V] dtype
  const float* d_final_state;  // [N, H, K, V]; null: zero
  // Outputs, overwritten.
  void *dq, *dk;           // [B, T, H, K] dtype
  void* dv;                // [B, T, H, V] dtype
  void* dg;                // [B, T, H, K] gate_dtype; 0 where g is -inf
  float* d_initial_state;  // [N, H, K, V]; null: not wanted
  void* workspace;
};
cudaError_t ChunkGlaBwdCuda(const ChunkGlaBwdCudaArgs& args,
                            cudaStream_t stream);

}  // namespace gla

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_CUDA_H_
