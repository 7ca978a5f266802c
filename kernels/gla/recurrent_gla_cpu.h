// The implementation behind recurrent_gla.h on the CPU. Its caller has checked
// all arguments.
#ifndef GLA_KERNELS_GLA_RECURRENT_GLA_CPU_H_
#define GLA_KERNELS_GLA_RECURRENT_GLA_CPU_H_

#include "kernels/base/execution_context.h"
#include "kernels/gla/recurrent_gla.h"

namespace gla {

void RecurrentGlaFwdCpu(const ExecutionContext& ctx,
                        const RecurrentGlaFwdArgs& args);
void RecurrentGlaBwdCpu(const ExecutionContext& ctx,
                        const RecurrentGlaBwdArgs& args);

}  // namespace gla

#endif  // GLA_KERNELS_GLA_RECURRENT_GLA_CPU_H_
