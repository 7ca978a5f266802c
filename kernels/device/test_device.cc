#include "kernels/device/test_device.h"

#include <cstring>

#include "glog/logging.h"
#ifdef GLA_CUDA
#include "kernels/base/cuda_check.h"
#endif

namespace gla {

std::vector<Device> DevicesInBuild() {
#ifdef GLA_CUDA
  return {Device::kCpu, Device::kCuda};
#else
  return {Device::kCpu};
#endif
}

bool IsPresent(Device device) {
#ifdef GLA_CUDA
  int count = 0;
  if (device == Device::kCuda) {
    return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
  }
#endif
  return device == Device::kCpu;
}

std::string DeviceName(const testing::TestParamInfo<Device>& info) {
  return info.param == Device::kCpu ? "Cpu" : "Cuda";
}

TestDevice::TestDevice(Device device, int num_threads) : host_(num_threads) {
  CHECK(IsPresent(device));
  ctx_ = host_.ctx();
  ctx_.device = device;
  AddWorkspace();
}

void* TestDevice::Allocate(int64_t bytes) {
#ifdef GLA_CUDA
  if (ctx_.device == Device::kCuda) {
    void* data = nullptr;
    CUDA_CHECK(cudaMalloc(&data, bytes));
    memory_.emplace_back(static_cast<std::byte*>(data),
                         [](std::byte* p) { CUDA_CHECK(cudaFree(p)); });
    return memory_.back().get();
  }
#endif
  memory_.emplace_back(new std::byte[bytes], [](std::byte* p) { delete[] p; });
  return memory_.back().get();
}

void TestDevice::Copy(void* to, const void* from, int64_t bytes) {
#ifdef GLA_CUDA
  if (ctx_.device == Device::kCuda) {
    // Waits for the work on the default stream.
    CUDA_CHECK(cudaMemcpy(to, from, bytes, cudaMemcpyDefault));
    return;
  }
#endif
  std::memcpy(to, from, bytes);
}

void TestDevice::AddWorkspace() {
#ifdef GLA_CUDA
  if (ctx_.device == Device::kCuda) {
    constexpr int64_t kBytes = int64_t{64} << 20;
    ctx_.device_workspace = Allocate(kBytes);
    ctx_.device_workspace_bytes = kBytes;
    CUDA_CHECK(cudaMemset(ctx_.device_workspace, 0xff, kBytes));
  }
#endif
}

}  // namespace gla
