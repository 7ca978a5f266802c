// A block moves 64 columns of one state and does hardly more, so what it does
// before its first load and behind its last is time in which its share of the
// multiprocessor, half or all, moves nothing. Hence a kernel beside
// recurrent_gla_sweep.cu: types, K and the one token are known when compiled,
// so that nothing spills and nothing is checked; sequence and head come from
// the grid, without divisions; and once its slot is there, a state is found
// with 32-bit numbers.
#include <cmath>

#include "kernels/device/dependent_launch_sm90.cuh"
#include "kernels/device/elements.cuh"
#include "kernels/gla/recurrent_gla_decode.h"
#include "kernels/gla/recurrent_gla_step.cuh"

namespace gla::internal {
namespace {

constexpr int kWidth = 4;           // columns of a thread
constexpr int kColumnThreads = 16;  // side by side
constexpr int kColumns = kWidth * kColumnThreads;
constexpr int kThreads = kParts * kColumnThreads;
constexpr int kWarps = kThreads / kWarpThreads;
constexpr int64_t kMostOfGrid = 65535;  // in its second and third dimension

// Sequences from both ends in turn: states of neighbouring slots, at work at
// once, crowd on some of the memory's banks.
__device__ uint32_t BlockSequence() {
  const uint32_t i = blockIdx.z;
  return i % 2 == 0 ? i / 2 : gridDim.z - 1 - i / 2;
}

template <int kRows, typename Gate>
__global__ void __launch_bounds__(kThreads, kRows > 8 ? 1 : 2)
    DecodeKernel(const SweepParams p) {
  LetNextKernelStart();
  AwaitKernelBefore();
  using T = __nv_bfloat16;
  constexpr uint32_t K = kRows * kParts;
  __shared__ float query[K], key[K], decay[K];
  alignas(16) __shared__ float value[kColumns];
  alignas(16) __shared__ float sums[kWarps][kColumns];
  const uint32_t V = p.shape.V, H = p.shape.H;
  const uint32_t n = BlockSequence(), h = blockIdx.y;
  uint32_t slot = n;
  if (p.slots != nullptr) slot = p.slots[n];

  // Before the state, which everything else would have to wait behind.
  const uint32_t thread = threadIdx.x;
  const uint32_t part = thread / kColumnThreads;
  const uint32_t column = thread % kColumnThreads * kWidth;  // in the slice
  const uint32_t first_column = blockIdx.x * kColumns;
  const uint64_t head = n * H + h;
  T q, k, v;
  Gate g;
  if (thread < K) {
    q = static_cast<const T*>(p.query)[head * K + thread];
    k = static_cast<const T*>(p.key)[head * K + thread];
    g = static_cast<const Gate*>(p.g)[head * K + thread];
  }
  if (thread < kColumns) {
    v = static_cast<const T*>(p.value)[head * V + first_column + thread];
  }

  const uint64_t state_offset = static_cast<uint64_t>(slot * H + h) * (K * V);
  const uint32_t corner = part * V + first_column + column;
  const float* const from = p.first_state + corner + state_offset;
  float* const to = p.last_state + corner + state_offset;
  Lanes<kWidth> state[kRows];
#pragma unroll
  for (uint32_t r = 0; r < kRows; ++r) {
    state[r] = LoadState(from + r * kParts * V, state[r]);
  }
  if (thread < K) {
    query[thread] = p.query_scale * ToFloat(q);
    key[thread] = p.key_scale * ToFloat(k);
    decay[thread] = expf(ToFloat(g));
  }
  if (thread < kColumns) value[thread] = ToFloat(v);
  __syncthreads();

  Lanes<kWidth> sum =
      SweepStep<kRows>(query + part, key + part, decay + part,
                       LoadLanes<kWidth>(value + column), state);
#pragma unroll
  for (uint32_t r = 0; r < kRows; ++r) {
    StoreState(state[r], to + r * kParts * V);
  }
  AddPartsOfWarp<kWidth, kColumnThreads>(&sum);
  if (thread % kWarpThreads < kColumnThreads) {
    StoreLanes(sum, &sums[thread / kWarpThreads][column]);
  }
  __syncthreads();
  if (thread < kColumns) {
    FromFloat(AddWarps<kWarps, kColumns>(&sums[0][thread]),
              static_cast<T*>(p.out) + head * V + first_column + thread);
  }
}

template <int kRows>
cudaError_t DecodeOfRows(const SweepParams& p, cudaStream_t stream) {
  const dim3 grid(p.shape.V / kColumns, p.shape.H, p.shape.N);
  const auto kernel = p.shape.gate_dtype == DType::kBFloat16
                          ? DecodeKernel<kRows, __nv_bfloat16>
                          : DecodeKernel<kRows, float>;
  return LaunchKernel(/*dependent=*/true, grid, kThreads, /*shared_bytes=*/0,
                      stream, kernel, p);
}

}  // namespace

bool HasDecodeKernel(const SweepParams& p) {
  const RecurrentGlaShape& s = p.shape;
  const bool one_token = s.T == 1 && p.cu_seqlens == nullptr && !p.backward;
  const bool types =
      s.dtype == DType::kBFloat16 &&
      (s.gate_dtype == DType::kBFloat16 || s.gate_dtype == DType::kFloat32);
  const bool whole = (s.K == 64 || s.K == 128 || s.K == 256 || s.K == 512) &&
                     s.V % kColumns == 0;
  const bool states =
      p.first_state != nullptr && p.last_state != nullptr &&
      Aligned16(s.V * sizeof(float), {p.first_state, p.last_state});
  const int64_t blocks = s.N * s.H * (s.V / kColumns);
  return one_token && types && whole && states && blocks >= kEnoughBlocks &&
         s.N <= kMostOfGrid && s.H <= kMostOfGrid;
}

cudaError_t Decode(const SweepParams& p, cudaStream_t stream) {
  if (p.shape.K == 64) return DecodeOfRows<2>(p, stream);
  if (p.shape.K == 128) return DecodeOfRows<4>(p, stream);
  if (p.shape.K == 256) return DecodeOfRows<8>(p, stream);
  return DecodeOfRows<16>(p, stream);
}

}  // namespace gla::internal
