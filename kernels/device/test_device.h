// A device for the tests of ops that run on several: one test, written once,
// moves its tensors through Upload and Download and is instantiated over
// DevicesInBuild().
#ifndef GLA_KERNELS_DEVICE_TEST_DEVICE_H_
#define GLA_KERNELS_DEVICE_TEST_DEVICE_H_

#include <cstddef>
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
// context's stream is the device's default stream; on a GPU it brings a device
// workspace of 64 MiB, NaN at first.
class TestDevice {
 public:
  // CHECK-fails unless IsPresent(device).
  explicit TestDevice(Device device, int num_threads = 2);
  TestDevice(const TestDevice&) = delete;
  TestDevice& operator=(const TestDevice&) = delete;

  const ExecutionContext& ctx() const { return ctx_; }

  // A copy of `host` on the device; lives as long as this object.
  template <typename T, int Rank>
  TensorView<T, Rank> Upload(const OwnedTensor<T, Rank>& host) {
    auto* const data = static_cast<T*>(Allocate(host.size() * sizeof(T)));
    Copy(data, host.data(), host.size() * sizeof(T));
    return {data, host.shape()};
  }

  // A copy of `tensor` on the host, after all work queued so far.
  template <typename T, int Rank>
  OwnedTensor<T, Rank> Download(TensorView<T, Rank> tensor) {
    OwnedTensor<T, Rank> host(tensor.shape());
    Copy(host.data(), tensor.data(), host.size() * sizeof(T));
    return host;
  }

 private:
  using Memory = std::unique_ptr<std::byte, void (*)(std::byte*)>;

  void* Allocate(int64_t bytes);
  void Copy(void* to, const void* from, int64_t bytes);  // either direction
  void AddWorkspace();

  TestContext host_;
  ExecutionContext ctx_;
  std::vector<Memory> memory_;
};

}  // namespace gla

#endif  // GLA_KERNELS_DEVICE_TEST_DEVICE_H_
