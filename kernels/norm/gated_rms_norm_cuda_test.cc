// What gated_rms_norm_test cannot reach: 16-bit element types.
#include "kernels/norm/gated_rms_norm_cuda.h"

#include "gtest/gtest.h"
#include "kernels/base/cuda_check.h"
#include "kernels/device/test_elements.h"
#include "kernels/testing/relative_rms.h"

namespace gla {
namespace {

constexpr int64_t kM = 301;

struct Result {
  OwnedTensor<float, 2> y, dx, dgate;
  OwnedTensor<float, 1> dweight;
};

// With inputs rounded to `values`, held as `dtype`.
Result Compute(DType values, DType dtype, int64_t V) {
  TestDevice device(Device::kCuda);
  const GatedRmsNormShape sizes = {
      .M = kM, .V = V, .dtype = dtype, .weight_dtype = dtype};
  const std::array<int64_t, 2> shape = {kM, V};
  const auto input = [&](uint64_t seed) {
    return UploadAs(dtype, device,
                    RoundTo(values, RandomNormal<2>(shape, seed)));
  };
  const auto output = [&] {
    return UploadAs(dtype, device, PoisonedTensor<2>(shape));
  };
  const auto rstd = device.Upload(PoisonedTensor<1>({kM}));
  const auto dweight = device.Upload(OwnedTensor<float, 1>({V}));
  GatedRmsNormFwdCudaArgs fwd = {};
  fwd.shape = sizes;
  fwd.eps = 1e-5f;
  fwd.x = input(1);
  fwd.gate = input(2);
  fwd.weight =
      UploadAs(dtype, device, RoundTo(values, RandomNormal<1>({V}, 3)));
  fwd.y = output();
  fwd.rstd = rstd.data();
  CUDA_CHECK(GatedRmsNormFwdCuda(fwd, /*stream=*/nullptr));

  GatedRmsNormBwdCudaArgs bwd = {};
  bwd.shape = sizes;
  bwd.dy = input(4);
  bwd.x = fwd.x;
  bwd.gate = fwd.gate;
  bwd.weight = fwd.weight;
  bwd.rstd = rstd.data();
  bwd.dx = output();
  bwd.dgate = output();
  bwd.dweight = dweight.data();
  bwd.workspace = DeviceWorkspace(device.ctx(), "GatedRmsNormBwd",
                                  GatedRmsNormBwdWorkspaceBytes(sizes));
  CUDA_CHECK(GatedRmsNormBwdCuda(bwd, /*stream=*/nullptr));
  return {DownloadAs(dtype, device, fwd.y, shape),
          DownloadAs(dtype, device, bwd.dx, shape),
          DownloadAs(dtype, device, bwd.dgate, shape),
          device.Download(dweight)};
}

// Arithmetic is float32 whatever the types: only the rounding of the outputs
// sets the result apart from that of float32 tensors with the same values.
TEST(GatedRmsNormCuda, RoundsItsOutputsAndNothingElse) {
  if (!IsPresent(Device::kCuda)) GTEST_SKIP() << "no GPU on this machine";
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    const double rounding = dtype == DType::kBFloat16 ? 3e-3 : 4e-4;
    for (const int64_t V : {60, 64, 128, 256, 384, 512, 520}) {
      SCOPED_TRACE(V);
      const Result want = Compute(dtype, DType::kFloat32, V);
      const Result got = Compute(dtype, dtype, V);
      EXPECT_TRUE(
          RelativeRmsAtMost(rounding, got.y.values(), want.y.AsDouble()));
      EXPECT_TRUE(
          RelativeRmsAtMost(rounding, got.dx.values(), want.dx.AsDouble()));
      EXPECT_TRUE(RelativeRmsAtMost(rounding, got.dgate.values(),
                                    want.dgate.AsDouble()));
      EXPECT_TRUE(RelativeRmsAtMost(1e-6, got.dweight.values(),
                                    want.dweight.AsDouble()));
    }
  }
}

}  // namespace
}  // namespace gla
