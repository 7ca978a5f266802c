#include "kernels/norm/gated_rms_norm.h"

#include <cmath>

#include "glog/logging.h"
#include "kernels/base/row_blocks.h"
#include "kernels/base/vector_math.h"
#ifdef GLA_CUDA
#include "kernels/base/cuda_check.h"
#include "kernels/norm/gated_rms_norm_cuda.h"
#endif

namespace gla {
namespace {

using Matrix = std::array<int64_t, 2>;
using Vector = std::array<int64_t, 1>;

void CheckShapes(const GatedRmsNormFwdArgs& args) {
  const Matrix shape = args.x.shape();
  CheckShape("gate", args.gate, shape);
  CheckShape("weight", args.weight, Vector{shape[1]});
  CheckShape("y", args.y, shape);
  if (!args.rstd.empty()) CheckShape("rstd", args.rstd, Vector{shape[0]});
}

void CheckShapes(const GatedRmsNormBwdArgs& args) {
  const Matrix shape = args.x.shape();
  CheckShape("dy", args.dy, shape);
  CheckShape("gate", args.gate, shape);
  CheckShape("weight", args.weight, Vector{shape[1]});
  CheckShape("rstd", args.rstd, Vector{shape[0]});
  CheckShape("dx", args.dx, shape);
  CheckShape("dgate", args.dgate, shape);
  CheckShape("dweight", args.dweight, Vector{shape[1]});
}

void ForwardRow(const GatedRmsNormFwdArgs& args, int64_t row) {
  const int64_t V = args.x.dim(1);
  const float* const x = args.x[row].data();
  __m256 squares = _mm256_setzero_ps();
  ForEachVector(V, [&](int64_t i, auto lanes) {
    const __m256 xi = lanes.Load(x + i);
    squares = _mm256_fmadd_ps(xi, xi, squares);
  });
  const float rstd = 1 / std::sqrt(Sum8(squares) / V + args.eps);
  if (!args.rstd.empty()) args.rstd[row] = rstd;

  const float* const gate = args.gate[row].data();
  const float* const weight = args.weight.data();
  float* const y = args.y[row].data();
  ForEachVector(V, [&](int64_t i, auto lanes) {
    const __m256 scaled = lanes.Load(x + i) * rstd * lanes.Load(weight + i);
    lanes.Store(y + i, scaled * Silu8(lanes.Load(gate + i)));
  });
}

// With n = x * rstd and dh = dy * silu(gate), the gradient of n * weight:
//   dgate = dy * n * weight * silu'(gate),   dweight += dh * n,
//   dx = rstd * (weight * dh - n * mean(weight * dh * n)).
// `dx` holds dh between the two loops, so that sigmoid is computed once.
void BackwardRow(const GatedRmsNormBwdArgs& args, int64_t row, float* dweight) {
  const int64_t V = args.x.dim(1);
  const float* const dy = args.dy[row].data();
  const float* const x = args.x[row].data();
  const float* const gate = args.gate[row].data();
  const float* const weight = args.weight.data();
  const float rstd = args.rstd[row];
  float* const dx = args.dx[row].data();
  float* const dgate = args.dgate[row].data();

  __m256 products = _mm256_setzero_ps();
  ForEachVector(V, [&](int64_t i, auto lanes) {
    const __m256 n = lanes.Load(x + i) * rstd;
    const __m256 w = lanes.Load(weight + i);
    const __m256 z = lanes.Load(gate + i);
    const __m256 dyi = lanes.Load(dy + i);
    const __m256 sigmoid = Sigmoid8(z);
    const __m256 dh = dyi * z * sigmoid;
    const __m256 dsilu = sigmoid * (1 + z * (1 - sigmoid));
    lanes.Store(dx + i, dh);
    lanes.Store(dgate + i, dyi * n * w * dsilu);
    lanes.Store(dweight + i, lanes.Load(dweight + i) + dh * n);
    products = _mm256_fmadd_ps(w * dh, n, products);
  });
  const float mean = Sum8(products) / V;

  ForEachVector(V, [&](int64_t i, auto lanes) {
    const __m256 n = lanes.Load(x + i) * rstd;
    const __m256 dn = lanes.Load(weight + i) * lanes.Load(dx + i);
    lanes.Store(dx + i, rstd * (dn - n * mean));
  });
}

void FwdCpu(const ExecutionContext& ctx, const GatedRmsNormFwdArgs& args) {
  const auto [M, V] = args.x.shape();
  ctx.threads->ParallelRanges(M, RowGrain(V), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) ForwardRow(args, row);
  });
}

void BwdCpu(const ExecutionContext& ctx, const GatedRmsNormBwdArgs& args) {
  AccumulateOverRows(ctx, args.x.dim(0), args.dweight,
                     [&](int64_t begin, int64_t end, float* dweight) {
                       for (int64_t row = begin; row < end; ++row) {
                         BackwardRow(args, row, dweight);
                       }
                     });
}

#ifdef GLA_CUDA
GatedRmsNormShape CudaShape(const Matrix& shape) {
  return {.M = shape[0],
          .V = shape[1],
          .dtype = DType::kFloat32,
          .weight_dtype = DType::kFloat32};
}

void FwdCuda(const ExecutionContext& ctx, const GatedRmsNormFwdArgs& args) {
  const GatedRmsNormFwdCudaArgs cuda = {.shape = CudaShape(args.x.shape()),
                                        .eps = args.eps,
                                        .x = args.x.data(),
                                        .gate = args.gate.data(),
                                        .weight = args.weight.data(),
                                        .y = args.y.data(),
                                        .rstd = args.rstd.data()};
  CUDA_CHECK(GatedRmsNormFwdCuda(cuda, static_cast<cudaStream_t>(ctx.stream)));
}

void BwdCuda(const ExecutionContext& ctx, const GatedRmsNormBwdArgs& args) {
  const GatedRmsNormShape shape = CudaShape(args.x.shape());
  const GatedRmsNormBwdCudaArgs cuda = {
      .shape = shape,
      .dy = args.dy.data(),
      .x = args.x.data(),
      .gate = args.gate.data(),
      .weight = args.weight.data(),
      .rstd = args.rstd.data(),
      .dx = args.dx.data(),
      .dgate = args.dgate.data(),
      .dweight = args.dweight.data(),
      .workspace = DeviceWorkspace(ctx, "GatedRmsNormBwd",
                                   GatedRmsNormBwdWorkspaceBytes(shape))};
  CUDA_CHECK(GatedRmsNormBwdCuda(cuda, static_cast<cudaStream_t>(ctx.stream)));
}
#endif

}  // namespace

void GatedRmsNormFwd(const ExecutionContext& ctx,
                     const GatedRmsNormFwdArgs& args) {
  CheckShapes(args);
  if (ctx.device == Device::kCpu) return FwdCpu(ctx, args);
#ifdef GLA_CUDA
  FwdCuda(ctx, args);
#else
  LOG(FATAL) << "GatedRmsNormFwd: no CUDA in this build; build with "
                "--config=cuda";
#endif
}

void GatedRmsNormBwd(const ExecutionContext& ctx,
                     const GatedRmsNormBwdArgs& args) {
  CheckShapes(args);
  if (ctx.device == Device::kCpu) return BwdCpu(ctx, args);
#ifdef GLA_CUDA
  BwdCuda(ctx, args);
#else
  LOG(FATAL) << "GatedRmsNormBwd: no CUDA in this build; build with "
                "--config=cuda";
#endif
}

}  // namespace gla
