// Forward pass of the general path, and the stages that the backward pass
// repeats. Four kernels of 256 threads; per head and token they move
//
//   GateKernel   per (chunk, head, K tile)       reads g, writes b (4 K bytes)
//   ScanKernel   per (head of a sequence, K tile, V tile), chunk after chunk:
//                reads k, b once per V tile and v once per K tile, writes S at
//                chunk starts (K V / 16 bytes)
//   ScoreKernel  per (chunk, head)               reads q, k, b, writes A (256
//                bytes)
//   ValueKernel  per (chunk, head, V tile)       reads S, A and v once and q, b
//                once per V tile, writes o
//
// A_tu = scale sum_i q_ti k_ui 2^(b_ti - b_ui), u <= t, in blocks of 16 x 16.
// Below the diagonal blocks 2^(b_t - b_r) 2^(b_r - b_u) with r the first row of
// t's block: both factors are <= 1 and the product runs on tensor cores. In the
// diagonal blocks every pair has its own exponential, in float32. fla cuts A up
// the same way.
#include "kernels/gla/chunk_gla_general_stages.cuh"

namespace gla::internal {
namespace {

// e^-120 is 0 in float32, so larger resets need no larger (or infinite) gates.
constexpr float kMinGate = -120.0f;
constexpr float kLog2E = 1.4426950408889634f;

// A thread adds up 16 tokens of one channel.
template <class G>
__global__ void __launch_bounds__(kThreads)
    GateKernel(const Problem p, const G* g, float* b) {
  constexpr int kParts = kThreads / kTile;
  constexpr int kPartRows = kChunk / kParts;
  __shared__ float part_sums[kParts][kTile];
  const Chunk chunk = FindChunk(p, blockIdx.x / p.H);
  if (chunk.rows <= 0) return;
  const int64_t h = blockIdx.x % p.H;
  const int k0 = blockIdx.y * kTile;
  const auto from = TokenWindow(p, g, p.K, chunk, h, k0);
  const auto to = TokenWindow(p, b, p.K, chunk, h, k0);
  const int col = threadIdx.x % kTile, part = threadIdx.x / kTile;

  float sums[kPartRows];
#pragma unroll
  for (int i = 0; i < kPartRows; ++i) {
    const int row = part * kPartRows + i;
    sums[i] = from.Has(row, col)
                  ? fmaxf(ToFloat(*from.At(row, col)), kMinGate) * kLog2E
                  : 0.0f;
  }
#pragma unroll
  for (int i = 1; i < kPartRows; ++i) sums[i] += sums[i - 1];
  part_sums[part][col] = sums[kPartRows - 1];
  __syncthreads();
  float before = 0;
  for (int i = 0; i < part; ++i) before += part_sums[i][col];
#pragma unroll
  for (int i = 0; i < kPartRows; ++i) {
    const int row = part * kPartRows + i;
    if (to.Has(row, col)) *to.At(row, col) = before + sums[i];
  }
}

// q, k and b of one K tile.
struct ScoreTiles {
  float q[kChunk * kRowLd], k[kChunk * kRowLd], b[kChunk * kRowLd];
};

// The 136 pairs of a diagonal block, as pairs {t, (t + d) % 16} with d <= 8:
// two warps, three pairs per lane.
class DiagonalPairs {
 public:
  __device__ void AddTile(const ScoreTiles& tiles) {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      if (!Exists(i)) continue;
      const int query = Later(i) * kRowLd, key = Earlier(i) * kRowLd;
#pragma unroll 4
      for (int c = 0; c < kTile; c += 4) {
        const auto q = Piece<4>::Load(tiles.q + query + c);
        const auto k = Piece<4>::Load(tiles.k + key + c);
        const auto b_query = Piece<4>::Load(tiles.b + query + c);
        const auto b_key = Piece<4>::Load(tiles.b + key + c);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sum_[i] +=
              q.lane[j] * k.lane[j] * Exp2(b_query.lane[j] - b_key.lane[j]);
        }
      }
    }
  }

  __device__ void Write(float scale, float* scores) const {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      if (Exists(i)) {
        scores[Later(i) * kRowLd + Earlier(i)] = scale * sum_[i];
      }
    }
  }

 private:
  __device__ static int Token() { return Lane() % kSubChunk; }
  __device__ static int Distance(int i) {
    return Lane() / kSubChunk + Warp() / 4 * 2 + 4 * i;
  }
  __device__ static int Other(int i) {
    return (Token() + Distance(i)) % kSubChunk;
  }
  // At distance 8 each pair would come twice.
  __device__ static bool Exists(int i) {
    return Distance(i) < 8 || (Distance(i) == 8 && Token() < 8);
  }
  __device__ static int Later(int i) {
    return Warp() % 4 * kSubChunk + max(Token(), Other(i));
  }
  __device__ static int Earlier(int i) {
    return Warp() % 4 * kSubChunk + min(Token(), Other(i));
  }

  float sum_[3] = {};
};

// One of the six blocks below the diagonal blocks. Warps 2 and 3 have none:
// warps 4, 5, 6, 7, 0, 1 have (1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2).
class LowerBlock {
 public:
  __device__ LowerBlock() {
    const int i = (Warp() + 4) % 8;
    exists_ = i < 6;
    const int query_block = i >= 3 ? 3 : i >= 1 ? 2 : 1;
    query_ = query_block * kSubChunk;
    key_ = (i - query_block * (query_block - 1) / 2) * kSubChunk;
  }

