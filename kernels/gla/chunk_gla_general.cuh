// Pieces of the general path: which tokens a block works on, 64 x 64 tiles in
// shared memory, and tensor-core products of them.
//
// All arithmetic is float32; products run on tensor cores in TF32. A TF32
// number has the range of float32 and the fraction of fp16, so q, k, v and d_o
// are exact operands in both element types, and no operand overflows. Loads and
// stores are the only code that knows the element type.
//
// Blocks have 256 threads. Warp w computes the patch of a 64 x 64 result that
// starts at row 16 (w % 4) and column 32 (w / 4).
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_GENERAL_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_GENERAL_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/gla/chunk_gla_general.h"

namespace gla::internal {

constexpr int kChunk = 64;  // tokens
constexpr int kTile = 64;   // channels
constexpr int kSubChunk = 16;
constexpr int kThreads = 256;

// Floats from one row of a tile to the next. 68: no bank conflicts when a
// product runs along the rows; 72: when it runs down the columns.
constexpr int kRowLd = 68, kColLd = 72;
constexpr int kTileFloats = kChunk * kColLd;

// What every kernel of a call needs to know.
struct Problem {
  const int32_t* cu_seqlens;  // or null
  int64_t T, N, H;
  int K, V;
  int64_t slots;  // upper bound of the number of chunks
  float scale;
  bool wide;  // K, V and all addresses allow 16-byte accesses
  DType gate_dtype;
};

// ---- Chunks ----
// Tokens are numbered through the batch. Chunk j of sequence n has slot
// start(n) / 64 + n + j: slots of different chunks differ and stay below
// `slots`, and nobody has to add up the chunks of earlier sequences. Some slots
// have no chunk.

struct Chunk {
  int64_t token;  // the first one
  int64_t slot;
  int rows;  // tokens; <= 0: no chunk
};

__device__ inline int64_t SequenceStart(const Problem& p, int64_t n) {
  return p.cu_seqlens != nullptr ? p.cu_seqlens[n] : n * p.T;
}

__device__ inline int64_t FirstSlot(const Problem& p, int64_t n) {
  return SequenceStart(p, n) / kChunk + n;
}

__device__ inline int64_t NumChunks(const Problem& p, int64_t n) {
  const int64_t tokens = SequenceStart(p, n + 1) - SequenceStart(p, n);
  return (tokens + kChunk - 1) / kChunk;
}

__device__ inline Chunk ChunkOfSequence(const Problem& p, int64_t n,
                                        int64_t j) {
  Chunk chunk;
  chunk.token = SequenceStart(p, n) + j * kChunk;
  chunk.slot = FirstSlot(p, n) + j;
  const int64_t left = SequenceStart(p, n + 1) - chunk.token;
  chunk.rows = static_cast<int>(left < kChunk ? left : kChunk);
  return chunk;
}

// The chunk in `slot`: of the last sequence whose first slot is not later.
__device__ inline Chunk FindChunk(const Problem& p, int64_t slot) {
  int64_t n = 0, end = p.N;
  while (end - n > 1) {
    const int64_t middle = n + (end - n) / 2;
    if (FirstSlot(p, middle) <= slot) {
      n = middle;
    } else {
      end = middle;
    }
  }
  return ChunkOfSequence(p, n, slot - FirstSlot(p, n));
}

// ---- Elements ----

__device__ inline float ToFloat(float x) { return x; }
__device__ inline float ToFloat(__half x) { return __half2float(x); }
__device__ inline float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ inline void Store(float x, float* to) { *to = x; }
__device__ inline void Store(float x, __half* to) { *to = __float2half_rn(x); }
__device__ inline void Store(float x, __nv_bfloat16* to) {
  *to = __float2bfloat16_rn(x);
}

__device__ inline void StorePair(float x, float y, float* to) {
  *reinterpret_cast<float2*>(to) = make_float2(x, y);
}
__device__ inline void StorePair(float x, float y, __half* to) {
  *reinterpret_cast<__half2*>(to) = __floats2half2_rn(x, y);
}
__device__ inline void StorePair(float x, float y, __nv_bfloat16* to) {
  *reinterpret_cast<__nv_bfloat162*>(to) = __floats2bfloat162_rn(x, y);
}

// 2^x; 0 below the normal range.
__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The nearest TF32 number.
__device__ inline float RoundToTf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return __uint_as_float(y);
}

// kWidth consecutive elements: one, or 16-byte accesses.
template <int kWidth>
struct Piece {
  float lane[kWidth];

  template <class T>
  __device__ static Piece Load(const T* from) {
    Piece piece;
    if constexpr (kWidth == 1) {
      piece.lane[0] = ToFloat(*from);
    } else {
      alignas(16) T raw[kWidth];
#pragma unroll
      for (int i = 0; i < static_cast<int>(sizeof(raw)) / 16; ++i) {
        reinterpret_cast<uint4*>(raw)[i] =
            reinterpret_cast<const uint4*>(from)[i];
      }
#pragma unroll
      for (int i = 0; i < kWidth; ++i) piece.lane[i] = ToFloat(raw[i]);
    }
    return piece;
  }

