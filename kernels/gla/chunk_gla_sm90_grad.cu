#include "kernels/gla/chunk_gla_sm90_grad.cuh"

namespace gla::internal {
namespace {

template <typename Gate>
cudaError_t LaunchForShape(const GradArgs& args, cudaStream_t stream) {
  if (args.shape.K == 256) {
    return LaunchGrad<GradConfig<256, 512, Gate>>(args, stream);
  }
  return LaunchGrad<GradConfig<128, 256, Gate>>(args, stream);
}

}  // namespace

cudaError_t SegmentGradients(const GradArgs& args, cudaStream_t stream) {
  return args.shape.gate_dtype == DType::kFloat32
             ? LaunchForShape<float>(args, stream)
             : LaunchForShape<__nv_bfloat16>(args, stream);
}

}  // namespace gla::internal
