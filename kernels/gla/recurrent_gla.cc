#include "kernels/gla/recurrent_gla.h"

#include "glog/logging.h"
#include "kernels/gla/recurrent_gla_cpu.h"
#ifdef GLA_CUDA
#include "kernels/base/cuda_check.h"
#include "kernels/gla/recurrent_gla_cuda.h"
#endif

namespace gla {
namespace {

void CheckArgs(const ExecutionContext& ctx, const RecurrentGlaFwdArgs& args) {
  const auto [B, T, H, K] = args.k.shape();
  const int64_t V = args.v.dim(3), slots = args.state.dim(0);
  CheckShape("q", args.q, {B, T, H, K});
  CheckShape("v", args.v, {B, T, H, V});
  CheckShape("g", args.g, {B, T, H, K});
  CheckShape("o", args.o, {B, T, H, V});
  CheckShape("state", args.state, {slots, H, K, V});
  if (args.slots.empty()) {
    CHECK_LE(B, slots) << "rows without a state slot";
    return;
  }
  CHECK_EQ(static_cast<int64_t>(args.slots.size()), B) << "slots";
  if (ctx.device != Device::kCpu) return;  // the host cannot read them
  for (int32_t slot : args.slots) {
    CHECK(slot >= 0 && slot < slots) << "slot " << slot << " of " << slots;
  }
}

void CheckArgs(const RecurrentGlaBwdArgs& args) {
  const auto [B, T, H, K] = args.k.shape();
  const int64_t V = args.v.dim(3);
  const std::array<int64_t, 4> keys = {B, T, H, K}, values = {B, T, H, V},
                               state = {B, H, K, V};
  CheckShape("q", args.q, keys);
  CheckShape("v", args.v, values);
  CheckShape("g", args.g, keys);
  CheckShape("d_o", args.d_o, values);
  CheckShape("dq", args.dq, keys);
  CheckShape("dk", args.dk, keys);
  CheckShape("dv", args.dv, values);
  CheckShape("dg", args.dg, keys);
  if (!args.initial_state.empty()) {
    CheckShape("initial_state", args.initial_state, state);
  }
  if (!args.d_final_state.empty()) {
    CheckShape("d_final_state", args.d_final_state, state);
  }
  if (!args.d_initial_state.empty()) {
    CheckShape("d_initial_state", args.d_initial_state, state);
  }
}

#ifdef GLA_CUDA
RecurrentGlaShape CudaShape(const std::array<int64_t, 4>& keys, int64_t V) {
  const auto [B, T, H, K] = keys;
  CHECK(K >= 1 && K <= 512 && V >= 1 && V <= 512)
      << "RecurrentGla on CUDA: head sizes " << K << " and " << V
      << " outside of [1, 512]";
  return {.B = B,
          .T = T,
          .H = H,
          .K = K,
          .V = V,
          .N = B,
          .dtype = DType::kFloat32,
          .gate_dtype = DType::kFloat32};
}

void FwdCuda(const ExecutionContext& ctx, const RecurrentGlaFwdArgs& args) {
  RecurrentGlaFwdCudaArgs cuda = {};
  cuda.shape = CudaShape(args.k.shape(), args.v.dim(3));
  cuda.scale = args.scale;
  cuda.q = args.q.data();
  cuda.k = args.k.data();
  cuda.v = args.v.data();
  cuda.g = args.g.data();
  cuda.slots = args.slots.empty() ? nullptr : args.slots.data();
  cuda.initial_state = cuda.final_state = args.state.data();
  cuda.o = args.o.data();
  CUDA_CHECK(RecurrentGlaFwdCuda(cuda, static_cast<cudaStream_t>(ctx.stream)));
}

void BwdCuda(const ExecutionContext& ctx, const RecurrentGlaBwdArgs& args) {
  RecurrentGlaBwdCudaArgs cuda = {};
  cuda.shape = CudaShape(args.k.shape(), args.v.dim(3));
  cuda.scale = args.scale;
  cuda.q = args.q.data();
  cuda.k = args.k.data();
  cuda.v = args.v.data();
  cuda.g = args.g.data();
  cuda.initial_state = args.initial_state.data();
  cuda.d_o = args.d_o.data();
  cuda.d_final_state = args.d_final_state.data();
  cuda.dq = args.dq.data();
  cuda.dk = args.dk.data();
  cuda.dv = args.dv.data();
  cuda.dg = args.dg.data();
  cuda.d_initial_state = args.d_initial_state.data();
  cuda.workspace = DeviceWorkspace(ctx, "RecurrentGlaBwd",
                                   RecurrentGlaBwdWorkspaceBytes(cuda.shape));
  CUDA_CHECK(RecurrentGlaBwdCuda(cuda, static_cast<cudaStream_t>(ctx.stream)));
}
#endif

}  // namespace

void RecurrentGlaFwd(const ExecutionContext& ctx,
                     const RecurrentGlaFwdArgs& args) {
  CheckArgs(ctx, args);
  if (ctx.device == Device::kCpu) return RecurrentGlaFwdCpu(ctx, args);
#ifdef GLA_CUDA
  FwdCuda(ctx, args);
#else
  LOG(FATAL) << "RecurrentGlaFwd: no CUDA in this build; build with "
                "--config=cuda";
#endif
}

void RecurrentGlaBwd(const ExecutionContext& ctx,
                     const RecurrentGlaBwdArgs& args) {
  CheckArgs(args);
  if (ctx.device == Device::kCpu) return RecurrentGlaBwdCpu(ctx, args);
#ifdef GLA_CUDA
  BwdCuda(ctx, args);
#else
  LOG(FATAL) << "RecurrentGlaBwd: no CUDA in this build; build with "
                "--config=cuda";
#endif
}

}  // namespace gla
