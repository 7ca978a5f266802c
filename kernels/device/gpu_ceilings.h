// What this GPU can do at best, measured: the yardstick of kernel benchmarks.
#ifndef GLA_KERNELS_DEVICE_GPU_CEILINGS_H_
#define GLA_KERNELS_DEVICE_GPU_CEILINGS_H_

#include "kernels/device/gpu_timer.h"

namespace gla {

struct GpuCeilings {
  double copy_bytes_per_second;    // read + written, 1 GiB each way
  double matmul_flops_per_second;  // cuBLASLt, bfloat16 [8192, 8192]
};

// Takes 2 GiB of device memory while it runs.
GpuCeilings MeasureGpuCeilings(GpuTimer& timer);

}  // namespace gla

#endif  // GLA_KERNELS_DEVICE_GPU_CEILINGS_H_
