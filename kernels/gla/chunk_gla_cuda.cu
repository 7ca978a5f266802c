// Chooses the kernels of a chunk GLA call and lays out its workspace.
#include <algorithm>

#include "kernels/base/ceil_div.h"
#include "kernels/device/dependent_launch_sm90.cuh"
#include "kernels/gla/chunk_gla_cuda.h"
#include "kernels/gla/chunk_gla_general.h"
#include "kernels/gla/chunk_gla_sm90.h"
#include "kernels/gla/chunk_gla_workspace.h"

namespace gla {
namespace internal {
namespace {

// Pieces that a sequence is cut into, to fill the GPU when there are few heads.
int64_t NumPieces(const ChunkGlaShape& s) {
  const int64_t blocks = s.N * s.H * (s.V / 128);
  if (blocks == 0) return 1;
  const int64_t tokens = CeilDiv(s.B * s.T, s.N);  // of a sequence, on average
  const int64_t most = CeilDiv(tokens, int64_t{kPieceChunks * kChunk});
  return std::clamp<int64_t>(kMultiprocessors / blocks, 1,
                             std::max<int64_t>(most, 1));
}

int64_t StateElements(const ChunkGlaShape& s) {
  return StateSlots(s) * s.H * s.K * s.V;
}

void TakePieces(const ChunkGlaShape& s, WorkspaceLayout* layout,
                ScanArgs* scan) {
  scan->pieces = NumPieces(s);
  if (scan->pieces <= 2) return;
  const int64_t keys = s.N * s.H * scan->pieces * s.K;
  scan->piece_states = layout->Take<float>(keys * s.V);
  scan->piece_decays = layout->Take<float>(keys);
}

// The state before each piece of a pass, if it has more than two.
cudaError_t StartPieces(const ScanArgs& args, bool reverse,
                        cudaStream_t stream) {
  if (args.pieces <= 2) return cudaSuccess;
  ScanArgs states_only = args;
  states_only.y = nullptr;
  states_only.final_state = nullptr;
  states_only.states = nullptr;
  states_only.follows = !reverse && HasOperands(args.shape.K);
  const auto scan = reverse ? ScanReverse : ScanForward;
  if (cudaError_t error = scan(states_only, stream)) return error;
  return ChainPieces(args, reverse, stream);
}

struct BwdWorkspace {
  ScanArgs scan = {};
  __nv_bfloat16* d_states;
  int64_t bytes;
};

BwdWorkspace LayOutBwd(const ChunkGlaShape& s, void* base) {
  WorkspaceLayout layout(base);
  BwdWorkspace w;
  TakePieces(s, &layout, &w.scan);
  w.d_states =
      layout.Take<__nv_bfloat16>(HasScanBackward(s.V) ? 0 : StateElements(s));
  w.scan.taken = layout.Take<int32_t>(HasScanBackward(s.V) ? 0 : 1);
  w.bytes = layout.bytes();
  return w;
}

struct FwdWorkspace {
  ScanArgs scan = {};
  void* operands;
  int64_t bytes;
};

FwdWorkspace LayOutFwd(const ChunkGlaShape& s, void* base) {
  WorkspaceLayout layout(base);
  FwdWorkspace w;
  TakePieces(s, &layout, &w.scan);
  w.operands = layout.Take<uint8_t>(OperandBytes(s));
  w.bytes = layout.bytes();
  return w;
}

struct Saved {
  __nv_bfloat16* states;
  void* operands;
  float* log_decays;
  float* own_scores;
  ChunkScores* scores;
  int64_t bytes;
};

Saved LayOutSaved(const ChunkGlaShape& s, const void* base) {
  WorkspaceLayout layout(const_cast<void*>(base));
  Saved saved;
  saved.states = layout.Take<__nv_bfloat16>(StateElements(s));
  saved.operands = layout.Take<uint8_t>(OperandBytes(s));
  saved.log_decays =
      layout.Take<float>(ChunkSlots(s) * s.H * s.K * kChunkParts);
  saved.own_scores = layout.Take<float>(
      HasScanBackward(s.V) ? ChunkSlots(s) * s.H * kChunk : 0);
  saved.scores = layout.Take<ChunkScores>(
      HasOperands(s.K) || HasScanBackward(s.V) ? 0 : ChunkSlots(s) * s.H);
  saved.bytes = layout.bytes();
  return saved;
}

cudaError_t TunedFwd(const ChunkGlaFwdCudaArgs& args, cudaStream_t stream) {
  const FwdWorkspace w = LayOutFwd(args.shape, args.workspace);
  ScanArgs scan = w.scan;
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
  Saved saved = {};
  if (args.saved != nullptr) saved = LayOutSaved(args.shape, args.saved);
  scan.states = saved.states;
  scan.log_decays = saved.log_decays;
  scan.own_scores = saved.own_scores;
  scan.scores = saved.scores;
  if (OperandBytes(args.shape) > 0) {
    void* const operands =
        saved.operands != nullptr ? saved.operands : w.operands;
    scan.operands = operands;
    const OperandArgs gate = {.shape = args.shape,
                              .scale = args.scale,
                              .q = scan.q,
                              .k = scan.k,
                              .g = scan.g,
                              .cu_seqlens = args.cu_seqlens,
                              .operands = operands,
                              .log_decays = saved.log_decays};
    if (cudaError_t error = GateChunks(gate, stream)) return error;
  }
  if (auto e = StartPieces(scan, /*reverse=*/false, stream)) return e;
  // Where states are stored that gains nothing, and forward and backward
  // together take 1 to 2 % longer (docs/kernels.md, "Lost, or of no use").
  const bool after_operands = scan.operands != nullptr && !saved.states;
  scan.follows = scan.pieces > 2 || after_operands;
  return ScanForward(scan, stream);
}

cudaError_t TunedBwd(const ChunkGlaBwdCudaArgs& args, cudaStream_t stream) {
  BwdWorkspace w = LayOutBwd(args.shape, args.workspace);
  const Saved saved = LayOutSaved(args.shape, args.saved);
  w.scan.shape = args.shape;
  w.scan.scale = args.scale;
  w.scan.q = static_cast<const __nv_bfloat16*>(args.q);
  w.scan.k = static_cast<const __nv_bfloat16*>(args.k);
  w.scan.g = args.g;
  w.scan.operands = saved.operands;
  w.scan.log_decays = saved.log_decays;
  w.scan.scores = saved.scores;
  w.scan.x = static_cast<const __nv_bfloat16*>(args.d_o);
  w.scan.y = static_cast<__nv_bfloat16*>(args.dv);
  w.scan.cu_seqlens = args.cu_seqlens;
  w.scan.initial_state = args.d_final_state;
  w.scan.final_state = args.d_initial_state;
  w.scan.states = w.d_states;
  const GradArgs grad = {
      .shape = args.shape,
      .scale = args.scale,
      .q = w.scan.q,
      .k = w.scan.k,
      .v = static_cast<const __nv_bfloat16*>(args.v),
      .g = args.g,
      .d_o = w.scan.x,
      .cu_seqlens = args.cu_seqlens,
      .log_decays = saved.log_decays,
      .own_scores = saved.own_scores,
      .states = saved.states,
      .d_states = w.d_states,
      .has_initial_state = args.initial_state != nullptr,
      .has_d_final_state = args.d_final_state != nullptr,
      .dq = static_cast<__nv_bfloat16*>(args.dq),
      .dk = static_cast<__nv_bfloat16*>(args.dk),
      .dg = args.dg,
      .taken = w.scan.taken,
      .reverse_blocks =
          args.shape.N * args.shape.H * (args.shape.V / 128) * w.scan.pieces,
  };
  if (auto e = StartPieces(w.scan, /*reverse=*/true, stream)) return e;
  if (HasScanBackward(args.shape.V)) {
    if (w.scan.pieces == 2) w.scan.pieces = 1;  // it does not catch up
    return ScanBackward(w.scan, grad, stream);
  }
  w.scan.follows = w.scan.pieces > 2;
  if (auto e = ScanReverse(w.scan, stream)) return e;
  return SegmentGradients(grad, stream);
}

constexpr int kChainThreads = 256;  // two groups of 8 channels of 64 values
constexpr int kChainBlocks = 4;     // of a multiprocessor, at most

// before[p + 1] = decay[p] before[p] + end[p]. A thread has four elements of a
// state, channels k and k + 1 of values v and v + 8, of head blockIdx.z. Four
// blocks a multiprocessor: all of four heads of 256 x 512 at once.
__global__ void __launch_bounds__(kChainThreads, kChainBlocks)
    ChainKernel(float* states, const float* decays, const float* initial_state,
                int pieces, int K, int V, bool reverse) {
  LetNextKernelStart();
  AwaitKernelBefore();
  const int quads = K * V / 4;
  const int head = blockIdx.z;
  const int thread = threadIdx.x % 128;
  const int columns = blockIdx.x * (kChainThreads / 128) + threadIdx.x / 128;
  const int quad = (blockIdx.y * (K / 8) + columns) * 128 + thread;
  const int k = columns * 8 + thread % 4 * 2;
  const int v = blockIdx.y * 64 + thread / 32 * 16 + thread % 32 / 4;
  float4 before = {};
  if (initial_state != nullptr) {
    const float* const from = initial_state + int64_t{head} * K * V;
    before = {from[k * V + v], from[(k + 1) * V + v], from[k * V + v + 8],
              from[(k + 1) * V + v + 8]};
  }
  constexpr int kBatch = 8;  // pieces whose loads are under way together
  // Of piece i in the order of the pass: its index, its state. (NumPieces keeps
  // indices small.)
  const auto piece = [&](int i) {
    return head * pieces + (reverse ? pieces - 1 - i : i);
  };
  const auto state = [&](int i) -> float4& {
    return reinterpret_cast<float4*>(states)[piece(i) * quads + quad];
  };
  const int last = pieces - 1;
  for (int first = 0; first < last; first += kBatch) {
    float4 end[kBatch];
    float2 decay[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (first + i >= last) break;
      end[i] = state(first + i);
      decay[i] = reinterpret_cast<const float2*>(
          decays)[(piece(first + i) * K + k) / 2];
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (first + i >= last) break;
      if (first + i > 0) state(first + i) = before;
      before = {
          decay[i].x * before.x + end[i].x, decay[i].y * before.y + end[i].y,
          decay[i].x * before.z + end[i].z, decay[i].y * before.w + end[i].w};
    }
  }
  state(last) = before;
}

}  // namespace

bool HasTunedShape(const ChunkGlaShape& s) {
  const bool has_kernel = (s.K == 256 && s.V == 512) ||
                          (s.K == 128 && (s.V == 256 || s.V == 128)) ||
                          (s.K == 64 && s.V == 128);
  return has_kernel && s.dtype == DType::kBFloat16;
}

int64_t Slots(const ChunkGlaShape& s, int tokens) {
  // Enough with and without cu_seqlens; see FirstSlot.
  return s.B == s.N ? s.N * CeilDiv(s.T, tokens) + s.N : s.T / tokens + s.N;
}

cudaError_t ChainPieces(const ScanArgs& args, bool reverse,
                        cudaStream_t stream) {
  const ChunkGlaShape& s = args.shape;
  const dim3 blocks(s.K / 8 / (kChainThreads / 128), s.V / 64, s.N * s.H);
  // Blocks start while those of the pass before end, and would crowd where that
  // is first. With so much shared memory each multiprocessor gets its share.
  constexpr int kMost = 228 * 1024, kReserved = 1024;
  const int64_t share = std::min<int64_t>(
      CeilDiv(int64_t{blocks.x} * blocks.y * blocks.z, kMultiprocessors),
      kChainBlocks);
  if (cudaError_t error = cudaFuncSetAttribute(
          ChainKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
          kMost - kReserved)) {
    return error;
  }
  return LaunchKernel(/*dependent=*/true, blocks, kChainThreads,
                      kMost / share - kReserved, stream, ChainKernel,
                      args.piece_states, args.piece_decays, args.initial_state,
                      args.pieces, s.K, s.V, reverse);
}

}  // namespace internal

using internal::HasTunedShape;

int64_t ChunkGlaSavedBytes(const ChunkGlaShape& shape) {
  if (!HasTunedShape(shape)) return 0;
  return internal::LayOutSaved(shape, nullptr).bytes;
}

int64_t ChunkGlaFwdWorkspaceBytes(const ChunkGlaShape& shape) {
  if (!HasTunedShape(shape)) return internal::GeneralFwdWorkspaceBytes(shape);
  return internal::LayOutFwd(shape, nullptr).bytes;
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
