#include "kernels/gla/chunk_gla_sm90_scan.cuh"

namespace gla::internal {

cudaError_t ScanReverse(const ScanArgs& args, cudaStream_t stream) {
  return LaunchScan</*kReverse=*/true>(args, stream);
}

}  // namespace gla::internal
