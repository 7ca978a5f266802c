// Internal to chunk_gla: float32 matrix products of one thread, row-major.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_GEMM_H_
#define GLA_KERNELS_GLA_CHUNK_GLA_GEMM_H_

#include <cblas.h>

#include <cstdint>

namespace gla::internal {

// A matrix in memory: its first element and the distance between rows.
struct Rows {
  const float* data;
  int64_t stride;
};

// C [M, N] = beta * C + op(A) op(B), inner size `inner`. The suffix says which
// operand is stored transposed: NT is A B^T. beta = 0 never reads C.
inline void Gemm(CBLAS_TRANSPOSE trans_a, CBLAS_TRANSPOSE trans_b, int64_t M,
                 int64_t N, int64_t inner, Rows a, Rows b, float beta, float* c,
                 int64_t c_stride) {
  cblas_sgemm(CblasRowMajor, trans_a, trans_b, M, N, inner, 1, a.data, a.stride,
              b.data, b.stride, beta, c, c_stride);
}
inline void GemmNN(int64_t M, int64_t N, int64_t inner, Rows a, Rows b,
                   float beta, float* c, int64_t c_stride) {
  Gemm(CblasNoTrans, CblasNoTrans, M, N, inner, a, b, beta, c, c_stride);
}
inline void GemmNT(int64_t M, int64_t N, int64_t inner, Rows a, Rows b,
                   float beta, float* c, int64_t c_stride) {
  Gemm(CblasNoTrans, CblasTrans, M, N, inner, a, b, beta, c, c_stride);
}
inline void GemmTN(int64_t M, int64_t N, int64_t inner, Rows a, Rows b,
                   float beta, float* c, int64_t c_stride) {
  Gemm(CblasTrans, CblasNoTrans, M, N, inner, a, b, beta, c, c_stride);
}

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_GEMM_H_
