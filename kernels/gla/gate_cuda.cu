// The gate activation on the GPU: limited by memory, so every element moves
// once, 16 bytes at a time.
//
// Forward: one thread per kPacked neighbouring elements. Backward: a block owns
// 32 kPacked columns and every RowBlocks-th group of kRowLanes rows; a thread
// keeps the sums of its columns in registers, the row lanes are added as a tree
// in shared memory, and the block's sums go to the workspace, where
// AddPartialSums adds them to dbias. All orders depend on the shape alone.
#include <algorithm>
#include <cmath>

#include "kernels/base/ceil_div.h"
#include "kernels/device/elements.cuh"
#include "kernels/device/partial_sums.cuh"
#include "kernels/gla/gate_cuda.h"

namespace gla {
namespace {

constexpr int kPacked = 8;  // elements of a thread where rows allow it
constexpr int kForwardThreads = 256;

constexpr int kColumnLanes = 32;
constexpr int kRowLanes = 8;
constexpr int kBackwardThreads = kColumnLanes * kRowLanes;

// Natural log; exact at the ends, no cancellation.
__device__ float LogSigmoid(float x) {
  return fminf(x, 0) - log1pf(expf(-fabsf(x)));
}

template <int kWidth>
__device__ Lanes<kWidth> LoadBias(const void* bias, DType dtype, int64_t d) {
  Lanes<kWidth> x = {};
  if (bias == nullptr) return x;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    x.lane[i] = BitsToFloat(LoadBits(bias, dtype, d + i), dtype);
  }
  return x;
}

template <int kWidth, typename T, typename GateT>
__global__ void __launch_bounds__(kForwardThreads)
    ForwardKernel(const GateFwdCudaArgs p) {
  const int64_t first =
      (static_cast<int64_t>(blockIdx.x) * kForwardThreads + threadIdx.x) *
      kWidth;
  if (first >= p.M * p.D) return;
  Lanes<kWidth> x = LoadLanes<kWidth>(static_cast<const T*>(p.logits) + first);
  const Lanes<kWidth> bias =
      LoadBias<kWidth>(p.bias, p.bias_dtype, first % p.D);
  const float scale = 1 / p.normalizer;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    x.lane[i] = LogSigmoid(x.lane[i] + bias.lane[i]) * scale;
  }
  StoreLanes(x, static_cast<GateT*>(p.g) + first);
}

// Adds the columns' sums of all row lanes and leaves them in the workspace.
template <int kWidth>
__device__ void WritePartialSums(const Lanes<kWidth>& sum, int64_t d, int64_t D,
                                 float* partials) {
  alignas(16) __shared__ float lanes[kRowLanes][kColumnLanes * kWidth];
  const int column = threadIdx.x % kColumnLanes * kWidth;
  const int lane = threadIdx.x / kColumnLanes;
  StoreLanes(sum, &lanes[lane][column]);
  for (int half = kRowLanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane >= half) continue;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      lanes[lane][column + i] += lanes[lane + half][column + i];
    }
  }
  if (lane > 0 || d >= D) return;
  StoreLanes(LoadLanes<kWidth>(&lanes[0][column]),
             partials + blockIdx.y * D + d);
}

template <int kWidth, typename T, typename GateT>
__global__ void __launch_bounds__(kBackwardThreads)
    BackwardKernel(const GateBwdCudaArgs p) {
  const int64_t d = (static_cast<int64_t>(blockIdx.x) * kColumnLanes +
                     threadIdx.x % kColumnLanes) *
                    kWidth;
  const int64_t first_row =
      static_cast<int64_t>(blockIdx.y) * kRowLanes + threadIdx.x / kColumnLanes;
  const int64_t row_step = static_cast<int64_t>(gridDim.y) * kRowLanes;
  const float minus_scale = -1 / p.normalizer;
  Lanes<kWidth> sum = {};
  if (d < p.D) {
    for (int64_t m = first_row; m < p.M; m += row_step) {
      const int64_t at = m * p.D + d;
      const auto g = LoadLanes<kWidth>(static_cast<const GateT*>(p.g) + at);
      auto dx = LoadLanes<kWidth>(static_cast<const GateT*>(p.dg) + at);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        dx.lane[i] *= minus_scale * expm1f(g.lane[i] * p.normalizer);
        sum.lane[i] += dx.lane[i];
      }
      StoreLanes(dx, static_cast<T*>(p.dlogits) + at);
    }
  }
  if (p.dbias != nullptr) {
    WritePartialSums(sum, d, p.D, static_cast<float*>(p.workspace));
  }
}

// Blocks over the rows: enough to fill a GPU several times, with at least four
// rows for a thread where there are that many.
int64_t RowBlocks(int64_t M, int64_t D) {
  constexpr int64_t kBlocks = 1024;
  const int64_t column_blocks = CeilDiv(D, kColumnLanes * kPacked);
  return std::clamp<int64_t>(kBlocks / column_blocks, 1,
                             CeilDiv(M, 4 * kRowLanes));
}

template <int kWidth, typename T, typename GateT>
cudaError_t LaunchForward(const GateFwdCudaArgs& args, cudaStream_t stream) {
  const int64_t blocks = CeilDiv(args.M * args.D, kForwardThreads * kWidth);
  ForwardKernel<kWidth, T, GateT><<<blocks, kForwardThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

template <int kWidth, typename T, typename GateT>
cudaError_t LaunchBackward(const GateBwdCudaArgs& args, cudaStream_t stream) {
  const int64_t row_blocks = RowBlocks(args.M, args.D);
  const dim3 grid(CeilDiv(args.D, kColumnLanes * kWidth), row_blocks);
  BackwardKernel<kWidth, T, GateT><<<grid, kBackwardThreads, 0, stream>>>(args);
  if (cudaError_t error = cudaGetLastError(); error != cudaSuccess) {
    return error;
  }
  if (args.dbias == nullptr) return cudaSuccess;
  return AddPartialSums(static_cast<const float*>(args.workspace), row_blocks,
                        args.D, args.dbias, stream);
}

}  // namespace

cudaError_t GateFwdCuda(const GateFwdCudaArgs& args, cudaStream_t stream) {
  if (args.M == 0 || args.D == 0) return cudaSuccess;
  const bool packed =
      args.D % kPacked == 0 && Aligned16(0, {args.logits, args.g});
  return WithElementType(args.dtype, [&](auto tag) {
    return WithElementType(args.gate_dtype, [&](auto gate_tag) {
      using T = typename decltype(tag)::type;
      using GateT = typename decltype(gate_tag)::type;
      return packed ? LaunchForward<kPacked, T, GateT>(args, stream)
                    : LaunchForward<1, T, GateT>(args, stream);
    });
  });
}

int64_t GateBwdWorkspaceBytes(int64_t M, int64_t D) {
  return D == 0 ? 0 : RowBlocks(M, D) * D * sizeof(float);
}

cudaError_t GateBwdCuda(const GateBwdCudaArgs& args, cudaStream_t stream) {
  if (args.M == 0 || args.D == 0) return cudaSuccess;
  const bool packed =
      args.D % kPacked == 0 &&
      Aligned16(0, {args.dg, args.g, args.dlogits, args.workspace});
  return WithElementType(args.dtype, [&](auto tag) {
    return WithElementType(args.gate_dtype, [&](auto gate_tag) {
      using T = typename decltype(tag)::type;
      using GateT = typename decltype(gate_tag)::type;
      return packed ? LaunchBackward<kPacked, T, GateT>(args, stream)
                    : LaunchBackward<1, T, GateT>(args, stream);
    });
  });
}

}  // namespace gla
