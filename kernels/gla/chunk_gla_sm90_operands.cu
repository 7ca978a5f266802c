#include "kernels/gla/chunk_gla_sm90_operands.cuh"

namespace gla::internal {

int64_t OperandBytes(const ChunkGlaShape& shape) {
  if (!HasOperands(shape.K)) return 0;
  return ChunkSlots(shape) * shape.H * int64_t{sizeof(ChunkOperands<256>)};
}

cudaError_t GateChunks(const OperandArgs& args, cudaStream_t stream) {
  return args.shape.gate_dtype == DType::kFloat32
             ? LaunchOperands<OperandConfig<256, float>>(args, stream)
             : LaunchOperands<OperandConfig<256, __nv_bfloat16>>(args, stream);
}

}  // namespace gla::internal
