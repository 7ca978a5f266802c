#include <immintrin.h>

#include <algorithm>

#include "kernels/base/vector_math.h"
#include "kernels/matmul/matmul.h"

namespace gla {
namespace {

// Every element of c is the same sum, whichever tile computes it: lane l of one
// vector adds, in order, the products at k = l, l + 8, l + 16, ...; Sum8 adds
// the lanes. Tiles differ only in how many such sums they run side by side.
constexpr int kTileRows = 4;
constexpr int kTileColumns = 3;  // 4 x 3 sums and 4 operands fill 16 registers

struct Operands {
  const float* a;  // [M, K]
  const float* b;  // [N, K]
  float* c;        // [M, N]
  int64_t M, N, K;
};

// c[m .. m + kRows, n .. n + kColumns].
template <int kRows, int kColumns>
inline void ComputeTile(const Operands& x, int64_t m, int64_t n) {
  const float* a = x.a + m * x.K;
  const float* b = x.b + n * x.K;
  __m256 sums[kRows * kColumns];
#pragma GCC unroll 16
  for (__m256& sum : sums) sum = _mm256_setzero_ps();
  ForEachVector(x.K, [&](int64_t k, auto lanes) {
    __m256 b_k[kColumns];
#pragma GCC unroll 16
    for (int j = 0; j < kColumns; ++j) b_k[j] = lanes.Load(b + j * x.K + k);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const __m256 a_k = lanes.Load(a + i * x.K + k);
#pragma GCC unroll 16
      for (int j = 0; j < kColumns; ++j) {
        __m256& sum = sums[i * kColumns + j];
        sum = _mm256_fmadd_ps(a_k, b_k[j], sum);
      }
    }
  });
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kColumns; ++j) {
      x.c[(m + i) * x.N + n + j] = Sum8(sums[i * kColumns + j]);
    }
  }
}

template <int kRows, int kColumns>
void ComputeRows(const Operands& x, int64_t m, int64_t n_begin, int64_t n_end) {
  int64_t n = n_begin;
  for (; n + kColumns <= n_end; n += kColumns) {
    ComputeTile<kRows, kColumns>(x, m, n);
  }
  for (; n < n_end; ++n) ComputeTile<kRows, 1>(x, m, n);
}

template <int kColumns>
void ComputeRows(const Operands& x, int64_t m, int64_t rows, int64_t n_begin,
                 int64_t n_end) {
  switch (rows) {
    case 1:
      return ComputeRows<1, kColumns>(x, m, n_begin, n_end);
    case 2:
      return ComputeRows<2, kColumns>(x, m, n_begin, n_end);
    case 3:
      return ComputeRows<3, kColumns>(x, m, n_begin, n_end);
    default:
      return ComputeRows<kTileRows, kColumns>(x, m, n_begin, n_end);
  }
}

// c[m_begin .. m_end, n_begin .. n_end]. A panel of b comes from memory once
// and from the cache for every further group of rows.
void ComputeBlock(const Operands& x, int64_t m_begin, int64_t m_end,
                  int64_t n_begin, int64_t n_end) {
  if (m_end - m_begin <= kTileRows) {
    // One row of b at a time: a single stream is what memory serves best.
    return ComputeRows<1>(x, m_begin, m_end - m_begin, n_begin, n_end);
  }
  constexpr int64_t kPanel = 16 * kTileColumns;
  for (int64_t n = n_begin; n < n_end; n += kPanel) {
    for (int64_t m = m_begin; m < m_end; m += kTileRows) {
      ComputeRows<kTileColumns>(x, m, std::min<int64_t>(kTileRows, m_end - m),
                                n, std::min(n + kPanel, n_end));
    }
  }
}

// Rows or columns of c worth a thread of their own, in whole tiles.
int64_t Grain(int64_t tile, int64_t work_per_item) {
  constexpr int64_t kMinWork = 1 << 16;  // multiply-adds, a few microseconds
  const int64_t items = kMinWork / std::max<int64_t>(work_per_item, 1) + 1;
  return (items + tile - 1) / tile * tile;
}

}  // namespace

void RowInvariantMatmulNT(const ExecutionContext& ctx,
                          TensorView<const float, 2> a,
                          TensorView<const float, 2> b,
                          TensorView<float, 2> c) {
  CHECK(ctx.device == Device::kCpu) << "matmul: built for the CPU only";
  const int64_t M = a.dim(0), N = b.dim(0), K = a.dim(1);
  CheckShape("b", b, {N, K});
  CheckShape("c", c, {M, N});
  if (M == 0) return;
  const Operands x = {a.data(), b.data(), c.data(), M, N, K};
  if (N >= M) {
    ctx.threads->ParallelRanges(N, Grain(kTileColumns, M * K),
                                [&](int64_t begin, int64_t end) {
                                  ComputeBlock(x, /*m_begin=*/0, M, begin, end);
                                });
  } else {
    ctx.threads->ParallelRanges(M, Grain(kTileRows, N * K),
                                [&](int64_t begin, int64_t end) {
                                  ComputeBlock(x, begin, end, /*n_begin=*/0, N);
                                });
  }
}

}  // namespace gla
