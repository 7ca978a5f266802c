// The implementations behind rms_norm.h, one per device. Their callers have
// checked all shapes.
#ifndef GLA_KERNELS_NORM_RMS_NORM_DEVICE_H_
#define GLA_KERNELS_NORM_RMS_NORM_DEVICE_H_

#include "kernels/base/execution_context.h"
#include "kernels/norm/rms_norm.h"

namespace gla {

void RmsNormFwdCpu(const ExecutionContext& ctx, const RmsNormFwdArgs& args);
void RmsNormBwdCpu(const ExecutionContext& ctx, const RmsNormBwdArgs& args);

// Only in builds with --config=cuda.
void RmsNormFwdCuda(const ExecutionContext& ctx, const RmsNormFwdArgs& args);
void RmsNormBwdCuda(const ExecutionContext& ctx, const RmsNormBwdArgs& args);

}  // namespace gla

#endif  // GLA_KERNELS_NORM_RMS_NORM_DEVICE_H_
