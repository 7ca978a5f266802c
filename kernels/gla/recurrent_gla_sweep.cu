// One block per (sequence, head, slice of V) keeps all K rows of its columns in
// registers for all tokens, so a state moves once in and once out per call.
// That is what decoding takes: 8 K V bytes per head and little else.
//
// A thread owns up to 4 neighbouring columns (16 bytes) of every 32nd row; all
// its loads are in flight at once. How sums over K are added is the same for
// every slice width and however the tokens are split over calls
// (recurrent_gla_step.cuh), so is every bit of the result.
#include <algorithm>
#include <cmath>

#include "kernels/base/ceil_div.h"
#include "kernels/device/elements.cuh"
#include "kernels/gla/recurrent_gla_decode.h"
#include "kernels/gla/recurrent_gla_head.cuh"
#include "kernels/gla/recurrent_gla_step.cuh"
#include "kernels/gla/recurrent_gla_sweep.h"

namespace gla::internal {
namespace {

__device__ int64_t StepToken(const SweepParams& p, const Head& head,
                             int64_t step) {
  return p.backward ? head.tokens - 1 - step : step;
}

// Shared memory of a block, for `tile` tokens.
template <int kRows, int kWidth, int kColumnThreads>
struct SweepTile {
  static constexpr int kK = kRows * kParts;
  static constexpr int kColumns = kColumnThreads * kWidth;
  static constexpr int kThreads = kParts * kColumnThreads;
  static constexpr int kWarps = kThreads / kWarpThreads;

  static int Bytes(int tile) {
    return tile * (3 * kK + (1 + kWarps) * kColumns) * sizeof(float);
  }
  __device__ SweepTile(float* shared, int tile)
      : query(shared),
        key(query + tile * kK),
        decay(key + tile * kK),
        value(decay + tile * kK),
        sums(value + tile * kColumns) {}

  float *query, *key, *decay;  // [tile, kK]; query and key zero past K
  float* value;                // [tile, kColumns]
  float* sums;                 // [tile, kWarps, kColumns] of the warps
};

// What a thread loads of a token: rows threadIdx.x, + kThreads, ... and one
// column.
template <typename Tile>
struct TokenInputs {
  static constexpr int kRows = (Tile::kK + Tile::kThreads - 1) / Tile::kThreads;
  uint32_t query[kRows] = {}, key[kRows] = {}, g[kRows] = {};
  uint32_t value = 0;

  // Of token t; `gate_token` < 0: no gate.
  __device__ void Load(const SweepParams& p, const Head& head, int64_t t,
                       int64_t gate_token, int first_column) {
    const int K = p.shape.K, V = p.shape.V;
    const DType dtype = p.shape.dtype, gate_dtype = p.shape.gate_dtype;
    const int64_t row = TokenRow(p.shape, head, t, K);
    const int64_t gate_row = TokenRow(p.shape, head, gate_token, K);
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int k = threadIdx.x + j * Tile::kThreads;
      if (k >= K) continue;
      query[j] = LoadBits(p.query, dtype, row + k);
      key[j] = LoadBits(p.key, dtype, row + k);
      if (gate_token >= 0) g[j] = LoadBits(p.g, gate_dtype, gate_row + k);
    }
    const int column = first_column + threadIdx.x;
    if (threadIdx.x < Tile::kColumns && column < V) {
      value = LoadBits(p.value, dtype, TokenRow(p.shape, head, t, V) + column);
    }
  }

  // To row i of the tile.
  __device__ void Store(const SweepParams& p, int i, const Tile& tile) const {
    const DType dtype = p.shape.dtype;
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int k = threadIdx.x + j * Tile::kThreads;
      if (k >= Tile::kK) continue;
      const int at = i * Tile::kK + k;
      tile.query[at] = p.query_scale * BitsToFloat(query[j], dtype);
      tile.key[at] = p.key_scale * BitsToFloat(key[j], dtype);
      tile.decay[at] = expf(BitsToFloat(g[j], p.shape.gate_dtype));
    }
    if (threadIdx.x < Tile::kColumns) {
      tile.value[i * Tile::kColumns + threadIdx.x] = BitsToFloat(value, dtype);
    }
  }
};

// What a step's token needs.
template <typename Tile>
__device__ TokenInputs<Tile> LoadStep(const SweepParams& p, const Head& head,
                                      int64_t step, int first_column) {
  const int64_t t = StepToken(p, head, step);
  int64_t gate_token = t;
  if (p.backward) gate_token = t + 1 < head.tokens ? t + 1 : -1;
  TokenInputs<Tile> inputs;
  inputs.Load(p, head, t, gate_token, first_column);
  return inputs;
}

// Writes the outputs of `count` steps.
template <typename Tile>
__device__ void WriteOutputs(const SweepParams& p, const Head& head,
                             int64_t done, int count, int first_column,
                             const Tile& tile) {
  for (int j = threadIdx.x; j < count * Tile::kColumns; j += Tile::kThreads) {
    const int i = j / Tile::kColumns, column = j % Tile::kColumns;
    if (first_column + column >= p.shape.V) continue;
    const float sum = AddWarps<Tile::kWarps, Tile::kColumns>(
        tile.sums + i * Tile::kWarps * Tile::kColumns + column);
    const int64_t t = StepToken(p, head, done + i);
    StoreElement(sum, p.out, p.shape.dtype,
                 TokenRow(p.shape, head, t, p.shape.V) + first_column + column);
  }
}

