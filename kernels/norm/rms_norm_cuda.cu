// RMSNorm on the GPU. Both directions are limited by memory, so what counts is
// that every element moves once, 16 bytes at a time.
//
// ForwardKernel, BackwardKernel: one block per row, 32 to 256 threads; a thread
// owns the same columns in both passes over the row, which makes the aliasing
// that the contract allows safe without a barrier. The second pass reads the
// row again from L1 or L2.
//
// WeightGradKernel: one block per 16 columns, all rows. Each thread adds up
// every kRowLanes-th row of its columns, then the row lanes are added as a tree
// in shared memory. The order depends on the shape alone and no scratch memory
// is needed. It reads dy and sum once more and must run first, because dsum may
// overwrite dy.
#include <cmath>

#include "kernels/base/cuda_check.h"
#include "kernels/device/block_sum.cuh"
#include "kernels/device/packed_floats.cuh"
#include "kernels/norm/rms_norm_device.h"

namespace gla {
namespace {

constexpr int kMaxRowThreads = 256;

constexpr int kWeightGradThreads = 1024;
constexpr int kWeightGradColumns = 16;  // per block

struct ForwardParams {
  const float* x;
  const float* residual;  // or null
  const float* weight;
  float eps;
  float* sum;  // null without a residual
  float* y;
  float* rstd;  // or null
  int64_t D;
};

struct BackwardParams {
  const float* dy;
  const float* sum;
  const float* weight;
  const float* rstd;
  const float* dresidual;  // or null
  float* dsum;
  float* dweight;
  int64_t M, D;
};

template <int kWidth>
__global__ void __launch_bounds__(kMaxRowThreads)
    ForwardKernel(const ForwardParams p) {
  using Floats = PackedFloats<kWidth>;
  const int64_t row = blockIdx.x * p.D;
  const int64_t first = threadIdx.x * kWidth;
  const int64_t step = blockDim.x * kWidth;

  float squares = 0;
  for (int64_t d = first; d < p.D; d += step) {
    Floats s = Floats::Load(p.x + row + d);
    if (p.residual != nullptr) {
      const Floats r = Floats::Load(p.residual + row + d);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) s.lane[i] += r.lane[i];
      s.Store(p.sum + row + d);
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) squares += s.lane[i] * s.lane[i];
  }
  const float rstd = 1 / sqrtf(BlockSum(squares) / p.D + p.eps);
  if (p.rstd != nullptr && threadIdx.x == 0) p.rstd[blockIdx.x] = rstd;

  const float* const normed = p.residual != nullptr ? p.sum : p.x;
  for (int64_t d = first; d < p.D; d += step) {
    const Floats w = Floats::Load(p.weight + d);
    Floats s = Floats::Load(normed + row + d);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) s.lane[i] *= rstd * w.lane[i];
    s.Store(p.y + row + d);
  }
}

// With n = sum * rstd (the normalised row) and h = weight * dy:
//   dsum = rstd * (h - n * mean(h * n)) + dresidual.
template <int kWidth>
__global__ void __launch_bounds__(kMaxRowThreads)
    BackwardKernel(const BackwardParams p) {
  using Floats = PackedFloats<kWidth>;
  const int64_t row = blockIdx.x * p.D;
  const int64_t first = threadIdx.x * kWidth;
  const int64_t step = blockDim.x * kWidth;
  const float rstd = p.rstd[blockIdx.x];

  float products = 0;
  for (int64_t d = first; d < p.D; d += step) {
    const Floats dy = Floats::Load(p.dy + row + d);
    const Floats s = Floats::Load(p.sum + row + d);
    const Floats w = Floats::Load(p.weight + d);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      products += w.lane[i] * dy.lane[i] * (s.lane[i] * rstd);
    }
  }
  const float mean = BlockSum(products) / p.D;

  for (int64_t d = first; d < p.D; d += step) {
    const Floats dy = Floats::Load(p.dy + row + d);
    const Floats s = Floats::Load(p.sum + row + d);
    const Floats w = Floats::Load(p.weight + d);
    Floats ds = {};
    if (p.dresidual != nullptr) ds = Floats::Load(p.dresidual + row + d);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      ds.lane[i] += rstd * (w.lane[i] * dy.lane[i] - s.lane[i] * rstd * mean);
    }
    ds.Store(p.dsum + row + d);
  }
}

