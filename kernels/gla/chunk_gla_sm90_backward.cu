#include "kernels/gla/chunk_gla_sm90_backward.cuh"

namespace gla::internal {
namespace {

template <typename Gate>
cudaError_t LaunchForShape(const ScanArgs& scan, const GradArgs& grad,
                           cudaStream_t stream) {
  if (grad.shape.K == 128) {
    return LaunchBackward<BackwardConfig<128, Gate>>(scan, grad, stream);
  }
  return LaunchBackward<BackwardConfig<64, Gate>>(scan, grad, stream);
}

}  // namespace

cudaError_t ScanBackward(const ScanArgs& scan, const GradArgs& grad,
                         cudaStream_t stream) {
  return grad.shape.gate_dtype == DType::kFloat32
             ? LaunchForShape<float>(scan, grad, stream)
             : LaunchForShape<__nv_bfloat16>(scan, grad, stream);
}

}  // namespace gla::internal
