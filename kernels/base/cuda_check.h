// CUDA_CHECK(call): the process dies with the call's text and CUDA's own
// message unless `call` returned cudaSuccess. After a CUDA error the context is
// lost; a process that goes on would compute with whatever memory holds.
//
// CUDA_CHECK_LAUNCH() after a kernel launch finds a bad launch configuration.
// Faults inside the kernel show at a later call, since kernels are
// asynchronous.
//
// For .cu files and for code under GLA_CUDA; includes the CUDA runtime.
#ifndef GLA_KERNELS_BASE_CUDA_CHECK_H_
#define GLA_KERNELS_BASE_CUDA_CHECK_H_

#include <cuda_runtime_api.h>

#include "glog/logging.h"

#define CUDA_CHECK(call)                                              \
  do {                                                                \
    const cudaError_t gla_cuda_error_ = (call);                       \
    CHECK(gla_cuda_error_ == cudaSuccess)                             \
        << #call << ": " << cudaGetErrorName(gla_cuda_error_) << ": " \
        << cudaGetErrorString(gla_cuda_error_);                       \
  } while (false)

#define CUDA_CHECK_LAUNCH() CUDA_CHECK(cudaGetLastError())

#endif  // GLA_KERNELS_BASE_CUDA_CHECK_H_
