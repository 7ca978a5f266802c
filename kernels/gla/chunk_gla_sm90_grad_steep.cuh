// Steep channels' gradients within a chunk (chunk_gla_sm90_grad.cuh,
// chunk_gla_sm90_backward.cuh).
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_STEEP_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_STEEP_CUH_

#include "kernels/gla/chunk_gla_sm90_steep.cuh"

namespace gla::internal {

// A thread of a main warpgroup, and what it has of a chunk's dq~ and dk^: rows
// are channels, columns tokens.
struct GradThread {
  int warp, lane;
  int first_token = 0;

  // The channels of its rows.
  __device__ int Channel(int i) const { return warp * 16 + lane / 4 + 8 * i; }
  // The token of element e, which is in row e / 2 % 2.
  __device__ int Token(int e) const {
    return first_token + e / 4 * 8 + lane % 4 * 2 + e % 2;
  }
};

// 64 channels of a chunk.
struct GradChunk {
  int64_t first;   // offset of the first token in a [B, T, H, K] tensor
  int64_t stride;  // H K, from token to token
  int rows;        // that the sequence has; may be more than a chunk
  // Slabs of dA (rows are queries), q~, k^ and -kLogUnits times the gates.
  const uint8_t* d_a;
  uint8_t *q, *k, *b;
};

// In float32 and term by term, eight channels at a time. (Their part of the
// products with dA is below 2^-kMaxLog2Decay of what is added here.) dq~ and
// dk^ become dq and dk; the term of dg takes the place of the element's q~ and
// k^, half its bits each.
template <typename Gate, int kSize>
class GradSteep {
 public:
  __device__ GradSteep(const GradArgs& args, const GradChunk& chunk,
                       const GradThread& thread, SteepChannels& channels)
      : args_(args), chunk_(chunk), thread_(thread), channels_(channels) {}

  // By the 128 threads of a warpgroup, together at named barrier `barrier`;
  // is_steep(channel) says which.
  template <typename Fn>
  __device__ void Add(int barrier, Fn is_steep, float (&q)[kSize],
                      float (&k)[kSize]) const {
    const int thread = thread_.warp * 32 + thread_.lane;
#pragma unroll 1
    for (int first = 0; first < 64; first += 8) {
      bool any = false;
#pragma unroll 1
      for (int i = 0; i < 8; ++i) any |= is_steep(first + i);
      if (!any) continue;
      NamedBarrier(barrier, 128);
      const bool valid = thread / 2 < chunk_.rows;
      LoadSteepChannels<Gate>(
          args_, thread, valid,
          chunk_.first + (valid ? thread / 2 : 0) * chunk_.stride + first,
          channels_);
      NamedBarrier(barrier, 128);
      AccumulateGates(thread, channels_);
      NamedBarrier(barrier, 128);
      // The channels' elements are those of one warp's rows.
      if (thread_.warp == first / 16 && is_steep(first + thread_.lane / 4)) {
        if (first / 8 % 2 == 0) {
          AddChannel<0>(q, k);
        } else {
          AddChannel<1>(q, k);
        }
      }
      __syncwarp();
    }
  }

 private:
  template <int kRow>
  __device__ void AddChannel(float (&q)[kSize], float (&k)[kSize]) const {
    const float* const b = channels_.b[thread_.lane / 4];
    const __nv_bfloat16* const raw_q = channels_.q[thread_.lane / 4];
    const __nv_bfloat16* const raw_k = channels_.k[thread_.lane / 4];
    const float scale = args_.scale;
    // In local memory, so that the usual path keeps its registers.
    constexpr int kElements = kSize / 2;  // of a row
    float values[kElements][2];
#pragma unroll
    for (int n = 0; n < kElements; ++n) {
      values[n][0] = q[n / 2 * 4 + kRow * 2 + n % 2];
      values[n][1] = k[n / 2 * 4 + kRow * 2 + n % 2];
    }
#pragma unroll 1
    for (int n = 0; n < kElements; ++n) {
      const int t = thread_.Token(n / 2 * 4 + n % 2);
      const float q_value = values[n][0], k_value = values[n][1];
      // Of other tokens: what a token's key and query add for each other needs
      // no gate, and would only cancel in dg.
      float from_keys = 0, from_queries = 0;
#pragma unroll 1
      for (int u = 0; u < t; ++u) {
        from_keys += Element(chunk_.d_a, t, u) * __bfloat162float(raw_k[u]) *
                     Exp2(b[t] - b[u]);
      }
#pragma unroll 1
      for (int u = t + 1; u < kChunk; ++u) {
        from_queries += Element(chunk_.d_a, u, t) * __bfloat162float(raw_q[u]) *
                        Exp2(b[u] - b[t]);
      }
      from_queries *= scale;
      __nv_bfloat16* const q_operand =
          ElementAt(chunk_.q, t, thread_.Channel(kRow));
      __nv_bfloat16* const k_operand =
          ElementAt(chunk_.k, t, thread_.Channel(kRow));
      const uint32_t term =
          __float_as_uint(__bfloat162float(*q_operand) * q_value +
                          scale * __bfloat162float(raw_q[t]) * from_keys -
                          (__bfloat162float(*k_operand) * k_value +
                           __bfloat162float(raw_k[t]) * from_queries));
      *q_operand = __ushort_as_bfloat16(term >> 16);
      *k_operand = __ushort_as_bfloat16(term & 0xffff);
      const float own = Element(chunk_.d_a, t, t);
      from_keys += own * __bfloat162float(raw_k[t]);
      from_queries += scale * own * __bfloat162float(raw_q[t]);
      values[n][0] = scale * (Exp2(b[t]) * q_value + from_keys);
      values[n][1] = Exp2(b[kChunk - 1] - b[t]) * k_value + from_queries;
    }
#pragma unroll
    for (int n = 0; n < kElements; ++n) {
      q[n / 2 * 4 + kRow * 2 + n % 2] = values[n][0];
      k[n / 2 * 4 + kRow * 2 + n % 2] = values[n][1];
    }
  }

  static __device__ float Element(const uint8_t* slab, int row, int column) {
    return __bfloat162float(*reinterpret_cast<const __nv_bfloat16*>(
        slab + SlabElement(row, column)));
  }
  static __device__ __nv_bfloat16* ElementAt(uint8_t* slab, int row,
                                             int column) {
    return reinterpret_cast<__nv_bfloat16*>(slab + SlabElement(row, column));
  }

  const GradArgs& args_;
  const GradChunk& chunk_;
  const GradThread& thread_;
  SteepChannels& channels_;
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_STEEP_CUH_
