// A device for the tests of ops that run on several: one test, written once,
// moves its tensors through Upload and Download and is instantiated over
// DevicesInBuild().
#ifndef GLA_KERNELS_DEVICE_TEST_DEVICE_H_
#define GLA_KERNELS_DEVICE_TEST_DEVICE_H_

#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/execution_context.h"
#include "kernels/base/tensor_view.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/test_context.h"

namespace gla {

// The CPU, and the GPU in builds with --config=cuda, present or not.
std::vector<Device> DevicesInBuild();

// Whether this machine has the device.
bool IsPresent(Device device);

// "Cpu", "Cuda": the name of a test instance.
std::string DeviceName(const testing::TestParamInfo<Device>& info);

// An execution context on a device, and the memory of one test there. The
// context's stream is the device's default stream.
class TestDevice {
 public:
  // CHECK-fails unless IsPresent(device).
  explicit TestDevice(Device device, int num_threads = 2);
  TestDevice(const TestDevice&) = delete;
  TestDevice& operator=(const TestDevice&) = delete;

  const ExecutionContext& ctx() const { return ctx_; }

  // A copy of `host` on the device; lives as long as this object.
  template <int Rank>
  TensorView<float, Rank> Upload(const OwnedTensor<float, Rank>& host) {
    float* const data = Allocate(host.size());
    Copy(data, host.data(), host.size());
    return {data, host.shape()};
  }

  // A copy of `tensor` on the host, after all work queued so far.
  template <int Rank>
  OwnedTensor<float, Rank> Download(TensorView<float, Rank> tensor) {
    OwnedTensor<float, Rank> host(tensor.shape());
    Copy(host.data(), tensor.data(), host.size());
    return host;
  }

 private:
  using Memory = std::unique_ptr<float, void (*)(float*)>;

  float* Allocate(int64_t n);
  void Copy(float* to, const float* from, int64_t n);  // either direction

  TestContext host_;
  ExecutionContext ctx_;
  std::vector<Memory> memory_;
};

}  // namespace gla

#endif  // GLA_KERNELS_DEVICE_TEST_DEVICE_H_