// dweight += sum over rows of dy * sum * rstd.
template <int kWidth>
__global__ void __launch_bounds__(kWeightGradThreads)
    WeightGradKernel(const BackwardParams p) {
  using Floats = PackedFloats<kWidth>;
  constexpr int kColumnThreads = kWeightGradColumns / kWidth;
  constexpr int kRowLanes = kWeightGradThreads / kColumnThreads;
  __shared__ Floats partial[kRowLanes][kColumnThreads];
  const int column = threadIdx.x % kColumnThreads;
  const int lane = threadIdx.x / kColumnThreads;
  const int64_t d =
      static_cast<int64_t>(blockIdx.x) * kWeightGradColumns + column * kWidth;

  Floats total = {};
  if (d < p.D) {
#pragma unroll 4
    for (int64_t m = lane; m < p.M; m += kRowLanes) {
      const Floats dy = Floats::Load(p.dy + m * p.D + d);
      const Floats s = Floats::Load(p.sum + m * p.D + d);
      const float rstd = p.rstd[m];
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        total.lane[i] += dy.lane[i] * (s.lane[i] * rstd);
      }
    }
  }
  partial[lane][column] = total;
  for (int half = kRowLanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane < half) {
      const Floats other = partial[lane + half][column];
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        partial[lane][column].lane[i] += other.lane[i];
      }
    }
  }
  if (lane == 0 && d < p.D) {
    Floats dweight = Floats::Load(p.dweight + d);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      dweight.lane[i] += partial[0][column].lane[i];
    }
    dweight.Store(p.dweight + d);
  }
}

// The least power of two of threads that covers a row in one step, within 32
// and kMaxRowThreads.
int RowThreads(int64_t D, int width) {
  int threads = kWarpThreads;
  while (threads < kMaxRowThreads && threads * width < D) threads *= 2;
  return threads;
}

template <int kWidth>
void LaunchForward(const ForwardParams& p, int64_t M, cudaStream_t stream) {
  ForwardKernel<kWidth><<<M, RowThreads(p.D, kWidth), 0, stream>>>(p);
  CUDA_CHECK_LAUNCH();
}

template <int kWidth>
void LaunchBackward(const BackwardParams& p, cudaStream_t stream) {
  const int64_t column_blocks =
      (p.D + kWeightGradColumns - 1) / kWeightGradColumns;
  WeightGradKernel<kWidth><<<column_blocks, kWeightGradThreads, 0, stream>>>(p);
  CUDA_CHECK_LAUNCH();
  BackwardKernel<kWidth><<<p.M, RowThreads(p.D, kWidth), 0, stream>>>(p);
  CUDA_CHECK_LAUNCH();
}

}  // namespace

void RmsNormFwdCuda(const ExecutionContext& ctx, const RmsNormFwdArgs& args) {
  const auto [M, D] = args.x.shape();
  if (M == 0 || D == 0) return;
  const ForwardParams p = {.x = args.x.data(),
                           .residual = args.residual.data(),
                           .weight = args.weight.data(),
                           .eps = args.eps,
                           .sum = args.sum.data(),
                           .y = args.y.data(),
                           .rstd = args.rstd.data(),
                           .D = D};
  const auto stream = static_cast<cudaStream_t>(ctx.stream);
  if (PackedWidth(D, {p.x, p.residual, p.weight, p.sum, p.y}) == 4) {
    LaunchForward<4>(p, M, stream);
  } else {
    LaunchForward<1>(p, M, stream);
  }
}

void RmsNormBwdCuda(const ExecutionContext& ctx, const RmsNormBwdArgs& args) {
  const auto [M, D] = args.sum.shape();
  if (M == 0 || D == 0) return;
  const BackwardParams p = {.dy = args.dy.data(),
                            .sum = args.sum.data(),
                            .weight = args.weight.data(),
                            .rstd = args.rstd.data(),
                            .dresidual = args.dresidual.data(),
                            .dsum = args.dsum.data(),
                            .dweight = args.dweight.data(),
                            .M = M,
                            .D = D};
  const auto stream = static_cast<cudaStream_t>(ctx.stream);
  if (PackedWidth(D, {p.dy, p.sum, p.weight, p.dresidual, p.dsum, p.dweight}) ==
      4) {
    LaunchBackward<4>(p, stream);
  } else {
    LaunchBackward<1>(p, stream);
  }
}

}  // namespace gla
