// The gated RMSNorm on the GPU: limited by memory, so every element moves once,
// 16 bytes at a time.
//
// One warp per row. Rows of up to 512 elements that can be read 16 bytes at a
// time stay in registers between the two passes (kSteps packs per lane); others
// (kSteps = 0) are read again, from L1 or L2. A lane owns the same columns in
// both passes, which makes the aliasing that the contract allows safe.
//
// Backward, a block of kWarps warps owns every blocks-th group of kWarps rows
// and adds up its share of dweight: in registers, then over its warps in order
// through shared memory, then into its row of the workspace. Rows that do not
// fit registers go to blocks of one warp, which adds to its row of the
// workspace at once. AddPartialSums does the rest. All orders depend on the
// shape and alignment alone.
#include <algorithm>
#include <cmath>

#include "kernels/base/ceil_div.h"
#include "kernels/device/block_sum.cuh"
#include "kernels/device/elements.cuh"
#include "kernels/device/partial_sums.cuh"
#include "kernels/norm/gated_rms_norm_cuda.h"

namespace gla {
namespace {

constexpr int kWarps = 8;             // per block
constexpr int64_t kMaxBlocks = 1024;  // backward: rows of the workspace
constexpr int64_t kCachedColumns = 512;

__device__ float Sigmoid(float z) { return __fdividef(1.0f, 1 + expf(-z)); }

// How a lane walks a row of V elements: `kSteps` packs of kWidth, or as many as
// it takes where kSteps is 0. Packs lie wholly inside or outside of the row.
template <int kWidth, int kSteps>
struct RowWalk {
  static constexpr bool kCached = kSteps > 0;
  static constexpr int kCache = kCached ? kSteps : 1;

  int64_t V;

  __device__ int Steps() const {
    if constexpr (kCached) return kSteps;
    return (V + kWarpThreads * kWidth - 1) / (kWarpThreads * kWidth);
  }
  __device__ int64_t Column(int step) const {
    return (static_cast<int64_t>(step) * kWarpThreads +
            threadIdx.x % kWarpThreads) *
           kWidth;
  }
  __device__ bool InRow(int step) const { return Column(step) < V; }
};

// One tensor's row for one lane: read once if cached, else at every use.
template <int kWidth, int kSteps, typename T>
struct Row {
  using Walk = RowWalk<kWidth, kSteps>;

  __device__ Row(const void* tensor, int64_t row, const Walk& walk)
      : data(static_cast<const T*>(tensor) + row * walk.V) {
    if constexpr (Walk::kCached) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        cache[step] = walk.InRow(step)
                          ? LoadLanes<kWidth>(data + walk.Column(step))
                          : Lanes<kWidth>{};
      }
    }
  }
  // Zero outside of the row if cached, else for steps inside only.
  __device__ Lanes<kWidth> Get(int step, const Walk& walk) const {
    if constexpr (Walk::kCached) return cache[step];
    return LoadLanes<kWidth>(data + walk.Column(step));
  }

  const T* data;
  Lanes<kWidth> cache[Walk::kCache];
};

template <int kWidth>
__device__ Lanes<kWidth> LoadWeight(const void* weight, DType dtype,
                                    int64_t column) {
  Lanes<kWidth> w;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    w.lane[i] = BitsToFloat(LoadBits(weight, dtype, column + i), dtype);
  }
  return w;
}

template <int kWidth, int kSteps, typename T>
__global__ void __launch_bounds__(kWarps* kWarpThreads)
    ForwardKernel(const GatedRmsNormFwdCudaArgs p) {
  const RowWalk<kWidth, kSteps> walk = {p.shape.V};
  const int64_t row =
      static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpThreads;
  if (row >= p.shape.M) return;
  const Row<kWidth, kSteps, T> x(p.x, row, walk), gate(p.gate, row, walk);

  float squares = 0;
#pragma unroll
  for (int step = 0; step < walk.Steps(); ++step) {
    if (!walk.InRow(step)) continue;
    const Lanes<kWidth> xs = x.Get(step, walk);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) squares += xs.lane[i] * xs.lane[i];
  }
  const float rstd = 1 / sqrtf(WarpSum(squares) / p.shape.V + p.eps);
  if (p.rstd != nullptr && threadIdx.x % kWarpThreads == 0) p.rstd[row] = rstd;

  T* const y = static_cast<T*>(p.y) + row * p.shape.V;
#pragma unroll
  for (int step = 0; step < walk.Steps(); ++step) {
    if (!walk.InRow(step)) continue;
    const int64_t column = walk.Column(step);
    const auto w = LoadWeight<kWidth>(p.weight, p.shape.weight_dtype, column);
    const Lanes<kWidth> z = gate.Get(step, walk);
    Lanes<kWidth> ys = x.Get(step, walk);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      ys.lane[i] *= rstd * w.lane[i];
      ys.lane[i] *= z.lane[i] * Sigmoid(z.lane[i]);
    }
    StoreLanes(ys, y + column);
  }
}

