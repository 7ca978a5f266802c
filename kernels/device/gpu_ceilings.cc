#include "kernels/device/gpu_ceilings.h"

#include <cublasLt.h>
#include <cuda_bf16.h>

#include <cstdint>
#include <vector>

#include "glog/logging.h"
#include "kernels/base/philox.h"
#include "kernels/device/gpu_memory.h"

#define CUBLAS_CHECK(call) CHECK_EQ(call, CUBLAS_STATUS_SUCCESS) << #call

namespace gla {
namespace {

constexpr int64_t kCopyBytes = int64_t{1} << 30;
constexpr int64_t kMatmulSize = 8192;
constexpr int64_t kMatmulBytes = kMatmulSize * kMatmulSize * 2;
constexpr int64_t kCublasWorkspace = int64_t{32} << 20;

double CopySeconds(GpuTimer& timer) {
  const GpuMemory from = AllocateGpu(kCopyBytes), to = AllocateGpu(kCopyBytes);
  CUDA_CHECK(cudaMemset(from.get(), 1, kCopyBytes));
  return timer.Eager(1, [&](int) {
    CUDA_CHECK(cudaMemcpyAsync(to.get(), from.get(), kCopyBytes,
                               cudaMemcpyDeviceToDevice, timer.stream()));
  });
}

// Power, and with it the clock, depends on the operands: zeros would flatter.
GpuMemory RandomMatrix() {
  std::vector<__nv_bfloat16> values;
  for (int64_t i = 0; i < (1 << 20) + 7; ++i) {
    values.emplace_back(PhiloxNormal(/*seed=*/1, /*stream=*/0, i));
  }
  GpuMemory matrix = AllocateGpu(kMatmulBytes);
  FillGpu<__nv_bfloat16>(matrix.get(), kMatmulBytes, values);
  return matrix;
}

// D = A^T B, square, with cuBLASLt's own choice of an algorithm.
class Matmul {
 public:
  Matmul() : a_(RandomMatrix()), b_(RandomMatrix()) {
    CUBLAS_CHECK(cublasLtCreate(&handle_));
    CUBLAS_CHECK(
        cublasLtMatmulDescCreate(&desc_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transposed = CUBLAS_OP_T;
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(
        desc_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)));
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&layout_, CUDA_R_16BF, kMatmulSize,
                                            kMatmulSize, kMatmulSize));
    ChooseAlgorithm();
  }
  ~Matmul() {
    CUBLAS_CHECK(cublasLtMatrixLayoutDestroy(layout_));
    CUBLAS_CHECK(cublasLtMatmulDescDestroy(desc_));
    CUBLAS_CHECK(cublasLtDestroy(handle_));
  }

  void operator()(cudaStream_t stream) {
    const float alpha = 1, beta = 0;
    CUBLAS_CHECK(cublasLtMatmul(handle_, desc_, &alpha, a_.get(), layout_,
                                b_.get(), layout_, &beta, d_.get(), layout_,
                                d_.get(), layout_, &algorithm_,
                                workspace_.get(), kCublasWorkspace, stream));
  }

 private:
  void ChooseAlgorithm() {
    cublasLtMatmulPreference_t preference;
    CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    const size_t bytes = kCublasWorkspace;
    CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes,
        sizeof(bytes)));
    cublasLtMatmulHeuristicResult_t result;
    int found = 0;
    CUBLAS_CHECK(cublasLtMatmulAlgoGetHeuristic(
        handle_, desc_, layout_, layout_, layout_, layout_, preference, 1,
        &result, &found));
    CHECK_EQ(found, 1) << "cuBLASLt has no algorithm for the matmul ceiling";
    algorithm_ = result.algo;
    CUBLAS_CHECK(cublasLtMatmulPreferenceDestroy(preference));
  }

  GpuMemory a_, b_;
  GpuMemory d_ = AllocateGpu(kMatmulBytes);
  GpuMemory workspace_ = AllocateGpu(kCublasWorkspace);
  cublasLtHandle_t handle_;
  cublasLtMatmulDesc_t desc_;
  cublasLtMatrixLayout_t layout_;
  cublasLtMatmulAlgo_t algorithm_;
};

}  // namespace

GpuCeilings MeasureGpuCeilings(GpuTimer& timer) {
  const double copy_seconds = CopySeconds(timer);
  Matmul matmul;
  const double matmul_seconds =
      timer.Eager(1, [&](int) { matmul(timer.stream()); });
  constexpr double kFlops = 2.0 * kMatmulSize * kMatmulSize * kMatmulSize;
  return {.copy_bytes_per_second = 2 * kCopyBytes / copy_seconds,
          .matmul_flops_per_second = kFlops / matmul_seconds};
}

}  // namespace gla
