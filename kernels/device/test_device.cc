#include "kernels/device/test_device.h"

#include <algorithm>

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
}

float* TestDevice::Allocate(int64_t n) {
#ifdef GLA_CUDA
  if (ctx_.device == Device::kCuda) {
    void* data = nullptr;
    CUDA_CHECK(cudaMalloc(&data, n * sizeof(float)));
    memory_.emplace_back(static_cast<float*>(data),
                         [](float* p) { CUDA_CHECK(cudaFree(p)); });
    return memory_.back().get();
  }
#endif
  memory_.emplace_back(new float[n], [](float* p) { delete[] p; });
  return memory_.back().get();
}

void TestDevice::Copy(float* to, const float* from, int64_t n) {
#ifdef GLA_CUDA
  if (ctx_.device == Device::kCuda) {
    // Waits for the work on the default stream.
    CUDA_CHECK(cudaMemcpy(to, from, n * sizeof(float), cudaMemcpyDefault));
    return;
  }
#endif
  std::copy_n(from, n, to);
}

}  // namespace gla