// With n = x * rstd and dh = dy * silu(gate), the gradient of n * weight:
//   dgate = dy * n * weight * silu'(gate),   dweight += dh * n,
//   dx = rstd * (weight * dh - n * mean(weight * dh * n)).
template <int kWidth, int kSteps, typename T>
struct BackwardRow {
  using Walk = RowWalk<kWidth, kSteps>;

  __device__ BackwardRow(const GatedRmsNormBwdCudaArgs& p, int64_t row,
                         const Walk& walk)
      : rstd(p.rstd[row]),
        dy(p.dy, row, walk),
        x(p.x, row, walk),
        gate(p.gate, row, walk) {}

  // n and dh of one step.
  __device__ void Get(int step, const Walk& walk, Lanes<kWidth>* n,
                      Lanes<kWidth>* dh) const {
    *n = x.Get(step, walk);
    *dh = dy.Get(step, walk);
    const Lanes<kWidth> z = gate.Get(step, walk);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      n->lane[i] *= rstd;
      dh->lane[i] *= z.lane[i] * Sigmoid(z.lane[i]);
    }
  }
  __device__ Lanes<kWidth> GateGrad(int step, const Walk& walk,
                                    const Lanes<kWidth>& n,
                                    const Lanes<kWidth>& w) const {
    const Lanes<kWidth> z = gate.Get(step, walk);
    Lanes<kWidth> dgate = dy.Get(step, walk);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float sigmoid = Sigmoid(z.lane[i]);
      dgate.lane[i] *=
          n.lane[i] * w.lane[i] * sigmoid * (1 + z.lane[i] * (1 - sigmoid));
    }
    return dgate;
  }

  float rstd;
  Row<kWidth, kSteps, T> dy, x, gate;
};

// Writes dx and dgate of one row. Its share of dweight, by steps, goes to
// add(step, share) for steps inside of the row.
template <int kWidth, int kSteps, typename T, typename Add>
__device__ void RowBackward(const GatedRmsNormBwdCudaArgs& p, int64_t row,
                            const RowWalk<kWidth, kSteps>& walk, Add add) {
  const BackwardRow<kWidth, kSteps, T> in(p, row, walk);
  Lanes<kWidth> n, dh;
  float products = 0;
#pragma unroll
  for (int step = 0; step < walk.Steps(); ++step) {
    if (!walk.InRow(step)) continue;
    const auto w =
        LoadWeight<kWidth>(p.weight, p.shape.weight_dtype, walk.Column(step));
    in.Get(step, walk, &n, &dh);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      products += w.lane[i] * dh.lane[i] * n.lane[i];
    }
  }
  const float mean = WarpSum(products) / p.shape.V;

#pragma unroll
  for (int step = 0; step < walk.Steps(); ++step) {
    if (!walk.InRow(step)) continue;
    const int64_t column = walk.Column(step);
    const auto w = LoadWeight<kWidth>(p.weight, p.shape.weight_dtype, column);
    in.Get(step, walk, &n, &dh);
    const Lanes<kWidth> dgate = in.GateGrad(step, walk, n, w);
    Lanes<kWidth> dx, share;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      dx.lane[i] = in.rstd * (w.lane[i] * dh.lane[i] - n.lane[i] * mean);
      share.lane[i] = dh.lane[i] * n.lane[i];
    }
    const int64_t at = row * p.shape.V + column;
    StoreLanes(dgate, static_cast<T*>(p.dgate) + at);
    StoreLanes(dx, static_cast<T*>(p.dx) + at);
    add(step, share);
  }
}

template <int kWidth, int kSteps, typename T>
__global__ void __launch_bounds__(kWarps* kWarpThreads)
    CachedBackwardKernel(const GatedRmsNormBwdCudaArgs p) {
  alignas(16) __shared__ float shares[kWarps][kCachedColumns];
  const RowWalk<kWidth, kSteps> walk = {p.shape.V};
  const int warp = threadIdx.x / kWarpThreads;
  Lanes<kWidth> dweight[kSteps] = {};
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
       row < p.shape.M; row += static_cast<int64_t>(gridDim.x) * kWarps) {
    RowBackward<kWidth, kSteps, T>(p, row, walk,
                                   [&](int step, const Lanes<kWidth>& share) {
#pragma unroll
                                     for (int i = 0; i < kWidth; ++i) {
                                       dweight[step].lane[i] += share.lane[i];
                                     }
                                   });
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (walk.InRow(step)) {
      StoreLanes(dweight[step], &shares[warp][walk.Column(step)]);
    }
  }
  __syncthreads();
  float* const partial =
      static_cast<float*>(p.workspace) + blockIdx.x * p.shape.V;
  for (int v = threadIdx.x; v < p.shape.V; v += blockDim.x) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) sum += shares[i][v];
    partial[v] = sum;
  }
}

// Blocks of one warp.
template <int kWidth, typename T>
__global__ void __launch_bounds__(kWarpThreads)
    UncachedBackwardKernel(const GatedRmsNormBwdCudaArgs p) {
  const RowWalk<kWidth, 0> walk = {p.shape.V};
  float* const partial =
      static_cast<float*>(p.workspace) + blockIdx.x * p.shape.V;
  for (int64_t row = blockIdx.x; row < p.shape.M; row += gridDim.x) {
    const bool first = row == blockIdx.x;
    RowBackward<kWidth, 0, T>(p, row, walk, [&](int step, Lanes<kWidth> share) {
      float* const sum = partial + walk.Column(step);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        if (!first) share.lane[i] += sum[i];
        sum[i] = share.lane[i];
      }
    });
  }
}

