// Backward pass of the general path. After the gates, S and A of the forward
// pass (chunk_gla_general_fwd.cu), four kernels of 256 threads:
//
//   ScanKernel       per (head of a sequence, K tile, V tile), from the last
//                    chunk to the first: dS at chunk ends (K V / 16 bytes per
//                    head and token)
//   ScoreGradKernel  per (chunk, head): dA = scale tril(d_o v^T)
//   ValueKernel      per (chunk, head, V tile): dv
//   KeyGradKernel    per (chunk, head, K tile): dq, dk, dg; reads S and dS once
//                    and v, d_o once per K tile
//
// With b_e the gates added up to the chunk's end, S at its start, dS at its
// end:
//
//   dq_t = scale 2^b_t (S d_o_t) + sum_{u <= t} dA_tu k_u 2^(b_t - b_u)
//   dk_t = 2^(b_e - b_t) (dS v_t) + sum_{u >= t} dA_ut q_u 2^(b_u - b_t)
//   dg_t = 2^b_e rowsum(S dS) + sum over the chunk of k 2^(b_e - b) (dS v)
//          + sum_{s >= t} (q_s dq_s - k_s dk_s)
//
// dg is exact at each chunk end, so errors do not pile up along the sequence.
// What remains cancels in the last sum, pair by pair: products with dA are of
// float32 precision, and the pairs u = t, which cancel exactly, stay out of it.
#include <cmath>

#include "kernels/gla/chunk_gla_general_stages.cuh"

namespace gla::internal {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads)
    ScoreGradKernel(const Problem p, const T* v, const T* d_o,
                    float* d_scores) {
  alignas(16) __shared__ float vs[kTileFloats], d_os[kTileFloats];
  const Chunk chunk = FindChunk(p, blockIdx.x / p.H);
  if (chunk.rows <= 0) return;
  const int64_t h = blockIdx.x % p.H;
  const int row0 = PatchRow(), col0 = PatchCol();
  Patch sum = {};
  for (int v0 = 0; v0 < p.V; v0 += kTile) {
    LoadTile<kRowLd>(TokenWindow(p, v, p.V, chunk, h, v0), vs);
    LoadTile<kRowLd>(TokenWindow(p, d_o, p.V, chunk, h, v0), d_os);
    __syncthreads();
    WarpProduct([&](int m, int i) { return d_os[(row0 + m) * kRowLd + i]; },
                [&](int n, int i) { return vs[(col0 + n) * kRowLd + i]; },
                kTile, sum);
    __syncthreads();
  }
  ForEachAccumulator(row0, col0, sum, [&](int row, int col, float& x) {
    x = row >= col ? p.scale * x : 0.0f;
  });
  StorePatch(sum, ScoreWindow(d_scores, blockIdx.x));
}

template <class T>
struct KeyGradArgs {
  const T *q, *k, *v, *d_o;
  const void* g;
  const float *b, *states, *d_states, *d_scores;
  T *dq, *dk;
  void* dg;
};

using RowTile = float[kChunk * kRowLd];

// Operands of the products with the states, for one V tile.
struct StateTiles {
  RowTile v, d_o, states, d_states;
};

// Operands of the products inside the chunk.
struct PairTiles {
  RowTile q, k, b, d_scores;
};

struct KeyGradShared {
  union {
    StateTiles state;  // used first
    PairTiles pair;
  };
  RowTile dq, dk;               // without the pairs u = t
  float state_sums[kTile];      // rowsum(S dS)
  float key_sums[4][kTile];     // of k 2^(b_e - b) (dS v), 16 tokens each
  float suffix_sums[4][kTile];  // of q dq - k dk, 16 tokens each
};

// This thread's quarter of a row sum of S dS.
__device__ float RowProduct(const KeyGradShared& shared) {
  const int row = threadIdx.x / 4 * kRowLd;
  float sum = 0;
#pragma unroll
  for (int c = threadIdx.x % 4 * 4; c < kTile; c += 16) {
    const auto x = Piece<4>::Load(shared.state.states + row + c);
    const auto y = Piece<4>::Load(shared.state.d_states + row + c);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum += x.lane[i] * y.lane[i];
  }
  return sum;
}