  __device__ void Store(float* to) const {
    if constexpr (kWidth == 1) {
      *to = lane[0];
    } else {
#pragma unroll
      for (int i = 0; i < kWidth; i += 4) {
        *reinterpret_cast<float4*>(to + i) =
            make_float4(lane[i], lane[i + 1], lane[i + 2], lane[i + 3]);
      }
    }
  }
};

// ---- Windows: parts of matrices in global memory ----

template <class T>
struct Window {
  T* data;
  int64_t stride;
  int rows, cols;  // those that exist, at most 64
  bool wide;

  __device__ bool Has(int row, int col) const {
    return row < rows && col < cols;
  }
  __device__ T* At(int row, int col) const { return data + row * stride + col; }
};

__device__ inline int TileWidth(int channels, int first) {
  return channels - first < kTile ? channels - first : kTile;
}

// Channels from `first` on of a chunk of a [tokens, H, channels] tensor.
template <class T>
__device__ Window<T> TokenWindow(const Problem& p, T* x, int channels,
                                 const Chunk& chunk, int64_t h, int first) {
  return {x + (chunk.token * p.H + h) * channels + first, p.H * channels,
          chunk.rows, TileWidth(channels, first), p.wide};
}

// A tile of matrix i of [.., K, V].
template <class T>
__device__ Window<T> StateWindow(const Problem& p, T* states, int64_t i, int k0,
                                 int v0) {
  return {states + (i * p.K + k0) * p.V + v0, p.V, TileWidth(p.K, k0),
          TileWidth(p.V, v0), p.wide};
}

// Matrix i of [.., 64, 64].
template <class T>
__device__ Window<T> ScoreWindow(T* scores, int64_t i) {
  return {scores + i * kChunk * kChunk, kChunk, kChunk, kChunk, true};
}

// ---- Tiles: 64 x 64 floats in shared memory, zero where there is no data ----

// f(row, col) for the pieces of a tile that are this thread's.
template <int kWidth, class F>
__device__ void ForEachPiece(F f) {
  constexpr int kPerRow = kTile / kWidth;
#pragma unroll 4
  for (int i = 0; i < kChunk * kPerRow / kThreads; ++i) {
    const int piece = threadIdx.x + i * kThreads;
    f(piece / kPerRow, piece % kPerRow * kWidth);
  }
}

template <int kWidth, int kLd, bool kRound, class T>
__device__ void LoadPieces(const Window<const T>& from, float* tile) {
  ForEachPiece<kWidth>([&](int row, int col) {
    Piece<kWidth> piece = {};
    if (from.Has(row, col)) piece = Piece<kWidth>::Load(from.At(row, col));
    if constexpr (kRound) {
#pragma unroll
      for (float& x : piece.lane) x = RoundToTf32(x);
    }
    piece.Store(tile + row * kLd + col);
  });
}

template <int kLd, class T>
__device__ void LoadTile(const Window<const T>& from, float* tile) {
  if (from.wide) {
    LoadPieces<16 / sizeof(T), kLd, false>(from, tile);
  } else {
    LoadPieces<1, kLd, false>(from, tile);
  }
}

// Rounded to TF32.
template <int kLd>
__device__ void LoadRounded(const Window<const float>& from, float* tile) {
  if (from.wide) {
    LoadPieces<4, kLd, true>(from, tile);
  } else {
    LoadPieces<1, kLd, true>(from, tile);
  }
}

template <int kWidth>
__device__ void LoadGatePieces(const Window<const float>& b, float* tile) {
  ForEachPiece<kWidth>([&](int row, int col) {
    Piece<kWidth> piece = {};
    if (col < b.cols) {
      const int source = row < b.rows ? row : b.rows - 1;
      piece = Piece<kWidth>::Load(b.At(source, col));
    }
    piece.Store(tile + row * kRowLd + col);
  });
}

// Cumulative gates. Rows past the end repeat the last one, so that differences
// of later and earlier rows stay <= 0 and row 63 belongs to the chunk's end.
__device__ inline void LoadGates(const Window<const float>& b, float* tile) {
  if (b.wide) {
    LoadGatePieces<4>(b, tile);
  } else {
    LoadGatePieces<1>(b, tile);
  }
}

// How the states see the tokens of a chunk. kQuery: scale x 2^b, decayed from
// the chunk's start; kKey: x 2^(b_last - b), decayed to its end.
enum class Gating { kQuery, kKey };

template <int kWidth, int kLd, Gating kGating, class T>
__device__ void LoadGatedPieces(const Window<const T>& x,
                                const Window<const float>& b, float scale,
                                float* tile) {
  ForEachPiece<kWidth>([&](int row, int col) {
    Piece<kWidth> piece = {};
    if (x.Has(row, col)) {
      piece = Piece<kWidth>::Load(x.At(row, col));
      const auto gate = Piece<kWidth>::Load(b.At(row, col));
      Piece<kWidth> last = {};
      if constexpr (kGating == Gating::kKey) {
        last = Piece<kWidth>::Load(b.At(b.rows - 1, col));
      }
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const float factor = kGating == Gating::kQuery
                                 ? scale * Exp2(gate.lane[i])
                                 : Exp2(last.lane[i] - gate.lane[i]);
        piece.lane[i] = RoundToTf32(piece.lane[i] * factor);
      }
    }
    piece.Store(tile + row * kLd + col);
  });
}