// Whether rows that start at these addresses can be read in packs of T.
template <typename T>
bool IsPacked(int64_t V, std::initializer_list<const void*> rows) {
  return Aligned16(V * sizeof(T), rows);
}

template <int kWidth, int kSteps, typename T>
cudaError_t LaunchForward(const GatedRmsNormFwdCudaArgs& args,
                          cudaStream_t stream) {
  ForwardKernel<kWidth, kSteps, T>
      <<<CeilDiv(args.shape.M, kWarps), kWarps * kWarpThreads, 0, stream>>>(
          args);
  return cudaGetLastError();
}

template <typename T>
cudaError_t Forward(const GatedRmsNormFwdCudaArgs& args, cudaStream_t stream) {
  constexpr int kWidth = 16 / sizeof(T);
  constexpr int kStepColumns = kWidth * kWarpThreads;
  const int64_t V = args.shape.V;
  if (!IsPacked<T>(V, {args.x, args.gate, args.y})) {
    return LaunchForward<1, 0, T>(args, stream);
  }
  if (V <= kStepColumns) return LaunchForward<kWidth, 1, T>(args, stream);
  if (V <= 2 * kStepColumns) return LaunchForward<kWidth, 2, T>(args, stream);
  if constexpr (4 * kStepColumns <= kCachedColumns) {
    if (V <= 4 * kStepColumns) return LaunchForward<kWidth, 4, T>(args, stream);
  }
  return LaunchForward<kWidth, 0, T>(args, stream);
}

template <int kWidth, int kSteps, typename T>
cudaError_t LaunchCachedBackward(const GatedRmsNormBwdCudaArgs& args,
                                 cudaStream_t stream) {
  const auto [M, V, dtype, weight_dtype] = args.shape;
  const int64_t blocks = std::min(CeilDiv(M, kWarps), kMaxBlocks);
  CachedBackwardKernel<kWidth, kSteps, T>
      <<<blocks, kWarps * kWarpThreads, 0, stream>>>(args);
  if (cudaError_t error = cudaGetLastError(); error != cudaSuccess) {
    return error;
  }
  return AddPartialSums(static_cast<const float*>(args.workspace), blocks, V,
                        args.dweight, stream);
}

template <int kWidth, typename T>
cudaError_t LaunchUncachedBackward(const GatedRmsNormBwdCudaArgs& args,
                                   cudaStream_t stream) {
  const auto [M, V, dtype, weight_dtype] = args.shape;
  const int64_t blocks = std::min(M, kMaxBlocks);
  UncachedBackwardKernel<kWidth, T><<<blocks, kWarpThreads, 0, stream>>>(args);
  if (cudaError_t error = cudaGetLastError(); error != cudaSuccess) {
    return error;
  }
  return AddPartialSums(static_cast<const float*>(args.workspace), blocks, V,
                        args.dweight, stream);
}

template <typename T>
cudaError_t Backward(const GatedRmsNormBwdCudaArgs& args, cudaStream_t stream) {
  constexpr int kWidth = 16 / sizeof(T);
  constexpr int kStepColumns = kWidth * kWarpThreads;
  const int64_t V = args.shape.V;
  if (!IsPacked<T>(V, {args.dy, args.x, args.gate, args.dx, args.dgate})) {
    return LaunchUncachedBackward<1, T>(args, stream);
  }
  if (V <= kStepColumns) {
    return LaunchCachedBackward<kWidth, 1, T>(args, stream);
  }
  if (V <= 2 * kStepColumns) {
    return LaunchCachedBackward<kWidth, 2, T>(args, stream);
  }
  if constexpr (4 * kStepColumns <= kCachedColumns) {
    if (V <= 4 * kStepColumns) {
      return LaunchCachedBackward<kWidth, 4, T>(args, stream);
    }
  }
  return LaunchUncachedBackward<kWidth, T>(args, stream);
}

}  // namespace

cudaError_t GatedRmsNormFwdCuda(const GatedRmsNormFwdCudaArgs& args,
                                cudaStream_t stream) {
  if (args.shape.M == 0 || args.shape.V == 0) return cudaSuccess;
  return WithElementType(args.shape.dtype, [&](auto tag) {
    return Forward<typename decltype(tag)::type>(args, stream);
  });
}

int64_t GatedRmsNormBwdWorkspaceBytes(const GatedRmsNormShape& shape) {
  return std::min(shape.M, kMaxBlocks) * shape.V * sizeof(float);
}

cudaError_t GatedRmsNormBwdCuda(const GatedRmsNormBwdCudaArgs& args,
                                cudaStream_t stream) {
  if (args.shape.M == 0 || args.shape.V == 0) return cudaSuccess;
  return WithElementType(args.shape.dtype, [&](auto tag) {
    return Backward<typename decltype(tag)::type>(args, stream);
  });
}

}  // namespace gla
