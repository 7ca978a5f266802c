// Stages of the general path that both directions use: two kernels, and the
// host code around all kernels.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_GENERAL_STAGES_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_GENERAL_STAGES_CUH_

#include <cstddef>
#include <initializer_list>

#include "kernels/base/ceil_div.h"
#include "kernels/gla/chunk_gla_general.cuh"
#include "kernels/gla/chunk_gla_workspace.h"

namespace gla::internal {

// One block per (head of a sequence, K tile, V tile) walks the sequence and
// carries its tile of the state in accumulators; it stores what it carries
// before each chunk. kKey: S forward in time from x = k, y = v, so `states` are
// at chunk starts. kQuery: dS backward from x = q, y = d_o, so they are at
// chunk ends.
template <class T, Gating kGating>
__global__ void __launch_bounds__(kThreads, 3)
    ScanKernel(const Problem p, const T* x, const T* y, const float* b,
               const float* first,  // [N, H, K, V] or null: zero
               float* states,       // [slots, H, K, V]
               float* last) {       // [N, H, K, V] or null
  alignas(16) __shared__ float xs[kTileFloats], ys[kTileFloats];
  const int64_t n = blockIdx.x / p.H, h = blockIdx.x % p.H;
  const int k0 = blockIdx.y * kTile, v0 = blockIdx.z * kTile;
  const int row0 = PatchRow(), col0 = PatchCol();
  const int row_in_patch = Lane() / 4;

  Patch state = {};
  if (first != nullptr) {
    LoadPatch(StateWindow(p, first, blockIdx.x, k0, v0), state);
  }
  const int64_t chunks = NumChunks(p, n);
  for (int64_t j = 0; j < chunks; ++j) {
    const Chunk chunk =
        ChunkOfSequence(p, n, kGating == Gating::kKey ? j : chunks - 1 - j);
    StorePatch(state, StateWindow(p, states, chunk.slot * p.H + h, k0, v0));

    const auto bs = TokenWindow(p, b, p.K, chunk, h, k0);
    __syncthreads();  // The tiles are free.
    LoadGated<kColLd, kGating>(TokenWindow(p, x, p.K, chunk, h, k0), bs,
                               p.scale, xs);
    LoadTile<kColLd>(TokenWindow(p, y, p.V, chunk, h, v0), ys);
    float decay[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int channel = row0 + row_in_patch + 8 * i;
      decay[i] =
          channel < bs.cols ? Exp2(*bs.At(chunk.rows - 1, channel)) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int block = 0; block < 4; ++block) {
#pragma unroll
      for (int i = 0; i < 4; ++i) state[block][i] *= decay[i / 2];
    }
    WarpProduct([&](int m, int i) { return xs[i * kColLd + row0 + m]; },
                [&](int n, int i) { return ys[i * kColLd + col0 + n]; }, kChunk,
                state);
  }
  if (last != nullptr) {
    StorePatch(state, StateWindow(p, last, blockIdx.x, k0, v0));
  }
}

// One block per (chunk, head, V tile): what the states and the chunk itself
// give. kQuery: o = (scale q 2^b) S + A v from x = q, y = v. kKey:
// dv = (k 2^(b_last - b)) dS + A^T d_o from x = k, y = d_o.
template <class T, Gating kGating>
__global__ void __launch_bounds__(kThreads, 3)
    ValueKernel(const Problem p, const T* x, const T* y, const float* b,
                const float* states,  // [slots, H, K, V]
                const float* scores,  // [slots, H, 64, 64]
                T* out) {             // [tokens, H, V]
  alignas(16) __shared__ float xs[kTileFloats], ys[kTileFloats];
  const int64_t h = blockIdx.x % p.H;
  const int v0 = blockIdx.y * kTile;
  const Chunk chunk = FindChunk(p, blockIdx.x / p.H);
  if (chunk.rows <= 0) return;
  const int row0 = PatchRow(), col0 = PatchCol();
  const auto x_by_row = [&](int m, int i) {
    return xs[(row0 + m) * kRowLd + i];
  };
  const auto x_by_col = [&](int m, int i) { return xs[i * kColLd + row0 + m]; };
  const auto y_by_col = [&](int n, int i) { return ys[i * kColLd + col0 + n]; };

  Patch sum = {};
  for (int k0 = 0; k0 < p.K; k0 += kTile) {
    LoadGated<kRowLd, kGating>(TokenWindow(p, x, p.K, chunk, h, k0),
                               TokenWindow(p, b, p.K, chunk, h, k0), p.scale,
                               xs);
    LoadRounded<kColLd>(StateWindow(p, states, blockIdx.x, k0, v0), ys);
    __syncthreads();
    WarpProduct(x_by_row, y_by_col, kTile, sum);
    __syncthreads();
  }
  const auto score_window = ScoreWindow(scores, blockIdx.x);
  LoadTile<kColLd>(TokenWindow(p, y, p.V, chunk, h, v0), ys);
  if constexpr (kGating == Gating::kQuery) {
    LoadRounded<kRowLd>(score_window, xs);
    __syncthreads();
    WarpProduct(x_by_row, y_by_col, kChunk, sum);
  } else {
    LoadRounded<kColLd>(score_window, xs);
    __syncthreads();
    WarpProduct(x_by_col, y_by_col, kChunk, sum);
  }
  StorePatch(sum, TokenWindow(p, out, p.V, chunk, h, v0));
}

// ---- Host ----

// `wide` still has to be and-ed with the alignment of the call's addresses.
inline Problem MakeProblem(const ChunkGlaShape& shape, float scale,
                           const int32_t* cu_seqlens) {
  Problem p;
  p.cu_seqlens = cu_seqlens;
  p.T = shape.T;
  p.N = shape.N;
  p.H = shape.H;
  p.K = static_cast<int>(shape.K);
  p.V = static_cast<int>(shape.V);
  p.slots = shape.B * shape.T / kChunk + shape.N;
  p.scale = scale;
  p.wide = shape.K % 8 == 0 && shape.V % 8 == 0;
  p.gate_dtype = shape.gate_dtype;
  return p;
}

inline bool AllAligned(std::initializer_list<const void*> addresses) {
  for (const void* address : addresses) {
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0) return false;
  }
  return true;
}