template <int kLd, Gating kGating, class T>
__device__ void LoadGated(const Window<const T>& x,
                          const Window<const float>& b, float scale,
                          float* tile) {
  if (x.wide) {
    LoadGatedPieces<16 / sizeof(T), kLd, kGating>(x, b, scale, tile);
  } else {
    LoadGatedPieces<1, kLd, kGating>(x, b, scale, tile);
  }
}

// ---- Products ----

__device__ inline int Warp() { return threadIdx.x / 32; }
__device__ inline int Lane() { return threadIdx.x % 32; }
// This warp's patch.
__device__ inline int PatchRow() { return Warp() % 4 * 16; }
__device__ inline int PatchCol() { return Warp() / 4 * 32; }

// kBlocks 16 x 8 accumulators side by side, as mma.sync deals them out.
template <int kBlocks>
using Accumulators = float[kBlocks][4];
using Patch = Accumulators<4>;

// d += a b with a 16 x 8 and b 8 x 8. Volatile: all lanes have to take part, so
// it must not move into a branch that only some of them take.
__device__ inline void Mma(const float (&a)[4], const float (&b)[2],
                           float (&d)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])),
        "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

// high + low is x up to the last bits of float32.
template <int kSize>
__device__ void SplitTf32(const float (&x)[kSize], float (&high)[kSize],
                          float (&low)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    high[i] = RoundToTf32(x[i]);
    low[i] = RoundToTf32(x[i] - high[i]);
  }
}

enum class Precision {
  kTf32,     // operands are TF32 numbers
  kFloat32,  // operands are any floats; three times the work
};

// sum(m, n) += sum over i < depth of a(m, i) b(n, i), m < 16, n < 8 kBlocks.
// depth is a multiple of 8; a and b are functions.
template <Precision kPrecision = Precision::kTf32, int kBlocks, class A,
          class B>
__device__ void WarpProduct(A a, B b, int depth, float (&sum)[kBlocks][4]) {
  const int major = Lane() / 4, minor = Lane() % 4;
#pragma unroll 2
  for (int i = 0; i < depth; i += 8) {
    const float x[4] = {a(major, i + minor), a(major + 8, i + minor),
                        a(major, i + minor + 4), a(major + 8, i + minor + 4)};
    [[maybe_unused]] float x_high[4], x_low[4];
    if constexpr (kPrecision == Precision::kFloat32) {
      SplitTf32(x, x_high, x_low);
    }
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) {
      const float y[2] = {b(8 * n + major, i + minor),
                          b(8 * n + major, i + minor + 4)};
      if constexpr (kPrecision == Precision::kTf32) {
        Mma(x, y, sum[n]);
      } else {
        float y_high[2], y_low[2];
        SplitTf32(y, y_high, y_low);
        Mma(x_low, y_high, sum[n]);
        Mma(x_high, y_low, sum[n]);
        Mma(x_high, y_high, sum[n]);
      }
    }
  }
}

// f(row, col, &x) for what this thread has of 16 x (8 kBlocks) accumulators
// that start at (row, col).
template <int kBlocks, class F>
__device__ void ForEachAccumulator(int row, int col, float (&x)[kBlocks][4],
                                   F f) {
  row += Lane() / 4;
  col += Lane() % 4 * 2;
#pragma unroll
  for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      f(row + i / 2 * 8, col + 8 * n + i % 2, x[n][i]);
    }
  }
}

template <class T>
__device__ void StorePatch(const Patch& patch, const Window<T>& to) {
  const int first_row = PatchRow() + Lane() / 4;
  const int first_col = PatchCol() + Lane() % 4 * 2;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const int row = first_row + i / 2 * 8, col = first_col + 8 * n;
      if (to.wide) {
        if (to.Has(row, col)) {
          StorePair(patch[n][i], patch[n][i + 1], to.At(row, col));
        }
      } else {
        if (to.Has(row, col)) Store(patch[n][i], to.At(row, col));
        if (to.Has(row, col + 1)) Store(patch[n][i + 1], to.At(row, col + 1));
      }
    }
  }
}

__device__ inline void LoadPatch(const Window<const float>& from,
                                 Patch& patch) {
  ForEachAccumulator(PatchRow(), PatchCol(), patch,
                     [&](int row, int col, float& x) {
                       x = from.Has(row, col) ? *from.At(row, col) : 0.0f;
                     });
}

// Dynamic shared memory.
__device__ inline float* SharedFloats() {
  extern __shared__ float4 general_shared[];
  return reinterpret_cast<float*>(general_shared);
}

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_GENERAL_CUH_
