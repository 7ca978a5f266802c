#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "glog/logging.h"
#include "kernels/base/vector_math.h"
#include "kernels/matmul/matmul.h"

namespace gla {
namespace {

// Every element of c is the same sum, whichever tile computes it: lane l of one
// vector adds, in order, the products at k = l, l + 8, l + 16, ...; Sum8 adds
// the lanes. Tiles differ only in how many such sums they run side by side.
constexpr int kTileRows = 4;
constexpr int kTileColumns = 3;  // 4 x 3 sums and 4 operands fill 16 registers

// Rows of b that stay in the second-level cache while all rows of a pass over
// them. Meanwhile the next panel is fetched, or memory would wait for the
// arithmetic: twice the speed at M = 4.
constexpr int64_t kPanel = 8 * kTileColumns;

struct Operands {
  const float* a;  // [M, K]
  const float* b;  // [N, K]
  float* c;        // [M, N]
  int64_t M, N, K;
};

// c[m .. m + kRows, n .. n + kColumns]; fetches the rows of b that lie
// `ahead` bytes behind the ones it reads, unless that is 0.
template <int kRows, int kColumns>
inline void ComputeTile(const Operands& x, int64_t m, int64_t n,
                        uintptr_t ahead) {
  const float* a = x.a + m * x.K;
  const float* b = x.b + n * x.K;
  __m256 sums[kRows * kColumns];
#pragma GCC unroll 16
  for (__m256& sum : sums) sum = _mm256_setzero_ps();
  ForEachVector(x.K, [&](int64_t k, auto lanes) {
    __m256 b_k[kColumns];
#pragma GCC unroll 16
    for (int j = 0; j < kColumns; ++j) {
      const float* source = b + j * x.K + k;
      b_k[j] = lanes.Load(source);
      _mm_prefetch(reinterpret_cast<const char*>(
                       reinterpret_cast<uintptr_t>(source) + ahead),
                   _MM_HINT_T1);
    }
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

template <int kRows>
void ComputeRows(const Operands& x, int64_t m, int64_t n_begin, int64_t n_end,
                 uintptr_t ahead) {
  int64_t n = n_begin;
  for (; n + kTileColumns <= n_end; n += kTileColumns) {
    ComputeTile<kRows, kTileColumns>(x, m, n, ahead);
  }
  for (; n < n_end; ++n) ComputeTile<kRows, 1>(x, m, n, ahead);
}

// One panel of b for rows [m_begin, m_end), m_begin < m_end.
void ComputePanel(const Operands& x, int64_t m_begin, int64_t m_end,
                  int64_t n_begin, int64_t n_end, bool fetch_next) {
  uintptr_t ahead = fetch_next ? kPanel * x.K * sizeof(float) : 0;
  for (int64_t m = m_begin; m < m_end; m += kTileRows) {
    switch (m_end - m) {
      case 1:
        ComputeRows<1>(x, m, n_begin, n_end, ahead);
        break;
      case 2:
        ComputeRows<2>(x, m, n_begin, n_end, ahead);
        break;
      case 3:
        ComputeRows<3>(x, m, n_begin, n_end, ahead);
        break;
      default:
        ComputeRows<kTileRows>(x, m, n_begin, n_end, ahead);
    }
    ahead = 0;  // fetched once is enough
  }
}

// c[m_begin .. m_end, n_begin .. n_end].
void ComputeBlock(const Operands& x, int64_t m_begin, int64_t m_end,
                  int64_t n_begin, int64_t n_end) {
  for (int64_t n = n_begin; n < n_end; n += kPanel) {
    const bool fetch_next = n + kPanel < n_end;
    ComputePanel(x, m_begin, m_end, n, std::min(n + kPanel, n_end), fetch_next);
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
