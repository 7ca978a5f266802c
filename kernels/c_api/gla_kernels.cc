#include "kernels/c_api/gla_kernels.h"

#include "kernels/c_api/gla_argument_check.h"
#include "kernels/gla/chunk_gla_cuda.h"
#include "kernels/gla/gate_cuda.h"
#include "kernels/gla/recurrent_gla_cuda.h"
#include "kernels/norm/gated_rms_norm_cuda.h"

namespace {

using gla::ArgumentCheck;
using gla::ToDType;

void CheckChunkShape(ArgumentCheck& check, const gla_shape& shape) {
  using enum gla::DType;
  check.Sizes(shape);
  check.Type("dtype", shape.dtype, {kBFloat16, kFloat16});
  check.Type("gate_dtype", shape.gate_dtype, {kFloat32, kBFloat16});
}

void CheckRecurrentShape(ArgumentCheck& check, const gla_shape& shape) {
  check.Sizes(shape);
  check.Type("dtype", shape.dtype);
  check.Type("gate_dtype", shape.gate_dtype);
}

// The tensors that all four passes have.
template <typename Args>
void CheckInputs(ArgumentCheck& check, const Args& args) {
  const gla_shape& shape = args.shape;
  check.Sequences(shape, args.cu_seqlens);
  check.Tensor("q", args.q, shape.K, shape.dtype);
  check.Tensor("k", args.k, shape.K, shape.dtype);
  check.Tensor("v", args.v, shape.V, shape.dtype);
  check.Tensor("g", args.g, shape.K, shape.gate_dtype);
  check.OptionalTensor("initial_state", args.initial_state, shape.V,
                       GLA_FLOAT32);
}

template <typename Args>
void CheckOutputs(ArgumentCheck& check, const Args& args) {
  check.Tensor("o", args.o, args.shape.V, args.shape.dtype);
  check.OptionalTensor("final_state", args.final_state, args.shape.V,
                       GLA_FLOAT32);
}

template <typename Args>
void CheckGradients(ArgumentCheck& check, const Args& args) {
  const gla_shape& shape = args.shape;
  check.Tensor("d_o", args.d_o, shape.V, shape.dtype);
  check.OptionalTensor("d_final_state", args.d_final_state, shape.V,
                       GLA_FLOAT32);
  check.Tensor("dq", args.dq, shape.K, shape.dtype);
  check.Tensor("dk", args.dk, shape.K, shape.dtype);
  check.Tensor("dv", args.dv, shape.V, shape.dtype);
  check.Tensor("dg", args.dg, shape.K, shape.gate_dtype);
  check.OptionalTensor("d_initial_state", args.d_initial_state, shape.V,
                       GLA_FLOAT32);
}

// ChunkGlaShape or RecurrentGlaShape.
template <typename Shape>
Shape ToShape(const gla_shape& shape) {
  return {.B = shape.B,
          .T = shape.T,
          .H = shape.H,
          .K = shape.K,
          .V = shape.V,
          .N = shape.N,
          .dtype = ToDType(shape.dtype),
          .gate_dtype = ToDType(shape.gate_dtype)};
}

gla::ChunkGlaShape ToChunkShape(const gla_shape& shape) {
  return ToShape<gla::ChunkGlaShape>(shape);
}

gla::RecurrentGlaShape ToRecurrentShape(const gla_shape& shape) {
  return ToShape<gla::RecurrentGlaShape>(shape);
}

template <typename Args>
void CheckGateSizes(ArgumentCheck& check, const Args& args) {
  check.Size("M", args.M);
  check.Size("D", args.D);
  check.Type("dtype", args.dtype);
  check.Type("gate_dtype", args.gate_dtype);
}

void CheckNormShape(ArgumentCheck& check,
                    const gla_gated_rms_norm_shape& shape) {
  check.Size("M", shape.M);
  check.Size("V", shape.V);
  check.Type("dtype", shape.dtype);
  check.Type("weight_dtype", shape.weight_dtype);
}

template <typename Args>
void CheckNormInputs(ArgumentCheck& check, const Args& args) {
  const gla_gated_rms_norm_shape& shape = args.shape;
  check.Tensor("x", args.x, shape.V, shape.dtype);
  check.Tensor("gate", args.gate, shape.V, shape.dtype);
  check.Tensor("weight", args.weight, shape.V, shape.weight_dtype);
}

gla::GatedRmsNormShape ToNormShape(const gla_gated_rms_norm_shape& shape) {
  return {.M = shape.M,
          .V = shape.V,
          .dtype = ToDType(shape.dtype),
          .weight_dtype = ToDType(shape.weight_dtype)};
}

}  // namespace

