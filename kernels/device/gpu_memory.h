// Device memory of benchmarks.
#ifndef GLA_KERNELS_DEVICE_GPU_MEMORY_H_
#define GLA_KERNELS_DEVICE_GPU_MEMORY_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>

#include "kernels/base/cuda_check.h"

namespace gla {

struct CudaFree {
  void operator()(void* p) const { CUDA_CHECK(cudaFree(p)); }
};
using GpuMemory = std::unique_ptr<void, CudaFree>;

inline GpuMemory AllocateGpu(int64_t bytes) {
  void* data = nullptr;
  CUDA_CHECK(cudaMalloc(&data, bytes));
  return GpuMemory(data);
}

// Fills `bytes` at `to` with copies of `pattern`, one after the other.
template <typename T>
void FillGpu(void* to, int64_t bytes, std::span<const T> pattern) {
  char* const begin = static_cast<char*>(to);
  int64_t done = std::min<int64_t>(bytes, pattern.size_bytes());
  CUDA_CHECK(cudaMemcpy(begin, pattern.data(), done, cudaMemcpyHostToDevice));
  while (done < bytes) {
    const int64_t more = std::min(done, bytes - done);
    CUDA_CHECK(cudaMemcpy(begin + done, begin, more, cudaMemcpyDeviceToDevice));
    done += more;
  }
}

}  // namespace gla

#endif  // GLA_KERNELS_DEVICE_GPU_MEMORY_H_
