// Runs chunk_gla for tests that are written once for both devices: in float on
// the CPU, in bfloat16 with float gates on CUDA.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_RUNNER_H_
#define GLA_KERNELS_GLA_CHUNK_GLA_RUNNER_H_

#include "kernels/base/execution_context.h"
#include "kernels/device/test_device.h"
#include "kernels/gla/gla_reference_problem.h"

namespace gla {

// The problem as the device can hold it: its inputs rounded to bfloat16 for
// CUDA. A reference that is computed from it has the same inputs as the device.
GlaProblem RoundedFor(Device device, GlaProblem problem);

// All outputs and gradients. Outputs, `saved` and the device workspace are NaN
// before the call; the workspace has the bytes that chunk_gla asks for.
GlaResults RunChunkGla(TestDevice& device, const GlaProblem& problem);

// o alone, by a call that saves nothing and wants no final state.
OwnedTensor<float, 4> RunChunkGlaOutput(TestDevice& device,
                                        const GlaProblem& problem);

// ExpectGlaResults with the device's limits. In bfloat16 the rounding of
// operands shows, in dg most where strong gates make it small.
void ExpectChunkGlaResults(Device device, const GlaResults& results,
                           const GlaExpected& expected);

}  // namespace gla

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_RUNNER_H_