int gla_kernels_version(void) { return GLA_KERNELS_VERSION; }

const char* gla_last_error(void) { return gla::LastError(); }

gla_status gla_chunk_sizes(const gla_shape* shape, gla_chunk_bytes* bytes) {
  ArgumentCheck check(__func__);
  if (!check.NotNull("shape", shape) || !check.NotNull("bytes", bytes)) {
    return check.status();
  }
  CheckChunkShape(check, *shape);
  if (!check.ok()) return check.status();
  const gla::ChunkGlaShape sizes = ToChunkShape(*shape);
  bytes->saved = gla::ChunkGlaSavedBytes(sizes);
  bytes->fwd_workspace = gla::ChunkGlaFwdWorkspaceBytes(sizes);
  bytes->bwd_workspace = gla::ChunkGlaBwdWorkspaceBytes(sizes);
  return GLA_OK;
}

gla_status gla_chunk_fwd(const gla_chunk_fwd_args* args, void* stream) {
  ArgumentCheck check(__func__);
  if (!check.NotNull("args", args)) return check.status();
  CheckChunkShape(check, args->shape);
  CheckInputs(check, *args);
  CheckOutputs(check, *args);
  if (args->final_state != nullptr) {
    check.Different("final_state", args->final_state, "initial_state",
                    args->initial_state);
  }
  if (!check.ok()) return check.status();
  const gla::ChunkGlaShape shape = ToChunkShape(args->shape);
  if (args->saved != nullptr) {
    check.Buffer("saved", args->saved, args->saved_bytes,
                 gla::ChunkGlaSavedBytes(shape));
  }
  check.Buffer("workspace", args->workspace, args->workspace_bytes,
               gla::ChunkGlaFwdWorkspaceBytes(shape));
  check.HopperGpu();
  if (!check.ok()) return check.status();
  return check.Launched(
      gla::ChunkGlaFwdCuda({.shape = shape,
                            .scale = args->scale,
                            .q = args->q,
                            .k = args->k,
                            .v = args->v,
                            .g = args->g,
                            .initial_state = args->initial_state,
                            .cu_seqlens = args->cu_seqlens,
                            .o = args->o,
                            .final_state = args->final_state,
                            .saved = args->saved,
                            .workspace = args->workspace},
                           static_cast<cudaStream_t>(stream)));
}

gla_status gla_chunk_bwd(const gla_chunk_bwd_args* args, void* stream) {
  ArgumentCheck check(__func__);
  if (!check.NotNull("args", args)) return check.status();
  CheckChunkShape(check, args->shape);
  CheckInputs(check, *args);
  CheckGradients(check, *args);
  if (!check.ok()) return check.status();
  const gla::ChunkGlaShape shape = ToChunkShape(args->shape);
  check.Buffer("saved", args->saved, args->saved_bytes,
               gla::ChunkGlaSavedBytes(shape));
  check.Buffer("workspace", args->workspace, args->workspace_bytes,
               gla::ChunkGlaBwdWorkspaceBytes(shape));
  check.HopperGpu();
  if (!check.ok()) return check.status();
  return check.Launched(
      gla::ChunkGlaBwdCuda({.shape = shape,
                            .scale = args->scale,
                            .q = args->q,
                            .k = args->k,
                            .v = args->v,
                            .g = args->g,
                            .initial_state = args->initial_state,
                            .cu_seqlens = args->cu_seqlens,
                            .saved = args->saved,
                            .d_o = args->d_o,
                            .d_final_state = args->d_final_state,
                            .dq = args->dq,
                            .dk = args->dk,
                            .dv = args->dv,
                            .dg = args->dg,
                            .d_initial_state = args->d_initial_state,
                            .workspace = args->workspace},
                           static_cast<cudaStream_t>(stream)));
}

