#include "kernels/gla/chunk_gla_sm90_scan.cuh"

namespace gla::internal {

cudaError_t ScanForward(const ScanArgs& args, cudaStream_t stream) {
  return LaunchScan</*kReverse=*/false>(args, stream);
}

}  // namespace gla::internal
