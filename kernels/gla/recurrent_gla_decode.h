// Internal to recurrent_gla_cuda: a token for each of many sequences.
#ifndef GLA_KERNELS_GLA_RECURRENT_GLA_DECODE_H_
#define GLA_KERNELS_GLA_RECURRENT_GLA_DECODE_H_

#include <cuda_runtime_api.h>

#include "kernels/gla/recurrent_gla_sweep.h"

namespace gla::internal {

// Whether Decode can do what `params` ask of Sweep, and faster: sequences of
// one token without cu_seqlens, forward, bfloat16 (gates also float32), K = 64,
// 128, 256 or 512, V a multiple of 64, a state to start from and one wanted,
// and so many sequences that 64 values are not too much for a block.
bool HasDecodeKernel(const SweepParams& params);

// The same bits as Sweep's other kernels leave. Only where HasDecodeKernel.
cudaError_t Decode(const SweepParams& params, cudaStream_t stream);

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_RECURRENT_GLA_DECODE_H_
