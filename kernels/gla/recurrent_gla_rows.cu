// A warp owns kWarpRows rows of a head's state, or of its gradient, with all of
// V in registers for all tokens, lane l the columns l, l + 32, ... So dq, dk
// and dg are sums within a warp. With X_t the gradient that reaches S_t, its
// contribution to o_t included,
//
//   dq_t = scale S_t do_t      QueryGradKernel, forward in time
//   dk_t = X_t v_t             KeyGradKernel, backward in time
//   dg_t = exp(g_t) <S_{t-1}, X_t> = dg_{t+1} + q_t dq_t - k_t dk_t  (per row).
//
// The last form needs no states, but its terms cancel when gates are strong. So
// what q_t and k_t add for each other, the same in both products, is left out
// of them, and QueryGradKernel saves S_{t-1} at every AnchorPeriod-th token of
// a sequence, where KeyGradKernel takes the middle form and starts afresh.
#include <cmath>

#include "kernels/base/ceil_div.h"
#include "kernels/device/block_sum.cuh"
#include "kernels/device/elements.cuh"
#include "kernels/gla/recurrent_gla_head.cuh"
#include "kernels/gla/recurrent_gla_rows.h"

namespace gla::internal {
namespace {

constexpr int kWarpRows = 4;
constexpr int kRowWarps = 4;
constexpr int kBlockRows = kWarpRows * kRowWarps;
constexpr int kRowThreads = kRowWarps * kWarpThreads;
constexpr int kRowTile = 8;  // tokens staged in shared memory at a time

// Whether a sequence has an anchor at its token t; periods are powers of two.
__device__ bool IsAnchor(int64_t t, int period) {
  return (t & (period - 1)) == 0;
}

// Where that anchor is. (The next sequence's lie behind: from one sequence to
// the next, begin / period + n grows by at least the number of anchors.)
__device__ int64_t AnchorIndex(const Head& head, int64_t t, int period) {
  return head.begin / period + head.n + t / period;
}

// Shared memory of a block.
template <int kLaneColumns>
struct RowTile {
  static constexpr int kV = kLaneColumns * kWarpThreads;
  float value[kRowTile][kV];  // those past V are zero
  float d_out[kRowTile][kV];
  float query[kRowTile][kBlockRows];  // query and key are zero past K
  float key[kRowTile][kBlockRows];
  float decay[kRowTile][kBlockRows];
  float dq[kRowTile][kBlockRows];  // backward only
};

// Fills the tile with steps [done, done + count).
template <bool kBackward, int kLaneColumns>
__device__ void StageRows(const RowParams& p, const Head& head, int64_t done,
                          int count, int first_row,
                          RowTile<kLaneColumns>* tile) {
  constexpr int kV = RowTile<kLaneColumns>::kV;
  const RecurrentGlaBwdCudaArgs& args = p.args;
  const RecurrentGlaShape& shape = args.shape;
  const auto token = [&](int i) {
    return kBackward ? head.tokens - 1 - (done + i) : done + i;
  };
#pragma unroll 4
  for (int j = threadIdx.x; j < count * kV; j += kRowThreads) {
    const int i = j / kV, column = j % kV;
    const int64_t at = TokenRow(shape, head, token(i), shape.V) + column;
    uint32_t value = 0, d_out = 0;
    if (column < shape.V) {
      value = LoadBits(args.v, shape.dtype, at);
      d_out = LoadBits(args.d_o, shape.dtype, at);
    }
    tile->value[i][column] = BitsToFloat(value, shape.dtype);
    tile->d_out[i][column] = BitsToFloat(d_out, shape.dtype);
  }
  static_assert(kRowTile * kBlockRows <= kRowThreads);
  const int i = threadIdx.x / kBlockRows, r = threadIdx.x % kBlockRows;
  if (i >= count) return;
  const int64_t at = TokenRow(shape, head, token(i), shape.K) + first_row + r;
  uint32_t query = 0, key = 0, g = 0;
  float dq = 0;
  if (first_row + r < shape.K) {
    query = LoadBits(args.q, shape.dtype, at);
    key = LoadBits(args.k, shape.dtype, at);
    g = LoadBits(args.g, shape.gate_dtype, at);
    if (kBackward) dq = p.dq[at];
  }
  tile->query[i][r] = BitsToFloat(query, shape.dtype);
  tile->key[i][r] = BitsToFloat(key, shape.dtype);
  tile->decay[i][r] = expf(BitsToFloat(g, shape.gate_dtype));
  tile->dq[i][r] = dq;
}

// This warp's rows of a [K, V] matrix, one after the other in registers.
template <int kLaneColumns>
struct WarpRows {
  float x[kWarpRows][kLaneColumns];

