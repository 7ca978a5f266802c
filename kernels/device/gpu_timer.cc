#include "kernels/device/gpu_timer.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

#include "kernels/base/cuda_check.h"

namespace gla {
namespace {

constexpr double kMinSeconds = 0.1;  // of measured work
// Before it, so that what ran before leaves no trace in the GPU's clock: at its
// power limit that falls, for as long as the average is over the limit.
constexpr std::chrono::milliseconds kRest(1000);
constexpr int kMinRuns = 5;
constexpr int kMaxRuns = 500;

}  // namespace

GpuTimer::GpuTimer() {
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  CUDA_CHECK(cudaEventCreate(&start_));
  CUDA_CHECK(cudaEventCreate(&stop_));
}

GpuTimer::~GpuTimer() {
  CUDA_CHECK(cudaEventDestroy(stop_));
  CUDA_CHECK(cudaEventDestroy(start_));
  CUDA_CHECK(cudaStreamDestroy(stream_));
}

double GpuTimer::Seconds(absl::FunctionRef<void()> queue) {
  CUDA_CHECK(cudaEventRecord(start_, stream_));
  queue();
  CUDA_CHECK(cudaEventRecord(stop_, stream_));
  CUDA_CHECK(cudaEventSynchronize(stop_));
  float milliseconds = 0;
  CUDA_CHECK(cudaEventElapsedTime(&milliseconds, start_, stop_));
  return 1e-3 * milliseconds;
}

double GpuTimer::MedianSeconds(absl::FunctionRef<void()> queue) {
  std::this_thread::sleep_for(kRest);
  Seconds(queue);
  const int runs = std::clamp(static_cast<int>(kMinSeconds / Seconds(queue)),
                              kMinRuns, kMaxRuns);
  std::vector<double> seconds;
  for (int i = 0; i < runs; ++i) seconds.push_back(Seconds(queue));
  std::nth_element(seconds.begin(), seconds.begin() + runs / 2, seconds.end());
  return seconds[runs / 2];
}

double GpuTimer::Eager(int variants, absl::FunctionRef<void(int)> call) {
  const auto all = [&] {
    for (int i = 0; i < variants; ++i) call(i);
  };
  return MedianSeconds(all) / variants;
}

double GpuTimer::Graph(int variants, absl::FunctionRef<void(int)> call) {
  cudaGraph_t graph;
  CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < variants; ++i) call(i);
  CUDA_CHECK(cudaStreamEndCapture(stream_, &graph));
  cudaGraphExec_t replay;
  CUDA_CHECK(cudaGraphInstantiate(&replay, graph, 0));
  const double seconds =
      MedianSeconds([&] { CUDA_CHECK(cudaGraphLaunch(replay, stream_)); });
  CUDA_CHECK(cudaGraphExecDestroy(replay));
  CUDA_CHECK(cudaGraphDestroy(graph));
  return seconds / variants;
}

}  // namespace gla
