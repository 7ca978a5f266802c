// That the product's GPU libraries are linked and answer: their versions at run
// time are those of the headers.
#include <cublasLt.h>
#include <nccl.h>

#include <iostream>

#include "gtest/gtest.h"
#include "kernels/base/cuda_check.h"

namespace gla {
namespace {

TEST(CudaLibraries, CublasLtIsTheVersionOfItsHeader) {
  const size_t version = cublasLtGetVersion();
  std::cout << "cuBLASLt " << version << "\n";
  EXPECT_EQ(version / 10000, CUBLAS_VERSION / 10000);
}

TEST(CudaLibraries, NcclIsTheMajorVersionOfItsHeader) {
  int version = 0;
  ASSERT_EQ(ncclGetVersion(&version), ncclSuccess);
  std::cout << "NCCL " << version << "\n";
  EXPECT_EQ(version / 10000, NCCL_VERSION_CODE / 10000);
}

TEST(CudaLibraries, RuntimeIsTheVersionOfItsHeader) {
  int version = 0;
  CUDA_CHECK(cudaRuntimeGetVersion(&version));
  std::cout << "CUDA runtime " << version << "\n";
  EXPECT_EQ(version, CUDART_VERSION);
}

}  // namespace
}  // namespace gla