gla_status gla_recurrent_fwd(const gla_recurrent_fwd_args* args, void* stream) {
  ArgumentCheck check(__func__);
  if (!check.NotNull("args", args)) return check.status();
  CheckRecurrentShape(check, args->shape);
  CheckInputs(check, *args);
  check.Indices("slots", args->slots);
  CheckOutputs(check, *args);
  check.HopperGpu();
  if (!check.ok()) return check.status();
  return check.Launched(
      gla::RecurrentGlaFwdCuda({.shape = ToRecurrentShape(args->shape),
                                .scale = args->scale,
                                .q = args->q,
                                .k = args->k,
                                .v = args->v,
                                .g = args->g,
                                .cu_seqlens = args->cu_seqlens,
                                .slots = args->slots,
                                .initial_state = args->initial_state,
                                .o = args->o,
                                .final_state = args->final_state},
                               static_cast<cudaStream_t>(stream)));
}

gla_status gla_recurrent_bwd_size(const gla_shape* shape,
                                  int64_t* workspace_bytes) {
  ArgumentCheck check(__func__);
  if (!check.NotNull("shape", shape) ||
      !check.NotNull("workspace_bytes", workspace_bytes)) {
    return check.status();
  }
  CheckRecurrentShape(check, *shape);
  if (!check.ok()) return check.status();
  *workspace_bytes =
      gla::RecurrentGlaBwdWorkspaceBytes(ToRecurrentShape(*shape));
  return GLA_OK;
}

gla_status gla_recurrent_bwd(const gla_recurrent_bwd_args* args, void* stream) {
  ArgumentCheck check(__func__);
  if (!check.NotNull("args", args)) return check.status();
  CheckRecurrentShape(check, args->shape);
  CheckInputs(check, *args);
  CheckGradients(check, *args);
  if (!check.ok()) return check.status();
  const gla::RecurrentGlaShape shape = ToRecurrentShape(args->shape);
  check.Buffer("workspace", args->workspace, args->workspace_bytes,
               gla::RecurrentGlaBwdWorkspaceBytes(shape));
  check.HopperGpu();
  if (!check.ok()) return check.status();
  return check.Launched(
      gla::RecurrentGlaBwdCuda({.shape = shape,
                                .scale = args->scale,
                                .q = args->q,
                                .k = args->k,
                                .v = args->v,
                                .g = args->g,
                                .cu_seqlens = args->cu_seqlens,
                                .initial_state = args->initial_state,
                                .d_o = args->d_o,
                                .d_final_state = args->d_final_state,
                                .dq = args->dq,
                                .dk = args->dk,
                                .dv = args->dv,
                                .dg = args->dg,
                                .d_initial_state = args->d_initial_state,
                                .workspace = args->workspace},
                               static_cast<cudaStream_t>(stream)));
}

gla_status gla_gate_fwd(const gla_gate_fwd_args* args, void* stream) {
  ArgumentCheck check(__func__);
  if (!check.NotNull("args", args)) return check.status();
  CheckGateSizes(check, *args);
  if (args->bias != nullptr) check.Type("bias_dtype", args->bias_dtype);
  check.Tensor("logits", args->logits, args->D, args->dtype);
  check.OptionalTensor("bias", args->bias, args->D, args->bias_dtype);
  check.Tensor("g", args->g, args->D, args->gate_dtype);
  if (args->dtype != args->gate_dtype) {
    check.Different("g", args->g, "logits", args->logits);
  }
  check.HopperGpu();
  if (!check.ok()) return check.status();
  return check.Launched(
      gla::GateFwdCuda({.M = args->M,
                        .D = args->D,
                        .normalizer = args->normalizer,
                        .dtype = ToDType(args->dtype),
                        .bias_dtype = ToDType(args->bias_dtype),
                        .gate_dtype = ToDType(args->gate_dtype),
                        .logits = args->logits,
                        .bias = args->bias,
                        .g = args->g},
                       static_cast<cudaStream_t>(stream)));
}

gla_status gla_gate_bwd_size(int64_t M, int64_t D, int64_t* workspace_bytes) {
  ArgumentCheck check(__func__);
  if (!check.NotNull("workspace_bytes", workspace_bytes)) {
    return check.status();
  }
  check.Size("M", M);
  check.Size("D", D);
  if (!check.ok()) return check.status();
  *workspace_bytes = gla::GateBwdWorkspaceBytes(M, D);
  return GLA_OK;
}

