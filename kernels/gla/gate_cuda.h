// The gate activation on a GPU: what gate.h computes, on device pointers with
// run-time element types. gate.cc and the C interface call it; both have
// checked their arguments. Needs the CUDA runtime and nothing else. Float32
// arithmetic. Queued on `stream`; allocates nothing; deterministic.
#ifndef GLA_KERNELS_GLA_GATE_CUDA_H_
#define GLA_KERNELS_GLA_GATE_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/base/dtype.h"

namespace gla {

struct GateFwdCudaArgs {
  int64_t M, D;
  float normalizer;
  DType dtype;       // of logits: any
  DType bias_dtype;  // any
  DType gate_dtype;  // of g: any
  // Inputs.
  const void* logits;  // [M, D] dtype
  const void* bias;    // [D] bias_dtype; null: zero
  // Output, overwritten; may be logits where the types are the same.
  void* g;  // [M, D] gate_dtype
};
cudaError_t GateFwdCuda(const GateFwdCudaArgs& args, cudaStream_t stream);

struct GateBwdCudaArgs {
  int64_t M, D;
  float normalizer;
  DType dtype;       // of dlogits: any
  DType gate_dtype;  // of g and dg: any
  // Inputs.
  const void* dg;  // [M, D] gate_dtype
  const void* g;   // [M, D] gate_dtype, from the forward pass
  // Outputs.
  void* dlogits;    // [M, D] dtype, overwritten; may be dg where the types are
                    // the same
  float* dbias;     // [D] accumulated (+=); null: not wanted
  void* workspace;  // GateBwdWorkspaceBytes(M, D); null where dbias is
};
int64_t GateBwdWorkspaceBytes(int64_t M, int64_t D);
cudaError_t GateBwdCuda(const GateBwdCudaArgs& args, cudaStream_t stream);

}  // namespace gla

#endif  // GLA_KERNELS_GLA_GATE_CUDA_H_
