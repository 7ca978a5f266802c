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
  // Slabs of dA (rows are queries), q~, k^ and the gates in LogUnits.
  const uint8_t* d_a;
  uint8_t *q, *k, *b;
  // If Scaling::kOwnApart, dA's diagonal, of each token, which its slab has
  // not; if Scaling::kHasRest, what rounding left out of q~, k^ and, where
  // query and key are of the same part, of dA.
  const float* own_d_a = nullptr;
  const uint8_t *d_a_rest = nullptr, *q_rest = nullptr, *k_rest = nullptr;
};

// Of 16 tokens (a part) and a channel: the powers of two that dq~ and dk^ have
// been multiplied by, what makes a product of both scales 1, and whether the
// channel is steep there.
struct PartScale {
  float dq, dk;
  float term;
  bool steep;
};

// Operands of a chunk as they are, steep or not for all of its tokens.
struct UnscaledParts {
  static constexpr bool kScaled = false;
  static constexpr bool kOwnApart = true;
  static constexpr bool kHasRest = true;
  static constexpr int kTokens = kChunk;  // that are steep together
  static constexpr int kLogUnits = 512;

  bool steep[2];  // of a thread's rows

  static __device__ float2 Unpack(uint32_t pair) {
    return {LowFloat(pair), HighFloat(pair)};
  }
  static __device__ float Unpack(uint16_t x) {
    return __uint_as_float(uint32_t{x} << 16);
  }
  __device__ float ScoreScale() const { return 1; }
  __device__ PartScale Part(int part, int row) const {
    return {0, 0, 1, steep[row]};
  }
};

// In float32 and term by term, eight channels at a time. (Their part of the
// products with dA is far below what is added here.) dq~ and dk^ become dq and
// dk; the term of dg takes the place of the element's q~ and k^, half its bits
// each.
template <typename Gate, int kSize, typename Scaling>
class GradSteep {
 public:
  __device__ GradSteep(const GradArgs& args, const GradChunk& chunk,
                       const GradThread& thread, const Scaling& scaling,
                       SteepChannels& channels)
      : args_(args),
        chunk_(chunk),
        thread_(thread),
        scaling_(scaling),
        channels_(channels) {}

  // By the 128 threads of a warpgroup, who meet at `meeting`; is_steep(channel)
  // says which are, in any part.
  template <typename Fn>
  __device__ void Add(uint64_t& meeting, Fn is_steep, float (&q)[kSize],
                      float (&k)[kSize]) const {
    const int thread = thread_.warp * 32 + thread_.lane;
    const uint32_t barrier = SharedAddress(&meeting);
#pragma unroll 1
    for (int first = 0; first < 64; first += 8) {
      bool any = false;
#pragma unroll 1
      for (int i = 0; i < 8; ++i) any |= is_steep(first + i);
      if (!any) continue;
      BarrierMeet(barrier);
      const bool valid = thread / 2 < chunk_.rows;
      LoadSteepChannels<Gate>(
          args_, thread, valid,
          chunk_.first + (valid ? thread / 2 : 0) * chunk_.stride + first,
          channels_);
      BarrierMeet(barrier);
      AccumulateGates(thread, channels_);
      BarrierMeet(barrier);
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
    // Where operands are scaled, dA and dq~ have been multiplied by
    // args_.scale.
    const float scale = Scaling::kScaled ? 1 : args_.scale;
    const float score_scale = scaling_.ScoreScale();
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
      const PartScale part = scaling_.Part(n / 4, kRow);
      if (!part.steep) continue;
      const int t = thread_.Token(n / 2 * 4 + n % 2);
      const int first = t / Scaling::kTokens * Scaling::kTokens;
      const int last = first + Scaling::kTokens - 1;
      const float before = first > 0 ? b[first - 1] : 0;
      // Of other tokens: what a token's key and query add for each other needs
      // no gate, and would only cancel in dg.
      float from_keys = 0, from_queries = 0;
#pragma unroll 1
      for (int u = first; u < t; ++u) {
        from_keys += ScoreGradient(t, u) * __bfloat162float(raw_k[u]) *
                     Exp2(b[t] - b[u]);
      }
#pragma unroll 1
      for (int u = t + 1; u <= last; ++u) {
        from_queries += ScoreGradient(u, t) * __bfloat162float(raw_q[u]) *
                        Exp2(b[u] - b[t]);
      }
      from_keys *= score_scale;
      from_queries *= score_scale * scale;
      const int channel = thread_.Channel(kRow);
      const uint32_t term = __float_as_uint(
          part.term *
              (Element(chunk_.q, chunk_.q_rest, t, channel) * values[n][0] -
               Element(chunk_.k, chunk_.k_rest, t, channel) * values[n][1]) +
          scale * __bfloat162float(raw_q[t]) * from_keys -
          __bfloat162float(raw_k[t]) * from_queries);
      *ElementAt(chunk_.q, t, channel) = term >> 16;
      *ElementAt(chunk_.k, t, channel) = term & 0xffff;
      const float own = Scaling::kOwnApart ? chunk_.own_d_a[t]
                                           : ScoreGradient(t, t) * score_scale;
      from_keys += own * __bfloat162float(raw_k[t]);
      from_queries += scale * own * __bfloat162float(raw_q[t]);
      values[n][0] =
          scale * (Exp2(b[t] - before - part.dq) * values[n][0] + from_keys);
      values[n][1] =
          Exp2(b[last] - b[t] - part.dk) * values[n][1] + from_queries;
    }
#pragma unroll
    for (int n = 0; n < kElements; ++n) {
      q[n / 2 * 4 + kRow * 2 + n % 2] = values[n][0];
      k[n / 2 * 4 + kRow * 2 + n % 2] = values[n][1];
    }
  }

  // An element of dA.
  __device__ float ScoreGradient(int query, int key) const {
    if (query / kPartTokens == key / kPartTokens) {
      return Element(chunk_.d_a, chunk_.d_a_rest, query, key);
    }
    return Scaling::Unpack(*reinterpret_cast<const uint16_t*>(
        chunk_.d_a + SlabElement(query, key)));
  }
  // Of a slab and its rest, if there is one.
  static __device__ float Element(const uint8_t* slab, const uint8_t* rest,
                                  int row, int column) {
    const uint32_t offset = SlabElement(row, column);
    const auto unpack = [offset](const uint8_t* from) {
      return Scaling::Unpack(*reinterpret_cast<const uint16_t*>(from + offset));
    };
    if constexpr (Scaling::kHasRest) return unpack(slab) + unpack(rest);
    return unpack(slab);
  }
  static __device__ uint16_t* ElementAt(uint8_t* slab, int row, int column) {
    return reinterpret_cast<uint16_t*>(slab + SlabElement(row, column));
  }

  const GradArgs& args_;
  const GradChunk& chunk_;
  const GradThread& thread_;
  const Scaling& scaling_;
  SteepChannels& channels_;
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_STEEP_CUH_
