#include <cblas.h>

#include <algorithm>
#include <limits>

#include "glog/logging.h"
#include "kernels/matmul/matmul.h"

namespace gla {
namespace {

// One product as OpenBLAS sees it: c [M, N] = op(a) [M, K] * op(b) [K, N].
struct Product {
  CBLAS_TRANSPOSE transpose_a, transpose_b;
  int64_t M, N, K;
  const float* a;
  const float* b;
  float* c;
  float beta;
};

// Computes the block of c that begins at (m, n), on this thread.
void ComputeBlock(const Product& p, int64_t m, int64_t n, int64_t rows,
                  int64_t columns) {
  const bool plain_a = p.transpose_a == CblasNoTrans;
  const bool plain_b = p.transpose_b == CblasNoTrans;
  const int64_t lda = plain_a ? p.K : p.M;
  const int64_t ldb = plain_b ? p.N : p.K;
  cblas_sgemm(CblasRowMajor, p.transpose_a, p.transpose_b, rows, columns, p.K,
              1.0f, p.a + (plain_a ? m * lda : m), std::max<int64_t>(lda, 1),
              p.b + (plain_b ? n : n * ldb), std::max<int64_t>(ldb, 1), p.beta,
              p.c + m * p.N + n, p.N);
}

// How c is cut into blocks, one task each.
struct Grid {
  int64_t block_rows, block_columns;
};

// Every task packs its rows of a and its columns of b before it multiplies.
// Packing an element costs about as much as kPackCost multiply-adds, so among
// the grids with a block per thread the best has large, nearly square blocks.
Grid ChooseGrid(int64_t M, int64_t N, int threads) {
  constexpr int64_t kEdge = 32;  // block sides are multiples of this
  constexpr int64_t kPackCost = 16;
  auto side = [](int64_t n, int64_t parts) {
    return ((n + parts - 1) / parts + kEdge - 1) / kEdge * kEdge;
  };
  Grid best = {M, N};
  int64_t best_cost = std::numeric_limits<int64_t>::max();
  for (int parts = 1; parts <= threads; ++parts) {
    const int64_t rows = side(M, parts);
    const int64_t columns = side(N, threads / parts);
    const int64_t cost = rows * columns + kPackCost * (rows + columns);
    if (cost < best_cost) {
      best = {rows, columns};
      best_cost = cost;
    }
  }
  return best;
}

void Multiply(const ExecutionContext& ctx, const Product& p) {
  CHECK(ctx.device == Device::kCpu) << "matmul: built for the CPU only";
  CHECK_LE(std::max({p.M, p.N, p.K}), std::numeric_limits<int>::max());
  if (p.M == 0 || p.N == 0) return;
  // The split over threads is ours; OpenBLAS runs each block on its caller.
  static const bool single_threaded = [] {
    openblas_set_num_threads(1);
    return true;
  }();
  CHECK(single_threaded);

  constexpr int64_t kWorthSplitting = 1 << 19;  // multiply-adds, about 10 us
  const bool split = p.M * p.N * p.K >= kWorthSplitting;
  const Grid grid =
      ChooseGrid(p.M, p.N, split ? ctx.threads->num_threads() : 1);
  const int64_t down = (p.M + grid.block_rows - 1) / grid.block_rows;
  const int64_t across = (p.N + grid.block_columns - 1) / grid.block_columns;
  ctx.threads->ParallelFor(down * across, [&](int64_t task, int /*worker*/) {
    const int64_t m = task / across * grid.block_rows;
    const int64_t n = task % across * grid.block_columns;
    ComputeBlock(p, m, n, std::min(grid.block_rows, p.M - m),
                 std::min(grid.block_columns, p.N - n));
  });
}

float Beta(Accumulate accumulate) {
  return accumulate == Accumulate::kYes ? 1.0f : 0.0f;
}

}  // namespace

void MatmulNT(const ExecutionContext& ctx, TensorView<const float, 2> a,
              TensorView<const float, 2> b, TensorView<float, 2> c,
              Accumulate accumulate) {
  const int64_t M = a.dim(0), N = b.dim(0), K = a.dim(1);
  CheckShape("b", b, {N, K});
  CheckShape("c", c, {M, N});
  Multiply(ctx, {CblasNoTrans, CblasTrans, M, N, K, a.data(), b.data(),
                 c.data(), Beta(accumulate)});
}

void MatmulNN(const ExecutionContext& ctx, TensorView<const float, 2> a,
              TensorView<const float, 2> b, TensorView<float, 2> c,
              Accumulate accumulate) {
  const int64_t M = a.dim(0), N = b.dim(1), K = a.dim(1);
  CheckShape("b", b, {K, N});
  CheckShape("c", c, {M, N});
  Multiply(ctx, {CblasNoTrans, CblasNoTrans, M, N, K, a.data(), b.data(),
                 c.data(), Beta(accumulate)});
}

void MatmulTN(const ExecutionContext& ctx, TensorView<const float, 2> a,
              TensorView<const float, 2> b, TensorView<float, 2> c,
              Accumulate accumulate) {
  const int64_t M = a.dim(1), N = b.dim(1), K = a.dim(0);
  CheckShape("b", b, {K, N});
  CheckShape("c", c, {M, N});
  Multiply(ctx, {CblasTrans, CblasNoTrans, M, N, K, a.data(), b.data(),
                 c.data(), Beta(accumulate)});
}

}  // namespace gla
