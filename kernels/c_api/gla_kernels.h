// Gated linear attention on a Hopper GPU as a C library, libgla_kernels.so. It
// needs the NVIDIA driver and libc, nothing else. Per sequence and head
//
//   S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T        S [K, V]
//   o_t = scale * S_t^T q_t
//
// as chunks of matrix products (gla_chunk_*: training, prompts) or token by
// token (gla_recurrent_*: decoding, float32 arithmetic throughout), and the two
// element-wise ops around it in a GLA layer.
//
// Every call checks its arguments and the current device (compute capability
// 9.0), queues work on `stream` (a cudaStream_t of the current device; null is
// the default stream) and returns. Nothing is allocated, nothing waits, so
// calls can be captured into a CUDA graph. The same inputs give the same bits.
// Calls are thread-safe.
//
// Tensors are dense, row-major, in memory of the current device:
//   q, k, g [B, T, H, K]    v, o [B, T, H, V]    states [N, H, K, V] float32
// and aligned to 16 bytes, or to the greatest power of two that divides the
// bytes of a row (K or V elements) where that is less. Gradients look like what
// they are of. `saved` and workspaces are aligned to 256 bytes. Outputs overlap
// nothing else but where a comment allows it.
#ifndef GLA_KERNELS_C_API_GLA_KERNELS_H_
#define GLA_KERNELS_C_API_GLA_KERNELS_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Changes with every incompatible change of this header. A caller that loads
// the library at run time compares.
#define GLA_KERNELS_VERSION 1
int gla_kernels_version(void);

typedef enum gla_status {
  GLA_OK = 0,
  GLA_INVALID_ARGUMENT = 1,  // null, misaligned, inconsistent, too small
  GLA_UNSUPPORTED = 2,       // meaningful, but outside what the kernels do
  GLA_WRONG_GPU = 3,         // the current device is no Hopper GPU
  GLA_CUDA_ERROR = 4,
} gla_status;

// What went wrong in this thread's last call that failed, naming the function
// and the argument. Valid until the thread's next failure; "" before the first.
const char* gla_last_error(void);

typedef enum gla_dtype {
  GLA_FLOAT32 = 0,
  GLA_BFLOAT16 = 1,
  GLA_FLOAT16 = 2,
} gla_dtype;

// Sizes and types of one call; all sizes >= 1. Without cu_seqlens each of the B
// rows is a sequence and N = B. With it B = 1 and sequence n spans tokens
// [cu_seqlens[n], cu_seqlens[n+1]); cu_seqlens[0] = 0, the last entry is T,
// which is not checked. Empty sequences are legal: final state = initial state.
typedef struct gla_shape {
  int64_t B, T, H, K, V;  // K, V <= 512
  int64_t N;              // sequences
  int32_t dtype;          // gla_dtype of q, k, v, o and their gradients
  int32_t gate_dtype;     // gla_dtype of g and dg
} gla_shape;

// --- Chunk form -------------------------------------------------------------
//
// dtype: bfloat16 or float16. gate_dtype: float32 or bfloat16. Sums and states
// are float32. g: natural log of the gate, <= 0, -inf included.

typedef struct gla_chunk_bytes {
  int64_t saved;          // what the backward pass takes from the forward pass
  int64_t fwd_workspace;  // contents are free before and after the call
  int64_t bwd_workspace;
} gla_chunk_bytes;
gla_status gla_chunk_sizes(const gla_shape* shape, gla_chunk_bytes* bytes);

typedef struct gla_chunk_fwd_args {
  gla_shape shape;
  float scale;  // usually 1 / sqrt(K)
  // Inputs.
  const void *q, *k, *v, *g;
  const float* initial_state;  // null: zero
  const int32_t* cu_seqlens;   // [N + 1] in device memory; null: none
  // Outputs, overwritten.
  void* o;
  float* final_state;  // null: not wanted
  void* saved;         // null: there will be no backward pass
  int64_t saved_bytes;
  void* workspace;  // may be null where its size is 0
  int64_t workspace_bytes;
} gla_chunk_fwd_args;
gla_status gla_chunk_fwd(const gla_chunk_fwd_args* args, void* stream);

typedef struct gla_chunk_bwd_args {
  gla_shape shape;
  float scale;
  // Inputs: those of the forward pass, what it saved, and gradients.
  const void *q, *k, *v, *g;
  const float* initial_state;
  const int32_t* cu_seqlens;
  const void* saved;  // may be null where its size is 0
  int64_t saved_bytes;
  const void* d_o;
  const float* d_final_state;  // null: zero
  // Outputs, overwritten.
  void *dq, *dk, *dv;
  void* dg;                // 0 where g is -inf
  float* d_initial_state;  // null: not wanted
  void* workspace;
  int64_t workspace_bytes;
} gla_chunk_bwd_args;
gla_status gla_chunk_bwd(const gla_chunk_bwd_args* args, void* stream);

// --- Recurrent form ---------------------------------------------------------
//
// Any dtypes. A sequence's bits do not depend on the other sequences. A call
// that decodes (a token for each of many sequences) starts while the kernel
// before it in the stream ends, and waits for it before it touches memory: a
// programmatic dependent launch. If that kernel was launched so, it must have
// waited for those before it, as such kernels do.

