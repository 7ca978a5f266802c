// The forward pass is one sweep. The backward pass is three, none with a sum
// over blocks: dq forward in time and dk, dg backward (recurrent_gla_rows),
// then dv, for which the forward sweep runs backward in time. With X_t the
// gradient that reaches S_t, its contribution to o_t included,
//
//   X_t = diag(exp(g_{t+1})) X_{t+1} + scale q_t do_t^T,    dv_t = X_t^T k_t:
//
// the same recurrence with q and k, v and do exchanged.
#include "kernels/gla/recurrent_gla_cuda.h"
#include "kernels/gla/recurrent_gla_rows.h"
#include "kernels/gla/recurrent_gla_sweep.h"

namespace gla {
namespace {

cudaError_t ValueGrad(const RecurrentGlaBwdCudaArgs& args,
                      cudaStream_t stream) {
  internal::SweepParams p = {};
  p.shape = args.shape;
  p.backward = true;
  p.query = args.k;
  p.query_scale = 1;
  p.key = args.q;
  p.key_scale = args.scale;
  p.value = args.d_o;
  p.g = args.g;
  p.cu_seqlens = args.cu_seqlens;
  p.first_state = args.d_final_state;
  p.out = args.dv;
  return internal::Sweep(p, stream);
}

// Floats of each part of the workspace.
struct WorkspaceSizes {
  explicit WorkspaceSizes(const RecurrentGlaShape& shape)
      : dq(shape.B * shape.T * shape.H * shape.K),
        last_dg(shape.N * shape.H * shape.K),
        anchors(internal::AnchorCount(shape) * shape.H * shape.K * shape.V) {}
  int64_t dq, last_dg, anchors;
};

}  // namespace

cudaError_t RecurrentGlaFwdCuda(const RecurrentGlaFwdCudaArgs& args,
                                cudaStream_t stream) {
  const RecurrentGlaShape& shape = args.shape;
  if (shape.N == 0 || shape.H == 0) return cudaSuccess;
  internal::SweepParams p = {};
  p.shape = shape;
  p.query = args.q;
  p.query_scale = args.scale;
  p.key = args.k;
  p.key_scale = 1;
  p.value = args.v;
  p.g = args.g;
  p.cu_seqlens = args.cu_seqlens;
  p.slots = args.slots;
  p.first_state = args.initial_state;
  p.out = args.o;
  p.last_state = args.final_state;
  return internal::Sweep(p, stream);
}

int64_t RecurrentGlaBwdWorkspaceBytes(const RecurrentGlaShape& shape) {
  const WorkspaceSizes sizes(shape);
  return (sizes.dq + sizes.last_dg + sizes.anchors) * sizeof(float);
}

cudaError_t RecurrentGlaBwdCuda(const RecurrentGlaBwdCudaArgs& args,
                                cudaStream_t stream) {
  const RecurrentGlaShape& shape = args.shape;
  if (shape.N == 0 || shape.H == 0) return cudaSuccess;
  const WorkspaceSizes sizes(shape);
  internal::RowParams p = {};
  p.args = args;
  p.dq = static_cast<float*>(args.workspace);
  p.last_dg = p.dq + sizes.dq;
  p.anchors = p.last_dg + sizes.last_dg;
  if (cudaError_t error = internal::RowSweeps(p, stream);
      error != cudaSuccess) {
    return error;
  }
  return ValueGrad(args, stream);
}

}  // namespace gla
