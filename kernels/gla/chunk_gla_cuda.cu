// Chooses the kernels of a chunk GLA call and lays out its workspace.
#include <algorithm>

#include "kernels/base/ceil_div.h"
#include "kernels/gla/chunk_gla_cuda.h"
#include "kernels/gla/chunk_gla_general.h"
#include "kernels/gla/chunk_gla_sm90.h"
#include "kernels/gla/chunk_gla_workspace.h"

namespace gla {
namespace internal {
namespace {

// Pieces that a sequence is cut into, to fill the GPU when there are few heads.
// Fewer than three would not repay the second pass over k, v and g.
int64_t NumPieces(const ChunkGlaShape& s) {
  const int64_t blocks = s.N * s.H * (s.V / 128);
  if (blocks == 0) return 1;
  const int64_t segments = CeilDiv(CeilDiv(s.B * s.T, s.N), kSegment);
  const int64_t pieces = std::min(kMultiprocessors / blocks, segments);
  return pieces < 3 ? 1 : pieces;
}

int64_t StateElements(const ChunkGlaShape& s) {
  return SegmentSlots(s) * s.H * s.K * s.V;
}

void TakePieces(const ChunkGlaShape& s, WorkspaceLayout* layout,
                ScanArgs* scan) {
  scan->pieces = NumPieces(s);
  if (scan->pieces == 1) return;
  const int64_t keys = s.N * s.H * scan->pieces * s.K;
  scan->piece_states = layout->Take<float>(keys * s.V);
  scan->piece_decays = layout->Take<float>(keys);
}

// A pass over the sequences, in one piece each or in several.
cudaError_t Scan(const ScanArgs& args, bool reverse, cudaStream_t stream) {
  const auto scan = reverse ? ScanReverse : ScanForward;
  if (args.pieces > 1) {
    ScanArgs states_only = args;
    states_only.y = nullptr;
    states_only.final_state = nullptr;
    states_only.segment_states = nullptr;
    if (cudaError_t error = scan(states_only, stream)) return error;
    if (cudaError_t error = ChainPieces(args, reverse, stream)) return error;
  }
  return scan(args, stream);
}

struct BwdWorkspace {
  ScanArgs scan;
  __nv_bfloat16* d_states;
  int64_t bytes;
};

BwdWorkspace LayOutBwd(const ChunkGlaShape& s, void* base) {
  WorkspaceLayout layout(base);
  BwdWorkspace w;
  TakePieces(s, &layout, &w.scan);
  w.d_states = layout.Take<__nv_bfloat16>(StateElements(s));
  w.bytes = layout.bytes();
  return w;
}

cudaError_t TunedFwd(const ChunkGlaFwdCudaArgs& args, cudaStream_t stream) {
  WorkspaceLayout layout(args.workspace);
  ScanArgs scan;
  TakePieces(args.shape, &layout, &scan);
  scan.shape = args.shape;
  scan.scale = args.scale;
  scan.q = static_cast<const __nv_bfloat16*>(args.q);
  scan.k = static_cast<const __nv_bfloat16*>(args.k);
  scan.g = args.g;
  scan.x = static_cast<const __nv_bfloat16*>(args.v);
  scan.y = static_cast<__nv_bfloat16*>(args.o);
  scan.cu_seqlens = args.cu_seqlens;
  scan.initial_state = args.initial_state;
  scan.final_state = args.final_state;
  scan.segment_states = static_cast<__nv_bfloat16*>(args.saved);
  return Scan(scan, /*reverse=*/false, stream);
}

cudaError_t TunedBwd(const ChunkGlaBwdCudaArgs& args, cudaStream_t stream) {
  BwdWorkspace w = LayOutBwd(args.shape, args.workspace);
  w.scan.shape = args.shape;
  w.scan.scale = args.scale;
  w.scan.q = static_cast<const __nv_bfloat16*>(args.q);
  w.scan.k = static_cast<const __nv_bfloat16*>(args.k);
  w.scan.g = args.g;
  w.scan.x = static_cast<const __nv_bfloat16*>(args.d_o);
  w.scan.y = static_cast<__nv_bfloat16*>(args.dv);
  w.scan.cu_seqlens = args.cu_seqlens;
  w.scan.initial_state = args.d_final_state;
  w.scan.final_state = args.d_initial_state;
  w.scan.segment_states = w.d_states;
  if (cudaError_t error = Scan(w.scan, /*reverse=*/true, stream)) return error;
  const GradArgs grad = {
      .shape = args.shape,
      .scale = args.scale,
      .q = w.scan.q,
      .k = w.scan.k,
      .v = static_cast<const __nv_bfloat16*>(args.v),
      .g = args.g,
      .d_o = w.scan.x,
      .cu_seqlens = args.cu_seqlens,
      .states = static_cast<const __nv_bfloat16*>(args.saved),
      .d_states = w.d_states,
      .dq = static_cast<__nv_bfloat16*>(args.dq),
      .dk = static_cast<__nv_bfloat16*>(args.dk),
      .dg = args.dg,
  };
  return SegmentGradients(grad, stream);
}

// before[p + 1] = decay[p] before[p] + end[p], one thread per state element.
__global__ void ChainKernel(float* states, const float* decays,
                            const float* initial_state, int64_t heads,
                            int pieces, int K, int V, bool reverse) {
  const int64_t index = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  const int64_t elements = int64_t{K} * V;
  if (index >= heads * elements) return;
  const int64_t head = index / elements;
  const int64_t element = index % elements;
  float before = initial_state != nullptr ? initial_state[index] : 0;
  for (int i = 0; i < pieces; ++i) {
    const int64_t p = head * pieces + (reverse ? pieces - 1 - i : i);
    float& state = states[p * elements + element];
    const float end = state;
    state = before;
    before = decays[p * K + element / V] * before + end;
  }
}

}  // namespace

bool HasTunedShape(const ChunkGlaShape& s) {
  const bool has_kernel = (s.K == 256 && s.V == 512) ||
                          (s.K == 128 && (s.V == 256 || s.V == 128)) ||
                          (s.K == 64 && s.V == 128);
  return has_kernel && s.dtype == DType::kBFloat16;
}

int64_t SegmentSlots(const ChunkGlaShape& s) {
  // Enough with and without cu_seqlens; see FirstSegment.
  return s.B == s.N ? s.N * CeilDiv(s.T, kSegment) + s.N : s.T / kSegment + s.N;
}

cudaError_t ChainPieces(const ScanArgs& args, bool reverse,
                        cudaStream_t stream) {
  constexpr int kThreads = 256;
  const ChunkGlaShape& s = args.shape;
  const int64_t heads = s.N * s.H;
  const int64_t blocks = CeilDiv(heads * s.K * s.V, kThreads);
  ChainKernel<<<blocks, kThreads, 0, stream>>>(
      args.piece_states, args.piece_decays, args.initial_state, heads,
      args.pieces, s.K, s.V, reverse);
  return cudaGetLastError();
}

}  // namespace internal

using internal::HasTunedShape;

int64_t ChunkGlaSavedBytes(const ChunkGlaShape& shape) {
  if (!HasTunedShape(shape)) return 0;
  return internal::StateElements(shape) * sizeof(__nv_bfloat16);
}

int64_t ChunkGlaFwdWorkspaceBytes(const ChunkGlaShape& shape) {
  if (!HasTunedShape(shape)) return internal::GeneralFwdWorkspaceBytes(shape);
  internal::WorkspaceLayout layout(nullptr);
  internal::ScanArgs scan;
  internal::TakePieces(shape, &layout, &scan);
  return layout.bytes();
}

int64_t ChunkGlaBwdWorkspaceBytes(const ChunkGlaShape& shape) {
  if (!HasTunedShape(shape)) return internal::GeneralBwdWorkspaceBytes(shape);
  return internal::LayOutBwd(shape, nullptr).bytes;
}

cudaError_t ChunkGlaFwdCuda(const ChunkGlaFwdCudaArgs& args,
                            cudaStream_t stream) {
  return HasTunedShape(args.shape) ? internal::TunedFwd(args, stream)
                                   : internal::GeneralFwd(args, stream);
}

cudaError_t ChunkGlaBwdCuda(const ChunkGlaBwdCudaArgs& args,
                            cudaStream_t stream) {
  return HasTunedShape(args.shape) ? internal::TunedBwd(args, stream)
                                   : internal::GeneralBwd(args, stream);
}

}  // namespace gla