// dq = d_o S^T, dk = v dS^T (no gates yet) and state_sums.
template <class T>
__device__ void MultiplyStates(const Problem& p, const KeyGradArgs<T>& args,
                               const Chunk& chunk, int64_t h, int k0,
                               KeyGradShared& shared, Patch& dq, Patch& dk) {
  const int row0 = PatchRow() * kRowLd, col0 = PatchCol() * kRowLd;
  const int64_t state = chunk.slot * p.H + h;
  float row_product = 0;
  for (int v0 = 0; v0 < p.V; v0 += kTile) {
    LoadTile<kRowLd>(TokenWindow(p, args.v, p.V, chunk, h, v0), shared.state.v);
    LoadTile<kRowLd>(TokenWindow(p, args.d_o, p.V, chunk, h, v0),
                     shared.state.d_o);
    LoadRounded<kRowLd>(StateWindow(p, args.states, state, k0, v0),
                        shared.state.states);
    LoadRounded<kRowLd>(StateWindow(p, args.d_states, state, k0, v0),
                        shared.state.d_states);
    __syncthreads();
    WarpProduct(
        [&](int m, int i) { return shared.state.d_o[row0 + m * kRowLd + i]; },
        [&](int n, int i) {
          return shared.state.states[col0 + n * kRowLd + i];
        },
        kTile, dq);
    WarpProduct(
        [&](int m, int i) { return shared.state.v[row0 + m * kRowLd + i]; },
        [&](int n, int i) {
          return shared.state.d_states[col0 + n * kRowLd + i];
        },
        kTile, dk);
    row_product += RowProduct(shared);
    __syncthreads();
  }
  row_product += __shfl_xor_sync(~0u, row_product, 1);
  row_product += __shfl_xor_sync(~0u, row_product, 2);
  if (threadIdx.x % 4 == 0) shared.state_sums[threadIdx.x / 4] = row_product;
}

// Applies the gates to this warp's patches of d_o S^T and v dS^T, leaves them
// in shared.dq and dk, and sums k dk over the patch's tokens.
__device__ void WriteStatePaths(float scale, Patch& dq, Patch& dk,
                                KeyGradShared& shared) {
  const float* const last = shared.pair.b + (kChunk - 1) * kRowLd;
  float sums[8] = {};  // of the columns this thread has
  int i = 0;
  ForEachAccumulator(PatchRow(), PatchCol(), dq,
                     [&](int row, int col, float x) {
                       const int at = row * kRowLd + col;
                       shared.dq[at] = scale * Exp2(shared.pair.b[at]) * x;
                     });
  ForEachAccumulator(PatchRow(), PatchCol(), dk,
                     [&](int row, int col, float x) {
                       const int at = row * kRowLd + col;
                       x *= Exp2(last[col] - shared.pair.b[at]);
                       shared.dk[at] = x;
                       sums[i / 4 * 2 + i % 2] += shared.pair.k[at] * x;
                       ++i;
                     });
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    for (int distance = 4; distance < 32; distance *= 2) {
      sums[j] += __shfl_xor_sync(~0u, sums[j], distance);
    }
    if (Lane() < 4) {
      const int col = PatchCol() + j / 2 * 8 + Lane() * 2 + j % 2;
      shared.key_sums[Warp() % 4][col] = sums[j];
    }
  }
}

// Adds the pairs u < t of the warp's sub-chunk; a thread has one channel.
__device__ void AddDiagonal(KeyGradShared& shared) {
  const int col = PatchCol() + Lane();
  const int first = PatchRow() * kRowLd + col;
  float q[kSubChunk], k[kSubChunk], b[kSubChunk];
  float dq[kSubChunk] = {}, dk[kSubChunk] = {};
#pragma unroll
  for (int t = 0; t < kSubChunk; ++t) {
    q[t] = shared.pair.q[first + t * kRowLd];
    k[t] = shared.pair.k[first + t * kRowLd];
    b[t] = shared.pair.b[first + t * kRowLd];
  }
#pragma unroll
  for (int t = 1; t < kSubChunk; ++t) {
    const float* const d_scores =
        shared.pair.d_scores + (PatchRow() + t) * kRowLd + PatchRow();
#pragma unroll
    for (int u = 0; u < t; ++u) {
      const float x = d_scores[u] * Exp2(b[t] - b[u]);
      dq[t] += x * k[u];
      dk[u] += x * q[t];
    }
  }
#pragma unroll
  for (int t = 0; t < kSubChunk; ++t) {
    shared.dq[first + t * kRowLd] += dq[t];
    shared.dk[first + t * kRowLd] += dk[t];
  }
}

