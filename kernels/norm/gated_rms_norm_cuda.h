// The gated RMSNorm on a GPU: what gated_rms_norm.h computes, on device
// pointers with run-time element types. gated_rms_norm.cc and the C interface
// call it; both have checked their arguments. Needs the CUDA runtime and
// nothing else. Float32 arithmetic. Queued on `stream`; allocates nothing;
// deterministic; a row's bits do not depend on the other rows.
#ifndef GLA_KERNELS_NORM_GATED_RMS_NORM_CUDA_H_
#define GLA_KERNELS_NORM_GATED_RMS_NORM_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/base/dtype.h"

namespace gla {

struct GatedRmsNormShape {
  int64_t M, V;        // tokens times heads, head size
  DType dtype;         // of x, gate, y and their gradients: any
  DType weight_dtype;  // any
};

struct GatedRmsNormFwdCudaArgs {
  GatedRmsNormShape shape;
  float eps;
  // Inputs.
  const void* x;       // [M, V] dtype
  const void* gate;    // [M, V] dtype
  const void* weight;  // [V] weight_dtype
  // Outputs, overwritten.
  void* y;      // [M, V] dtype; may alias x or gate
  float* rstd;  // [M]; null: not wanted
};
cudaError_t GatedRmsNormFwdCuda(const GatedRmsNormFwdCudaArgs& args,
                                cudaStream_t stream);

struct GatedRmsNormBwdCudaArgs {
  GatedRmsNormShape shape;
  // Inputs.
  const void* dy;      // [M, V] dtype
  const void* x;       // [M, V] dtype
  const void* gate;    // [M, V] dtype
  const void* weight;  // [V] weight_dtype
  const float* rstd;   // [M] from the forward pass
  // Outputs.
  void* dx;         // [M, V] dtype, overwritten; may alias dy
  void* dgate;      // [M, V] dtype, overwritten; must not alias dy
  float* dweight;   // [V] accumulated (+=)
  void* workspace;  // GatedRmsNormBwdWorkspaceBytes(shape)
};
int64_t GatedRmsNormBwdWorkspaceBytes(const GatedRmsNormShape& shape);
cudaError_t GatedRmsNormBwdCuda(const GatedRmsNormBwdCudaArgs& args,
                                cudaStream_t stream);

}  // namespace gla

#endif  // GLA_KERNELS_NORM_GATED_RMS_NORM_CUDA_H_
