// Times work on a GPU with CUDA events, for benchmarks.
#ifndef GLA_KERNELS_DEVICE_GPU_TIMER_H_
#define GLA_KERNELS_DEVICE_GPU_TIMER_H_

#include <cuda_runtime_api.h>

#include "absl/functional/function_ref.h"

namespace gla {

// Owns a stream, on which all timed work must be queued.
class GpuTimer {
 public:
  GpuTimer();
  ~GpuTimer();
  GpuTimer(const GpuTimer&) = delete;
  GpuTimer& operator=(const GpuTimer&) = delete;

  cudaStream_t stream() const { return stream_; }

  // `call(i)` queues the i-th of `variants` calls, which do the same work on
  // different memory: together they should exceed the L2 cache. Both return the
  // median seconds of one call over many rounds of all of them, after a second
  // of rest and a warm-up round. Call Eager first: a kernel's first launch may
  // not be captured.
  //
  // Launched one after the other: where the host is slower, its time.
  double Eager(int variants, absl::FunctionRef<void(int)> call);
  // All variants in one CUDA graph, so that launching costs the host nothing.
  double Graph(int variants, absl::FunctionRef<void(int)> call);

 private:
  double Seconds(absl::FunctionRef<void()> queue);
  double MedianSeconds(absl::FunctionRef<void()> queue);

  cudaStream_t stream_;
  cudaEvent_t start_, stop_;
};

}  // namespace gla

#endif  // GLA_KERNELS_DEVICE_GPU_TIMER_H_