// Adds the pairs of the warp's sub-chunk with keys of earlier ones, relative to
// the sub-chunk's first row.
__device__ void AddEarlierKeys(KeyGradShared& shared) {
  const int row0 = PatchRow(), col0 = PatchCol();
  const float* const reference = shared.pair.b + row0 * kRowLd;
  Patch sum = {};
  WarpProduct<Precision::kFloat32>(
      [&](int m, int u) {
        return shared.pair.d_scores[(row0 + m) * kRowLd + u];
      },
      [&](int n, int u) {
        const int at = u * kRowLd + col0 + n;
        return shared.pair.k[at] *
               Exp2(reference[col0 + n] - shared.pair.b[at]);
      },
      row0, sum);
  ForEachAccumulator(row0, col0, sum, [&](int row, int col, float x) {
    const int at = row * kRowLd + col;
    shared.dq[at] += x * Exp2(shared.pair.b[at] - reference[col]);
  });
}

// And with queries of later ones, relative to its last row.
__device__ void AddLaterQueries(KeyGradShared& shared) {
  const int row0 = PatchRow(), col0 = PatchCol();
  const int later = row0 + kSubChunk;
  const float* const reference = shared.pair.b + (later - 1) * kRowLd;
  Patch sum = {};
  WarpProduct<Precision::kFloat32>(
      [&](int m, int t) {
        return shared.pair.d_scores[(later + t) * kRowLd + row0 + m];
      },
      [&](int n, int t) {
        const int at = (later + t) * kRowLd + col0 + n;
        return shared.pair.q[at] *
               Exp2(shared.pair.b[at] - reference[col0 + n]);
      },
      kChunk - later, sum);
  ForEachAccumulator(row0, col0, sum, [&](int row, int col, float x) {
    const int at = row * kRowLd + col;
    shared.dk[at] += x * Exp2(reference[col] - shared.pair.b[at]);
  });
}

template <class G>
__device__ void StoreGateGradient(float dg, const void* g, int64_t i,
                                  void* to) {
  const bool is_reset = ToFloat(static_cast<const G*>(g)[i]) == -INFINITY;
  Store(is_reset ? 0.0f : dg, static_cast<G*>(to) + i);
}

// A thread has 16 tokens of one channel.
template <class T>
__device__ void WriteGradients(const Problem& p, const KeyGradArgs<T>& args,
                               const Chunk& chunk, int64_t h, int k0,
                               KeyGradShared& shared) {
  const int col = threadIdx.x % kTile, part = threadIdx.x / kTile;
  const auto difference = [&](int at) {
    return shared.pair.q[at] * shared.dq[at] -
           shared.pair.k[at] * shared.dk[at];
  };
  float sum = 0;
  for (int i = kSubChunk - 1; i >= 0; --i) {
    sum += difference((part * kSubChunk + i) * kRowLd + col);
  }
  shared.suffix_sums[part][col] = sum;
  __syncthreads();

  float dg =
      Exp2(shared.pair.b[(kChunk - 1) * kRowLd + col]) * shared.state_sums[col];
  for (int i = 0; i < 4; ++i) dg += shared.key_sums[i][col];
  for (int i = 3; i > part; --i) dg += shared.suffix_sums[i][col];
  if (k0 + col >= p.K) return;
  for (int i = kSubChunk - 1; i >= 0; --i) {
    const int row = part * kSubChunk + i;
    const int at = row * kRowLd + col;
    dg += difference(at);
    if (row >= chunk.rows) continue;
    const int64_t to = ((chunk.token + row) * p.H + h) * p.K + k0 + col;
    const float self = shared.pair.d_scores[row * kRowLd + row];
    Store(shared.dq[at] + self * shared.pair.k[at], args.dq + to);
    Store(shared.dk[at] + self * shared.pair.q[at], args.dk + to);
    if (p.gate_dtype == DType::kFloat32) {
      StoreGateGradient<float>(dg, args.g, to, args.dg);
    } else {
      StoreGateGradient<__nv_bfloat16>(dg, args.g, to, args.dg);
    }
  }
}