  // `matrix` may be null: zero.
  __device__ void Load(const float* matrix, int row, int K, int V) {
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
#pragma unroll
      for (int j = 0; j < kLaneColumns; ++j) {
        const int column = Column(j);
        const bool given = matrix != nullptr && row + r < K && column < V;
        x[r][j] =
            given ? matrix[static_cast<int64_t>(row + r) * V + column] : 0.0f;
      }
    }
  }
  __device__ void Store(float* matrix, int row, int K, int V) const {
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
#pragma unroll
      for (int j = 0; j < kLaneColumns; ++j) {
        const int column = Column(j);
        if (row + r < K && column < V) {
          matrix[static_cast<int64_t>(row + r) * V + column] = x[r][j];
        }
      }
    }
  }
  // Lane r < kWarpRows gets <this row r, matrix row r>.
  __device__ float DotRows(const float* matrix, int row, int K, int V) const {
    float sums[kWarpRows] = {};
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
#pragma unroll
      for (int j = 0; j < kLaneColumns; ++j) {
        const int column = Column(j);
        if (row + r < K && column < V) {
          sums[r] = fmaf(matrix[static_cast<int64_t>(row + r) * V + column],
                         x[r][j], sums[r]);
        }
      }
    }
    return SumsToLanes(sums);
  }

  // Lane r < kWarpRows gets the sum of sums[r] over the warp.
  static __device__ float SumsToLanes(const float (&sums)[kWarpRows]) {
    float mine = 0;
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      const float sum = WarpSum(sums[r]);
      if (threadIdx.x % kWarpThreads == r) mine = sum;
    }
    return mine;
  }
  static __device__ int Column(int j) {
    return threadIdx.x % kWarpThreads + j * kWarpThreads;
  }
};

// rows = decay rows + key value^T. Lane r gets <decay rows r, other>, and all
// lanes <value, other>.
struct RowSums {
  float past, own;
};
template <int kLaneColumns>
__device__ RowSums RowStep(const float* decay, const float* key,
                           const float* value, const float* other,
                           WarpRows<kLaneColumns>* rows) {
  float sums[kWarpRows] = {}, own = 0;
#pragma unroll
  for (int j = 0; j < kLaneColumns; ++j) {
    const int column = rows->Column(j);
    const float v = value[column], o = other[column];
    own = fmaf(v, o, own);
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      float& s = rows->x[r][j];
      s *= decay[r];
      sums[r] = fmaf(s, o, sums[r]);
      s = fmaf(key[r], v, s);
    }
  }
  return {rows->SumsToLanes(sums), WarpSum(own)};
}

template <int kLaneColumns>
__global__ void __launch_bounds__(kRowThreads)
    QueryGradKernel(const RowParams p, const int period) {
  __shared__ RowTile<kLaneColumns> tile;
  const RecurrentGlaBwdCudaArgs& args = p.args;
  const RecurrentGlaShape& shape = args.shape;
  const int K = shape.K, V = shape.V;
  const uint32_t row_blocks = (K + kBlockRows - 1) / kBlockRows;
  const Head head = HeadAt(shape, args.cu_seqlens, blockIdx.x / row_blocks);
  const int first_row = blockIdx.x % row_blocks * kBlockRows;
  const int warp_row = threadIdx.x / kWarpThreads * kWarpRows;
  const int row = first_row + warp_row;
  const int lane = threadIdx.x % kWarpThreads;
  const bool writes = lane < kWarpRows && row + lane < K;
  const int my_row = warp_row + lane % kWarpRows;  // in the tile

  const int64_t state_offset = StateOffset(shape, head.n, head.h);
  WarpRows<kLaneColumns> state;
  state.Load(args.initial_state == nullptr ? nullptr
                                           : args.initial_state + state_offset,
             row, K, V);
  for (int64_t done = 0; done < head.tokens; done += kRowTile) {
    const int count = min(static_cast<int64_t>(kRowTile), head.tokens - done);
    __syncthreads();
    StageRows<false>(p, head, done, count, first_row, &tile);
    __syncthreads();
    for (int i = 0; i < count; ++i) {
      const int64_t t = done + i;
      if (IsAnchor(t, period)) {
        const int64_t anchor = AnchorIndex(head, t, period);
        state.Store(p.anchors + StateOffset(shape, anchor, head.h), row, K, V);
      }
      if (t == head.tokens - 1 && args.d_final_state != nullptr) {
        const float last =
            tile.decay[i][my_row] *
            state.DotRows(args.d_final_state + state_offset, row, K, V);
        if (writes) {
          p.last_dg[(head.n * shape.H + head.h) * K + row + lane] = last;
        }
      }
      const RowSums sums =
          RowStep(tile.decay[i] + warp_row, tile.key[i] + warp_row,
                  tile.value[i], tile.d_out[i], &state);
      if (writes) {
        const int64_t at = TokenRow(shape, head, t, K) + row + lane;
        p.dq[at] = args.scale * sums.past;
        StoreElement(args.scale * (sums.past + tile.key[i][my_row] * sums.own),
                     args.dq, shape.dtype, at);
      }
    }
  }
}