inline unsigned int Tiles(int channels) {
  return static_cast<unsigned int>(CeilDiv(channels, kTile));
}

// Blocks per chunk and head, in x; tiles in y and z.
inline dim3 ChunkGrid(const Problem& p, unsigned int tiles = 1) {
  return dim3(static_cast<unsigned int>(p.slots * p.H), tiles);
}

template <class... Params, class... Args>
cudaError_t Launch(void (*kernel)(Params...), dim3 grid, size_t shared_bytes,
                   cudaStream_t stream, Args... args) {
  if (grid.x == 0) return cudaSuccess;
  if (shared_bytes > 0) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
        static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<grid, kThreads, shared_bytes, stream>>>(args...);
  return cudaGetLastError();
}

// Runs stages until one fails.
class Stages {
 public:
  template <class Stage>
  void Run(Stage stage) {
    if (error_ == cudaSuccess) error_ = stage();
  }
  cudaError_t error() const { return error_; }

 private:
  cudaError_t error_ = cudaSuccess;
};

template <class T, Gating kGating>
cudaError_t LaunchScan(const Problem& p, const T* x, const T* y, const float* b,
                       const float* first, float* states, float* last,
                       cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned int>(p.N * p.H), Tiles(p.K), Tiles(p.V));
  return Launch(ScanKernel<T, kGating>, grid, 0, stream, p, x, y, b, first,
                states, last);
}

template <class T, Gating kGating>
cudaError_t LaunchValues(const Problem& p, const T* x, const T* y,
                         const float* b, const float* states,
                         const float* scores, T* out, cudaStream_t stream) {
  return Launch(ValueKernel<T, kGating>, ChunkGrid(p, Tiles(p.V)), 0, stream, p,
                x, y, b, states, scores, out);
}

// The stages that the backward pass repeats.
struct ForwardStages {
  float* b;       // [tokens, H, K] gates added up in the chunk, times log2(e)
  float* states;  // [slots, H, K, V] at chunk starts
  float* scores;  // [slots, H, 64, 64] with scale, 0 above the diagonal

  static ForwardStages Take(const Problem& p, const ChunkGlaShape& shape,
                            WorkspaceLayout* layout) {
    ForwardStages stages;
    stages.b = layout->Take<float>(shape.B * p.T * p.H * p.K);
    stages.states = layout->Take<float>(p.slots * p.H * p.K * p.V);
    stages.scores = layout->Take<float>(p.slots * p.H * kChunk * kChunk);
    return stages;
  }
};

// T: __half or __nv_bfloat16. final_state may be null.
template <class T>
cudaError_t RunForwardStages(const Problem& p, const T* q, const T* k,
                             const T* v, const void* g,
                             const float* initial_state, float* final_state,
                             const ForwardStages& stages, cudaStream_t stream);

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_GENERAL_STAGES_CUH_