template <int kRows, int kWidth, int kColumnThreads>
__global__ void __launch_bounds__(kParts* kColumnThreads,
                                  kRows* kWidth > 32 ? 16 / kColumnThreads
                                                     : 32 / kColumnThreads)
    SweepKernel(const SweepParams p, const int tile_tokens) {
  using Tile = SweepTile<kRows, kWidth, kColumnThreads>;
  extern __shared__ float4 shared[];
  const Tile tile(reinterpret_cast<float*>(shared), tile_tokens);
  const int K = p.shape.K, V = p.shape.V;
  const uint32_t slices = (V + Tile::kColumns - 1) / Tile::kColumns;
  const int first_column = blockIdx.x % slices * Tile::kColumns;
  const Head head = HeadAt(p.shape, p.cu_seqlens, blockIdx.x / slices);
  const int part = threadIdx.x / kColumnThreads;
  const int column = threadIdx.x % kColumnThreads * kWidth;  // in the slice
  const int warp = threadIdx.x / kWarpThreads;

  const bool in_range = first_column + column < V;
  const int64_t slot = p.slots == nullptr ? head.n : p.slots[head.n];
  const int64_t corner = StateOffset(p.shape, slot, head.h) +
                         static_cast<int64_t>(part) * V + first_column + column;
  const int64_t row_step = static_cast<int64_t>(kParts) * V;
  // Before the state, which everything else would have to wait behind.
  TokenInputs<Tile> inputs;
  if (head.tokens > 0) inputs = LoadStep<Tile>(p, head, 0, first_column);
  Lanes<kWidth> state[kRows] = {};
  if (p.first_state != nullptr && in_range) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (part + r * kParts < K) {
        state[r] = LoadState(p.first_state + corner + r * row_step, state[r]);
      }
    }
  }

  int64_t done = 0;
  do {
    const int count =
        min(static_cast<int64_t>(tile_tokens), head.tokens - done);
    for (int i = 0; i < count; ++i) {
      if (done + i > 0) {
        inputs = LoadStep<Tile>(p, head, done + i, first_column);
      }
      inputs.Store(p, i, tile);
    }
    __syncthreads();
    for (int i = 0; i < count; ++i) {
      const int row = i * Tile::kK + part;
      Lanes<kWidth> sum = SweepStep<kRows>(
          tile.query + row, tile.key + row, tile.decay + row,
          LoadLanes<kWidth>(tile.value + i * Tile::kColumns + column), state);
      AddPartsOfWarp<kWidth, kColumnThreads>(&sum);
      if (threadIdx.x % kWarpThreads < kColumnThreads) {
        StoreLanes(sum, tile.sums + (i * Tile::kWarps + warp) * Tile::kColumns +
                            column);
      }
    }
    done += count;
    if (done == head.tokens && p.last_state != nullptr && in_range) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (part + r * kParts < K) {
          StoreState(state[r], p.last_state + corner + r * row_step);
        }
      }
    }
    __syncthreads();
    WriteOutputs(p, head, done - count, count, first_column, tile);
  } while (done < head.tokens);
}

// Tokens staged together: few, to leave shared memory to more blocks.
constexpr int kTileTokens = 4;

template <int kRows, int kWidth, int kColumnThreads>
cudaError_t LaunchSweep(const SweepParams& p, cudaStream_t stream) {
  using Tile = SweepTile<kRows, kWidth, kColumnThreads>;
  const int tile_tokens = std::min<int64_t>(kTileTokens, p.shape.T);
  const int64_t blocks =
      p.shape.N * p.shape.H * CeilDiv(p.shape.V, Tile::kColumns);
  SweepKernel<kRows, kWidth, kColumnThreads>
      <<<blocks, Tile::kThreads, Tile::Bytes(tile_tokens), stream>>>(
          p, tile_tokens);
  return cudaGetLastError();
}

// Threads side by side in a slice of V: as wide as possible while the blocks
// still cover the GPU about twice. Bits do not depend on it.
int ColumnThreads(int64_t heads, int64_t V, int width) {
  for (const int threads : {16, 8}) {
    if (heads * CeilDiv(V, threads * width) >= kEnoughBlocks) return threads;
  }
  return 4;
}

template <int kRows, int kWidth>
cudaError_t SweepOfWidth(const SweepParams& p, cudaStream_t stream) {
  switch (ColumnThreads(p.shape.N * p.shape.H, p.shape.V, kWidth)) {
    case 16:
      return LaunchSweep<kRows, kWidth, 16>(p, stream);
    case 8:
      return LaunchSweep<kRows, kWidth, 8>(p, stream);
    default:
      return LaunchSweep<kRows, kWidth, 4>(p, stream);
  }
}

template <int kRows>
cudaError_t SweepOfRows(const SweepParams& p, cudaStream_t stream) {
  const bool packed =
      Aligned16(p.shape.V * sizeof(float), {p.first_state, p.last_state});
  return packed ? SweepOfWidth<kRows, 4>(p, stream)
                : SweepOfWidth<kRows, 1>(p, stream);
}

}  // namespace

cudaError_t Sweep(const SweepParams& p, cudaStream_t stream) {
  if (HasDecodeKernel(p)) return Decode(p, stream);
  if (p.shape.K <= 2 * kParts) return SweepOfRows<2>(p, stream);
  if (p.shape.K <= 4 * kParts) return SweepOfRows<4>(p, stream);
  if (p.shape.K <= 8 * kParts) return SweepOfRows<8>(p, stream);
  return SweepOfRows<16>(p, stream);
}

}  // namespace gla::internal
