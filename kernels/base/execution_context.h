// Where and with what an op runs: the first argument of every op.
#ifndef GLA_KERNELS_BASE_EXECUTION_CONTEXT_H_
#define GLA_KERNELS_BASE_EXECUTION_CONTEXT_H_

#include "kernels/base/arena.h"
#include "kernels/base/thread_pool.h"

namespace gla {

enum class Device { kCpu, kCuda };

// A bundle of pointers, passed by const reference; it owns nothing. All tensors
// of a call live on `device`. CPU ops return when their result is there. CUDA
// ops are asynchronous on `stream`.
struct ExecutionContext {
  Device device = Device::kCpu;
  ThreadPool* threads = nullptr;  // CPU work; never null
  Arena* scratch = nullptr;  // host scratch memory; ops rewind what they take
  void* stream = nullptr;    // cudaStream_t when device is kCuda
};

}  // namespace gla

#endif  // GLA_KERNELS_BASE_EXECUTION_CONTEXT_H_
