// What gate_test cannot reach: 16-bit element types, no bias.
#include "kernels/gla/gate_cuda.h"

#include "gtest/gtest.h"
#include "kernels/base/cuda_check.h"
#include "kernels/device/test_elements.h"

namespace gla {
namespace {

constexpr int64_t kM = 300;
constexpr float kNormalizer = 16;

// Which type has which element; a bias or none.
struct Types {
  DType dtype, gate_dtype;
  bool with_bias;
};

struct Result {
  OwnedTensor<float, 2> g, dlogits;
  OwnedTensor<float, 1> dbias;
};

// Random values that all types hold exactly.
template <int Rank>
OwnedTensor<float, Rank> Inputs(const std::array<int64_t, Rank>& shape,
                                uint64_t seed, float low, float high) {
  return RoundTo(
      DType::kFloat16,
      RoundTo(DType::kBFloat16, RandomUniform<Rank>(shape, seed, low, high)));
}

Result Compute(const Types& types, int64_t D) {
  TestDevice device(Device::kCuda);
  const auto& [dtype, gate_dtype, with_bias] = types;
  const std::array<int64_t, 2> shape = {kM, D};
  const OwnedTensor<float, 2> poison = PoisonedTensor<2>(shape);
  GateFwdCudaArgs fwd = {};
  fwd.M = kM;
  fwd.D = D;
  fwd.normalizer = kNormalizer;
  fwd.dtype = fwd.bias_dtype = dtype;
  fwd.gate_dtype = gate_dtype;
  fwd.logits = UploadAs(dtype, device, Inputs<2>(shape, 1, -8, 8));
  if (with_bias) {
    fwd.bias = UploadAs(dtype, device, Inputs<1>({D}, 2, -1, 1));
  }
  fwd.g = UploadAs(gate_dtype, device, poison);
  CUDA_CHECK(GateFwdCuda(fwd, /*stream=*/nullptr));

  const auto dbias = device.Upload(OwnedTensor<float, 1>({D}));
  GateBwdCudaArgs bwd = {};
  bwd.M = kM;
  bwd.D = D;
  bwd.normalizer = kNormalizer;
  bwd.dtype = dtype;
  bwd.gate_dtype = gate_dtype;
  bwd.dg = UploadAs(gate_dtype, device, Inputs<2>(shape, 3, -1, 1));
  bwd.g = UploadAs(gate_dtype, device, Inputs<2>(shape, 4, -1, 0));
  bwd.dlogits = UploadAs(dtype, device, poison);
  bwd.dbias = with_bias ? dbias.data() : nullptr;
  bwd.workspace =
      DeviceWorkspace(device.ctx(), "GateBwd", GateBwdWorkspaceBytes(kM, D));
  CUDA_CHECK(GateBwdCuda(bwd, /*stream=*/nullptr));
  return {DownloadAs(gate_dtype, device, fwd.g, shape),
          DownloadAs(dtype, device, bwd.dlogits, shape),
          device.Download(dbias)};
}

// Arithmetic is float32 whatever the types: the result is that of float32
// tensors with the same values, rounded.
TEST(GateCuda, RoundsItsOutputsAndNothingElse) {
  if (!IsPresent(Device::kCuda)) GTEST_SKIP() << "no GPU on this machine";
  const DType types[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
  for (const int64_t D : {37, 104}) {
    for (const bool with_bias : {false, true}) {
      const Result want = Compute({types[0], types[0], with_bias}, D);
      for (const DType dtype : types) {
        for (const DType gate_dtype : types) {
          const Result got = Compute({dtype, gate_dtype, with_bias}, D);
          EXPECT_EQ(got.g, RoundTo(gate_dtype, want.g));
          EXPECT_EQ(got.dlogits, RoundTo(dtype, want.dlogits));
          EXPECT_EQ(got.dbias, want.dbias);
        }
      }
    }
  }
}

}  // namespace
}  // namespace gla
