// Kernels that start while the one before them in the stream ends (programmatic
// dependent launches): their blocks start where there is room, and get ready
// until all blocks before have ended.
#ifndef GLA_KERNELS_DEVICE_DEPENDENT_LAUNCH_SM90_CUH_
#define GLA_KERNELS_DEVICE_DEPENDENT_LAUNCH_SM90_CUH_

#include <cuda_runtime.h>

#include <type_traits>

namespace gla {

// The kernel is `dependent`: may start before the one before has ended. Then it
// has to call AwaitKernelBefore.
template <typename... Params>
cudaError_t LaunchKernel(bool dependent, dim3 blocks, int threads,
                         int shared_bytes, cudaStream_t stream,
                         void (*kernel)(Params...),
                         const std::type_identity_t<Params>&... params) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = dependent ? 1 : 0;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, params...);
  if (error != cudaSuccess) cudaGetLastError();  // it is not kept for others
  return error;
}

// Until the kernel before has ended, and what it wrote can be read. By every
// thread that reads it, or writes what that one reads. At once where this
// kernel is not a dependent one.
__device__ inline void AwaitKernelBefore() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// By all blocks: a dependent kernel behind this one may start once each has
// called this or has ended.
__device__ inline void LetNextKernelStart() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace gla

#endif  // GLA_KERNELS_DEVICE_DEPENDENT_LAUNCH_SM90_CUH_