typedef struct gla_recurrent_fwd_args {
  gla_shape shape;
  float scale;
  // Inputs.
  const void *q, *k, *v, *g;
  const int32_t* cu_seqlens;   // [N + 1] in device memory; null: none
  const int32_t* slots;        // [N] in device memory, all different: sequence
                               // n's states have index slots[n]; null: n
  const float* initial_state;  // null: zero; may be final_state (in place)
  // Outputs, overwritten.
  void* o;
  float* final_state;  // null: not wanted; what no slot names stays as it is
} gla_recurrent_fwd_args;
gla_status gla_recurrent_fwd(const gla_recurrent_fwd_args* args, void* stream);

// Nothing is saved: the states are computed again.
gla_status gla_recurrent_bwd_size(const gla_shape* shape,
                                  int64_t* workspace_bytes);

typedef struct gla_recurrent_bwd_args {
  gla_shape shape;
  float scale;
  // Inputs.
  const void *q, *k, *v, *g;
  const int32_t* cu_seqlens;
  const float* initial_state;
  const void* d_o;
  const float* d_final_state;  // null: zero
  // Outputs, overwritten.
  void *dq, *dk, *dv;
  void* dg;                // 0 where g is -inf
  float* d_initial_state;  // null: not wanted
  void* workspace;
  int64_t workspace_bytes;
} gla_recurrent_bwd_args;
gla_status gla_recurrent_bwd(const gla_recurrent_bwd_args* args, void* stream);

// --- Gate -------------------------------------------------------------------
//
// g = log_sigmoid(logits + bias) / normalizer. Any dtypes, float32 arithmetic.
// M counts tokens, D heads times K; rows of D elements.

typedef struct gla_gate_fwd_args {
  int64_t M, D;
  float normalizer;  // 16 in GLA
  int32_t dtype;     // gla_dtype of logits
  int32_t bias_dtype;
  int32_t gate_dtype;  // of g
  // Inputs.
  const void* logits;  // [M, D]
  const void* bias;    // [D]; null: zero
  // Output, overwritten; may be logits where the types are the same.
  void* g;  // [M, D]
} gla_gate_fwd_args;
gla_status gla_gate_fwd(const gla_gate_fwd_args* args, void* stream);

gla_status gla_gate_bwd_size(int64_t M, int64_t D, int64_t* workspace_bytes);

typedef struct gla_gate_bwd_args {
  int64_t M, D;
  float normalizer;
  int32_t dtype;       // of dlogits
  int32_t gate_dtype;  // of g and dg
  // Inputs.
  const void* dg;  // [M, D]
  const void* g;   // [M, D] from the forward pass
  // Outputs.
  void* dlogits;  // [M, D] overwritten; may be dg where the types are the same
  float* dbias;   // [D] accumulated (+=); null: not wanted
  void* workspace;  // may be null where dbias is
  int64_t workspace_bytes;
} gla_gate_bwd_args;
gla_status gla_gate_bwd(const gla_gate_bwd_args* args, void* stream);

// --- Gated RMSNorm ----------------------------------------------------------
//
// y = x / sqrt(mean(x^2) + eps) * weight * gate * sigmoid(gate), row by row.
// Any dtypes, float32 arithmetic. M counts tokens times heads; rows of V
// elements.

typedef struct gla_gated_rms_norm_shape {
  int64_t M, V;
  int32_t dtype;  // gla_dtype of x, gate, y and their gradients
  int32_t weight_dtype;
} gla_gated_rms_norm_shape;

typedef struct gla_gated_rms_norm_fwd_args {
  gla_gated_rms_norm_shape shape;
  float eps;
  // Inputs.
  const void *x, *gate;  // [M, V]
  const void* weight;    // [V]
  // Outputs, overwritten.
  void* y;      // [M, V]; may be x or gate
  float* rstd;  // [M], for the backward pass; null: not wanted
} gla_gated_rms_norm_fwd_args;
gla_status gla_gated_rms_norm_fwd(const gla_gated_rms_norm_fwd_args* args,
                                  void* stream);

gla_status gla_gated_rms_norm_bwd_size(const gla_gated_rms_norm_shape* shape,
                                       int64_t* workspace_bytes);

typedef struct gla_gated_rms_norm_bwd_args {
  gla_gated_rms_norm_shape shape;
  // Inputs.
  const void *dy, *x, *gate;  // [M, V]
  const void* weight;         // [V]
  const float* rstd;          // [M] from the forward pass
  // Outputs.
  void* dx;        // [M, V] overwritten; may be dy
  void* dgate;     // [M, V] overwritten; must not be dy
  float* dweight;  // [V] accumulated (+=)
  void* workspace;
  int64_t workspace_bytes;
} gla_gated_rms_norm_bwd_args;
gla_status gla_gated_rms_norm_bwd(const gla_gated_rms_norm_bwd_args* args,
                                  void* stream);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // GLA_KERNELS_C_API_GLA_KERNELS_H_
