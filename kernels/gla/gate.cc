#include "kernels/gla/gate.h"

#include "glog/logging.h"
#include "kernels/base/row_blocks.h"
#include "kernels/base/vector_math.h"

namespace gla {
namespace {

using Vector = std::array<int64_t, 1>;

}  // namespace

void GateFwd(const ExecutionContext& ctx, const GateFwdArgs& args) {
  CHECK(ctx.device == Device::kCpu) << "GateFwd: CPU only so far";
  const auto [M, D] = args.logits.shape();
  CheckShape("bias", args.bias, Vector{D});
  CheckShape("g", args.g, args.logits.shape());

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

void GateBwd(const ExecutionContext& ctx, const GateBwdArgs& args) {
  CHECK(ctx.device == Device::kCpu) << "GateBwd: CPU only so far";
  const auto [M, D] = args.g.shape();
  CheckShape("dg", args.dg, args.g.shape());
  CheckShape("dlogits", args.dlogits, args.g.shape());
  CheckShape("dbias", args.dbias, Vector{D});

  const float minus_scale = -1 / args.normalizer;
  AccumulateOverRows(
      ctx, M, args.dbias, [&](int64_t begin, int64_t end, float* dbias) {
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

}  // namespace gla
