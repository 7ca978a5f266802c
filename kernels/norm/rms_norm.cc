#include "kernels/norm/rms_norm.h"

#include "glog/logging.h"
#include "kernels/norm/rms_norm_device.h"

namespace gla {
namespace {

using Matrix = std::array<int64_t, 2>;
using Vector = std::array<int64_t, 1>;

void CheckShapes(const RmsNormFwdArgs& args) {
  const Matrix shape = args.x.shape();
  if (!args.residual.empty()) {
    CheckShape("residual", args.residual, shape);
    CheckShape("sum", args.sum, shape);
  }
  CheckShape("weight", args.weight, Vector{shape[1]});
  CheckShape("y", args.y, shape);
  if (!args.rstd.empty()) CheckShape("rstd", args.rstd, Vector{shape[0]});
}

void CheckShapes(const RmsNormBwdArgs& args) {
  const Matrix shape = args.sum.shape();
  CheckShape("dy", args.dy, shape);
  CheckShape("weight", args.weight, Vector{shape[1]});
  CheckShape("rstd", args.rstd, Vector{shape[0]});
  if (!args.dresidual.empty()) CheckShape("dresidual", args.dresidual, shape);
  CheckShape("dsum", args.dsum, shape);
  CheckShape("dweight", args.dweight, Vector{shape[1]});
}

}  // namespace

void RmsNormFwd(const ExecutionContext& ctx, const RmsNormFwdArgs& args) {
  CheckShapes(args);
  if (ctx.device == Device::kCpu) return RmsNormFwdCpu(ctx, args);
#ifdef GLA_CUDA
  RmsNormFwdCuda(ctx, args);
#else
  LOG(FATAL) << "RmsNormFwd: no CUDA in this build; build with --config=cuda";
#endif
}

void RmsNormBwd(const ExecutionContext& ctx, const RmsNormBwdArgs& args) {
  CheckShapes(args);
  if (ctx.device == Device::kCpu) return RmsNormBwdCpu(ctx, args);
#ifdef GLA_CUDA
  RmsNormBwdCuda(ctx, args);
#else
  LOG(FATAL) << "RmsNormBwd: no CUDA in this build; build with --config=cuda";
#endif
}

}  // namespace gla