template <int kLaneColumns>
__global__ void __launch_bounds__(kRowThreads)
    KeyGradKernel(const RowParams p, const int period) {
  __shared__ RowTile<kLaneColumns> tile;
  const RecurrentGlaBwdCudaArgs& args = p.args;
  const RecurrentGlaShape& shape = args.shape;
  const int K = shape.K, V = shape.V;
  const uint32_t row_blocks = (K + kBlockRows - 1) / kBlockRows;
  const Head head = HeadAt(shape, args.cu_seqlens, blockIdx.x / row_blocks);
  const int first_row = blockIdx.x % row_blocks * kBlockRows;
  const int warp_row = threadIdx.x / kWarpThreads * kWarpRows;
  const int row = first_row + warp_row;
  const int lane = threadIdx.x % kWarpThreads;
  const bool writes = lane < kWarpRows && row + lane < K;
  const int my_row = warp_row + lane % kWarpRows;  // in the tile

  const int64_t state_offset = StateOffset(shape, head.n, head.h);
  WarpRows<kLaneColumns> d_state;
  float dg = 0;  // of the row of this lane, if it writes
  d_state.Load(args.d_final_state == nullptr
                   ? nullptr
                   : args.d_final_state + state_offset,
               row, K, V);
  if (args.d_final_state != nullptr && head.tokens > 0 && writes) {
    dg = p.last_dg[(head.n * shape.H + head.h) * K + row + lane];
  }
  // What remains to be applied of the gates of the token before in this sweep.
  float decay[kWarpRows];
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) decay[r] = 1;

  for (int64_t done = 0; done < head.tokens; done += kRowTile) {
    const int count = min(static_cast<int64_t>(kRowTile), head.tokens - done);
    __syncthreads();
    StageRows<true>(p, head, done, count, first_row, &tile);
    __syncthreads();
    for (int i = 0; i < count; ++i) {
      const int64_t t = head.tokens - 1 - (done + i);
      float query[kWarpRows];
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r) {
        query[r] = args.scale * tile.query[i][warp_row + r];
      }
      const RowSums dk =
          RowStep(decay, query, tile.d_out[i], tile.value[i], &d_state);
      const float my_query = tile.query[i][my_row];
      const float my_decay = tile.decay[i][my_row];
      if (IsAnchor(t, period)) {
        const int64_t anchor = AnchorIndex(head, t, period);
        dg = my_decay *
             d_state.DotRows(p.anchors + StateOffset(shape, anchor, head.h),
                             row, K, V);
      } else {
        dg += my_query * tile.dq[i][my_row];
        // The last token's is not in what QueryGradKernel left.
        if (t + 1 < head.tokens) dg -= tile.key[i][my_row] * dk.past;
      }
      if (my_decay == 0) dg = 0;
      if (writes) {
        const int64_t at = TokenRow(shape, head, t, K) + row + lane;
        StoreElement(dk.past + args.scale * my_query * dk.own, args.dk,
                     shape.dtype, at);
        StoreElement(dg, args.dg, shape.gate_dtype, at);
      }
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r) {
        decay[r] = tile.decay[i][warp_row + r];
      }
    }
  }
  if (args.d_initial_state == nullptr) return;
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
#pragma unroll
    for (int j = 0; j < kLaneColumns; ++j) d_state.x[r][j] *= decay[r];
  }
  d_state.Store(args.d_initial_state + state_offset, row, K, V);
}

template <int kLaneColumns>
cudaError_t LaunchRows(const RowParams& p, cudaStream_t stream) {
  const RecurrentGlaShape& shape = p.args.shape;
  const int64_t blocks = shape.N * shape.H * CeilDiv(shape.K, kBlockRows);
  const int period = AnchorPeriod(shape);
  QueryGradKernel<kLaneColumns><<<blocks, kRowThreads, 0, stream>>>(p, period);
  if (cudaError_t error = cudaGetLastError(); error != cudaSuccess) {
    return error;
  }
  KeyGradKernel<kLaneColumns><<<blocks, kRowThreads, 0, stream>>>(p, period);
  return cudaGetLastError();
}

}  // namespace

// The power of two that keeps the anchors to about 8 (K + V) floats per token.
int AnchorPeriod(const RecurrentGlaShape& shape) {
  int period = 1;
  while (shape.K * shape.V > period * 8 * (shape.K + shape.V)) period *= 2;
  return period;
}

// Those of all sequences lie one after the other with gaps; see AnchorIndex.
int64_t AnchorCount(const RecurrentGlaShape& shape) {
  return shape.B * shape.T / AnchorPeriod(shape) + shape.N;
}

cudaError_t RowSweeps(const RowParams& p, cudaStream_t stream) {
  const int64_t V = p.args.shape.V;
  if (V <= 2 * kWarpThreads) return LaunchRows<2>(p, stream);
  if (V <= 4 * kWarpThreads) return LaunchRows<4>(p, stream);
  if (V <= 8 * kWarpThreads) return LaunchRows<8>(p, stream);
  return LaunchRows<16>(p, stream);
}

}  // namespace gla::internal