  __device__ void AddTile(const ScoreTiles& tiles) {
    if (!exists_) return;
    const float* const reference = tiles.b + query_ * kRowLd;
    WarpProduct(
        [&](int m, int c) {
          const int i = (query_ + m) * kRowLd + c;
          return RoundToTf32(tiles.q[i] * Exp2(tiles.b[i] - reference[c]));
        },
        [&](int n, int c) {
          const int i = (key_ + n) * kRowLd + c;
          return RoundToTf32(tiles.k[i] * Exp2(reference[c] - tiles.b[i]));
        },
        kTile, sum_);
  }

  __device__ void Write(float scale, float* scores) {
    if (!exists_) return;
    ForEachAccumulator(query_, key_, sum_, [&](int row, int col, float x) {
      scores[row * kRowLd + col] = scale * x;
    });
  }

 private:
  bool exists_;
  int query_, key_;  // first rows
  Accumulators<2> sum_ = {};
};

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    ScoreKernel(const Problem p, const T* q, const T* k, const float* b,
                float* scores) {
  ScoreTiles& tiles = *reinterpret_cast<ScoreTiles*>(SharedFloats());
  const Chunk chunk = FindChunk(p, blockIdx.x / p.H);
  if (chunk.rows <= 0) return;
  const int64_t h = blockIdx.x % p.H;
  DiagonalPairs pairs;
  LowerBlock block;
  for (int k0 = 0; k0 < p.K; k0 += kTile) {
    LoadTile<kRowLd>(TokenWindow(p, q, p.K, chunk, h, k0), tiles.q);
    LoadTile<kRowLd>(TokenWindow(p, k, p.K, chunk, h, k0), tiles.k);
    LoadGates(TokenWindow(p, b, p.K, chunk, h, k0), tiles.b);
    __syncthreads();
    block.AddTile(tiles);
    pairs.AddTile(tiles);
    __syncthreads();
  }

  float* const tile = tiles.q;
  ForEachPiece<4>(
      [&](int row, int col) { Piece<4>{}.Store(tile + row * kRowLd + col); });
  __syncthreads();
  pairs.Write(p.scale, tile);
  block.Write(p.scale, tile);
  __syncthreads();
  const auto to = ScoreWindow(scores, blockIdx.x);
  ForEachPiece<4>([&](int row, int col) {
    Piece<4>::Load(tile + row * kRowLd + col).Store(to.At(row, col));
  });
}

cudaError_t LaunchGates(const Problem& p, const void* g, float* b,
                        cudaStream_t stream) {
  const dim3 grid = ChunkGrid(p, Tiles(p.K));
  if (p.gate_dtype == DType::kFloat32) {
    return Launch(GateKernel<float>, grid, 0, stream, p,
                  static_cast<const float*>(g), b);
  }
  return Launch(GateKernel<__nv_bfloat16>, grid, 0, stream, p,
                static_cast<const __nv_bfloat16*>(g), b);
}

struct ForwardWorkspace {
  ForwardStages stages;
  int64_t bytes;

  ForwardWorkspace(const Problem& p, const ChunkGlaShape& shape, void* base) {
    WorkspaceLayout layout(base);
    stages = ForwardStages::Take(p, shape, &layout);
    bytes = layout.bytes();
  }
};

template <class T>
cudaError_t Forward(const ChunkGlaFwdCudaArgs& args, cudaStream_t stream) {
  Problem p = MakeProblem(args.shape, args.scale, args.cu_seqlens);
  p.wide = p.wide && AllAligned({args.q, args.k, args.v, args.initial_state,
                                 args.o, args.final_state, args.workspace});
  const ForwardStages stages =
      ForwardWorkspace(p, args.shape, args.workspace).stages;
  const T* const q = static_cast<const T*>(args.q);
  const T* const v = static_cast<const T*>(args.v);
  const cudaError_t error =
      RunForwardStages(p, q, static_cast<const T*>(args.k), v, args.g,
                       args.initial_state, args.final_state, stages, stream);
  if (error != cudaSuccess) return error;
  return LaunchValues<T, Gating::kQuery>(p, q, v, stages.b, stages.states,
                                         stages.scores, static_cast<T*>(args.o),
                                         stream);
}

}  // namespace

template <class T>
cudaError_t RunForwardStages(const Problem& p, const T* q, const T* k,
                             const T* v, const void* g,
                             const float* initial_state, float* final_state,
                             const ForwardStages& stages, cudaStream_t stream) {
  Stages run;
  run.Run([&] { return LaunchGates(p, g, stages.b, stream); });
  run.Run([&] {
    return LaunchScan<T, Gating::kKey>(p, k, v, stages.b, initial_state,
                                       stages.states, final_state, stream);
  });
  run.Run([&] {
    return Launch(ScoreKernel<T>, ChunkGrid(p), sizeof(ScoreTiles), stream, p,
                  q, k, stages.b, stages.scores);
  });
  return run.error();
}

template cudaError_t RunForwardStages(const Problem&, const __half*,
                                      const __half*, const __half*, const void*,
                                      const float*, float*,
                                      const ForwardStages&, cudaStream_t);
template cudaError_t RunForwardStages(const Problem&, const __nv_bfloat16*,
                                      const __nv_bfloat16*,
                                      const __nv_bfloat16*, const void*,
                                      const float*, float*,
                                      const ForwardStages&, cudaStream_t);

int64_t GeneralFwdWorkspaceBytes(const ChunkGlaShape& shape) {
  return ForwardWorkspace(MakeProblem(shape, 1.0f, nullptr), shape, nullptr)
      .bytes;
}

cudaError_t GeneralFwd(const ChunkGlaFwdCudaArgs& args, cudaStream_t stream) {
  if (args.shape.dtype == DType::kFloat16) {
    return Forward<__half>(args, stream);
  }
  return Forward<__nv_bfloat16>(args, stream);
}

}  // namespace gla::internal