gla_status gla_gate_bwd(const gla_gate_bwd_args* args, void* stream) {
  ArgumentCheck check(__func__);
  if (!check.NotNull("args", args)) return check.status();
  CheckGateSizes(check, *args);
  check.Tensor("dg", args->dg, args->D, args->gate_dtype);
  check.Tensor("g", args->g, args->D, args->gate_dtype);
  check.Tensor("dlogits", args->dlogits, args->D, args->dtype);
  if (args->dtype != args->gate_dtype) {
    check.Different("dlogits", args->dlogits, "dg", args->dg);
  }
  if (check.ok() && args->dbias != nullptr) {
    check.Tensor("dbias", args->dbias, args->D, GLA_FLOAT32);
    check.Buffer("workspace", args->workspace, args->workspace_bytes,
                 gla::GateBwdWorkspaceBytes(args->M, args->D));
  }
  check.HopperGpu();
  if (!check.ok()) return check.status();
  return check.Launched(
      gla::GateBwdCuda({.M = args->M,
                        .D = args->D,
                        .normalizer = args->normalizer,
                        .dtype = ToDType(args->dtype),
                        .gate_dtype = ToDType(args->gate_dtype),
                        .dg = args->dg,
                        .g = args->g,
                        .dlogits = args->dlogits,
                        .dbias = args->dbias,
                        .workspace = args->workspace},
                       static_cast<cudaStream_t>(stream)));
}

gla_status gla_gated_rms_norm_fwd(const gla_gated_rms_norm_fwd_args* args,
                                  void* stream) {
  ArgumentCheck check(__func__);
  if (!check.NotNull("args", args)) return check.status();
  CheckNormShape(check, args->shape);
  CheckNormInputs(check, *args);
  check.Tensor("y", args->y, args->shape.V, args->shape.dtype);
  check.OptionalTensor("rstd", args->rstd, 1, GLA_FLOAT32);
  check.HopperGpu();
  if (!check.ok()) return check.status();
  return check.Launched(
      gla::GatedRmsNormFwdCuda({.shape = ToNormShape(args->shape),
                                .eps = args->eps,
                                .x = args->x,
                                .gate = args->gate,
                                .weight = args->weight,
                                .y = args->y,
                                .rstd = args->rstd},
                               static_cast<cudaStream_t>(stream)));
}

gla_status gla_gated_rms_norm_bwd_size(const gla_gated_rms_norm_shape* shape,
                                       int64_t* workspace_bytes) {
  ArgumentCheck check(__func__);
  if (!check.NotNull("shape", shape) ||
      !check.NotNull("workspace_bytes", workspace_bytes)) {
    return check.status();
  }
  CheckNormShape(check, *shape);
  if (!check.ok()) return check.status();
  *workspace_bytes = gla::GatedRmsNormBwdWorkspaceBytes(ToNormShape(*shape));
  return GLA_OK;
}

gla_status gla_gated_rms_norm_bwd(const gla_gated_rms_norm_bwd_args* args,
                                  void* stream) {
  ArgumentCheck check(__func__);
  if (!check.NotNull("args", args)) return check.status();
  const gla_gated_rms_norm_shape& sizes = args->shape;
  CheckNormShape(check, sizes);
  check.Tensor("dy", args->dy, sizes.V, sizes.dtype);
  CheckNormInputs(check, *args);
  check.Tensor("rstd", args->rstd, 1, GLA_FLOAT32);
  check.Tensor("dx", args->dx, sizes.V, sizes.dtype);
  check.Tensor("dgate", args->dgate, sizes.V, sizes.dtype);
  check.Tensor("dweight", args->dweight, sizes.V, GLA_FLOAT32);
  check.Different("dgate", args->dgate, "dy", args->dy);
  if (!check.ok()) return check.status();
  const gla::GatedRmsNormShape shape = ToNormShape(sizes);
  check.Buffer("workspace", args->workspace, args->workspace_bytes,
               gla::GatedRmsNormBwdWorkspaceBytes(shape));
  check.HopperGpu();
  if (!check.ok()) return check.status();
  return check.Launched(
      gla::GatedRmsNormBwdCuda({.shape = shape,
                                .dy = args->dy,
                                .x = args->x,
                                .gate = args->gate,
                                .weight = args->weight,
                                .rstd = args->rstd,
                                .dx = args->dx,
                                .dgate = args->dgate,
                                .dweight = args->dweight,
                                .workspace = args->workspace},
                               static_cast<cudaStream_t>(stream)));
}
