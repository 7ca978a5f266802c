// Where and with what an op runs: the first argument of every op.
#ifndef GLA_KERNELS_BASE_EXECUTION_CONTEXT_H_
#define GLA_KERNELS_BASE_EXECUTION_CONTEXT_H_

#include <cstdint>

#include "glog/logging.h"
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
  // Device memory that CUDA ops may use until their work on `stream` is done;
  // the next op on the stream may reuse it. A multiple of 256 as an address.
  void* device_workspace = nullptr;
  int64_t device_workspace_bytes = 0;
};

// The workspace, for an op that needs `bytes` of it. CHECK-fails naming the op
// and the bytes when the context brings fewer.
inline void* DeviceWorkspace(const ExecutionContext& ctx, const char* op,
                             int64_t bytes) {
  CHECK_LE(bytes, ctx.device_workspace_bytes)
      << op << " needs a device workspace of " << bytes << " bytes";
  return ctx.device_workspace;
}

}  // namespace gla

#endif  // GLA_KERNELS_BASE_EXECUTION_CONTEXT_H_