// Between MultiplyStates() and WriteGradients() a warp works on its patch
// alone: 16 tokens, one sub-chunk, and 32 channels.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    KeyGradKernel(const Problem p, const KeyGradArgs<T> args) {
  KeyGradShared& shared = *reinterpret_cast<KeyGradShared*>(SharedFloats());
  const Chunk chunk = FindChunk(p, blockIdx.x / p.H);
  if (chunk.rows <= 0) return;
  const int64_t h = blockIdx.x % p.H;
  const int k0 = blockIdx.y * kTile;

  Patch dq = {}, dk = {};
  MultiplyStates(p, args, chunk, h, k0, shared, dq, dk);
  LoadTile<kRowLd>(TokenWindow(p, args.q, p.K, chunk, h, k0), shared.pair.q);
  LoadTile<kRowLd>(TokenWindow(p, args.k, p.K, chunk, h, k0), shared.pair.k);
  LoadGates(TokenWindow(p, args.b, p.K, chunk, h, k0), shared.pair.b);
  LoadTile<kRowLd>(ScoreWindow(args.d_scores, blockIdx.x),
                   shared.pair.d_scores);
  __syncthreads();
  WriteStatePaths(p.scale, dq, dk, shared);
  __syncwarp();
  AddDiagonal(shared);
  __syncwarp();
  AddEarlierKeys(shared);
  AddLaterQueries(shared);
  __syncthreads();
  WriteGradients(p, args, chunk, h, k0, shared);
}

struct BackwardWorkspace {
  ForwardStages forward;
  float* d_states;  // [slots, H, K, V] at chunk ends
  float* d_scores;  // [slots, H, 64, 64] with scale, 0 above the diagonal
  int64_t bytes;

  BackwardWorkspace(const Problem& p, const ChunkGlaShape& shape, void* base) {
    WorkspaceLayout layout(base);
    forward = ForwardStages::Take(p, shape, &layout);
    d_states = layout.Take<float>(p.slots * p.H * p.K * p.V);
    d_scores = layout.Take<float>(p.slots * p.H * kChunk * kChunk);
    bytes = layout.bytes();
  }
};

template <class T>
cudaError_t Backward(const ChunkGlaBwdCudaArgs& args, cudaStream_t stream) {
  Problem p = MakeProblem(args.shape, args.scale, args.cu_seqlens);
  p.wide = p.wide && AllAligned({args.q, args.k, args.v, args.initial_state,
                                 args.d_o, args.d_final_state, args.dv,
                                 args.d_initial_state, args.workspace});
  const BackwardWorkspace work(p, args.shape, args.workspace);
  const float* const b = work.forward.b;
  const T* const q = static_cast<const T*>(args.q);
  const T* const k = static_cast<const T*>(args.k);
  const T* const v = static_cast<const T*>(args.v);
  const T* const d_o = static_cast<const T*>(args.d_o);

  Stages run;
  run.Run([&] {
    return RunForwardStages(p, q, k, v, args.g, args.initial_state, nullptr,
                            work.forward, stream);
  });
  run.Run([&] {
    return LaunchScan<T, Gating::kQuery>(p, q, d_o, b, args.d_final_state,
                                         work.d_states, args.d_initial_state,
                                         stream);
  });
  run.Run([&] {
    return Launch(ScoreGradKernel<T>, ChunkGrid(p), 0, stream, p, v, d_o,
                  work.d_scores);
  });
  run.Run([&] {
    return LaunchValues<T, Gating::kKey>(p, k, d_o, b, work.d_states,
                                         work.forward.scores,
                                         static_cast<T*>(args.dv), stream);
  });
  run.Run([&] {
    const KeyGradArgs<T> key_grad = {q,
                                     k,
                                     v,
                                     d_o,
                                     args.g,
                                     b,
                                     work.forward.states,
                                     work.d_states,
                                     work.d_scores,
                                     static_cast<T*>(args.dq),
                                     static_cast<T*>(args.dk),
                                     args.dg};
    return Launch(KeyGradKernel<T>, ChunkGrid(p, Tiles(p.K)),
                  sizeof(KeyGradShared), stream, p, key_grad);
  });
  return run.error();
}

}  // namespace

int64_t GeneralBwdWorkspaceBytes(const ChunkGlaShape& shape) {
  return BackwardWorkspace(MakeProblem(shape, 1.0f, nullptr), shape, nullptr)
      .bytes;
}

cudaError_t GeneralBwd(const ChunkGlaBwdCudaArgs& args, cudaStream_t stream) {
  if (args.shape.dtype == DType::kFloat16) {
    return Backward<__half>(args, stream);
  }
  return Backward<__nv_bfloat16>(args, stream);
}

}  // namespace gla::internal
