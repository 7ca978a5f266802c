#include "kernels/gla/gate.h"

#include "glog/logging.h"
#include "kernels/base/row_blocks.h"
#include "kernels/base/vector_math.h"
#ifdef GLA_CUDA
#include "kernels/base/cuda_check.h"
#include "kernels/gla/gate_cuda.h"
#endif

namespace gla {
namespace {

using Vector = std::array<int64_t, 1>;

void CheckShapes(const GateFwdArgs& args) {
  CheckShape("bias", args.bias, Vector{args.logits.dim(1)});
  CheckShape("g", args.g, args.logits.shape());
}

void CheckShapes(const GateBwdArgs& args) {
  CheckShape("dg", args.dg, args.g.shape());
  CheckShape("dlogits", args.dlogits, args.g.shape());
  CheckShape("dbias", args.dbias, Vector{args.g.dim(1)});
}

void FwdCpu(const ExecutionContext& ctx, const GateFwdArgs& args) {
  const auto [M, D] = args.logits.shape();
  const float* const bias = args.bias.data();
  const float scale = 1 / args.normalizer;
  ctx.threads->ParallelRanges(M, RowGrain(D), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* const logits = args.logits[row].data();
      float* const g = args.g[row].data();
      ForEachVector(args.logits.dim(1), [&](int64_t d, auto lanes) {
        const __m256 x = lanes.Load(logits + d) + lanes.Load(bias + d);
        lanes.Store(g + d, LogSigmoid8(x) * scale);
      });
    }
  });
}

void BwdCpu(const ExecutionContext& ctx, const GateBwdArgs& args) {
  const float minus_scale = -1 / args.normalizer;
  AccumulateOverRows(
      ctx, args.g.dim(0), args.dbias,
      [&](int64_t begin, int64_t end, float* dbias) {
        for (int64_t row = begin; row < end; ++row) {
          const float* const dg = args.dg[row].data();
          const float* const g = args.g[row].data();
          float* const dlogits = args.dlogits[row].data();
          ForEachVector(args.g.dim(1), [&](int64_t d, auto lanes) {
            const __m256 expm1 =
                Expm1Negative8(lanes.Load(g + d) * args.normalizer);
            const __m256 dx = lanes.Load(dg + d) * minus_scale * expm1;
            lanes.Store(dlogits + d, dx);
            lanes.Store(dbias + d, lanes.Load(dbias + d) + dx);
          });
        }
      });
}

#ifdef GLA_CUDA
void FwdCuda(const ExecutionContext& ctx, const GateFwdArgs& args) {
  const auto [M, D] = args.logits.shape();
  const GateFwdCudaArgs cuda = {.M = M,
                                .D = D,
                                .normalizer = args.normalizer,
                                .dtype = DType::kFloat32,
                                .bias_dtype = DType::kFloat32,
                                .gate_dtype = DType::kFloat32,
                                .logits = args.logits.data(),
                                .bias = args.bias.data(),
                                .g = args.g.data()};
  CUDA_CHECK(GateFwdCuda(cuda, static_cast<cudaStream_t>(ctx.stream)));
}

void BwdCuda(const ExecutionContext& ctx, const GateBwdArgs& args) {
  const auto [M, D] = args.g.shape();
  const GateBwdCudaArgs cuda = {
      .M = M,
      .D = D,
      .normalizer = args.normalizer,
      .dtype = DType::kFloat32,
      .gate_dtype = DType::kFloat32,
      .dg = args.dg.data(),
      .g = args.g.data(),
      .dlogits = args.dlogits.data(),
      .dbias = args.dbias.data(),
      .workspace =
          DeviceWorkspace(ctx, "GateBwd", GateBwdWorkspaceBytes(M, D))};
  CUDA_CHECK(GateBwdCuda(cuda, static_cast<cudaStream_t>(ctx.stream)));
}
#endif

}  // namespace

void GateFwd(const ExecutionContext& ctx, const GateFwdArgs& args) {
  CheckShapes(args);
  if (ctx.device == Device::kCpu) return FwdCpu(ctx, args);
#ifdef GLA_CUDA
  FwdCuda(ctx, args);
#else
  LOG(FATAL) << "GateFwd: no CUDA in this build; build with --config=cuda";
#endif
}

void GateBwd(const ExecutionContext& ctx, const GateBwdArgs& args) {
  CheckShapes(args);
  if (ctx.device == Device::kCpu) return BwdCpu(ctx, args);
#ifdef GLA_CUDA
  BwdCuda(ctx, args);
#else
  LOG(FATAL) << "GateBwd: no CUDA in this build; build with --config=cuda";
#endif
}

}  // namespace gla
