// Steep channels in the gradient kernel (chunk_gla_sm90_grad.cuh).
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_STEEP_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_STEEP_CUH_

#include "kernels/gla/chunk_gla_sm90_gating.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_shared.cuh"

namespace gla::internal {

// Their gradients within a chunk, in float32 and term by term, eight channels
// at a time. (Their part of the products with dA is below 2^-kMaxLog2Decay of
// what is added here.) dq~ and dk^ become dq and dk; the term of dg takes the
// place of the element's q~ and k^, half its bits each.
template <typename C>
class GradSteep {
 public:
  __device__ GradSteep(const GradArgs& args, GradShared<C>& shared,
                       const GradWork& work, const GradThread& thread)
      : args_(args), shared_(shared), work_(work), thread_(thread) {}

  __device__ bool IsSteep(int c, int channel) const {
    return internal::IsSteep(
        shared_.log_decay[work_.buffer][c][thread_.group * 64 + channel]);
  }

  // Of a chunk, dq~ in q and dk^ in k.
  __device__ void Add(int c, float (&q)[32], float (&k)[32]) const {
    SteepChannels& channels = shared_.steep[thread_.group];
    const int thread = thread_.warp * 32 + thread_.lane;
#pragma unroll 1
    for (int first = 0; first < 64; first += 8) {
      bool any = false;
#pragma unroll 1
      for (int i = 0; i < 8; ++i) any |= IsSteep(c, first + i);
      if (!any) continue;
      NamedBarrier(kGradMainBarrier + thread_.group, 128);
      const bool valid = thread / 2 < work_.RowsOf(c);
      LoadSteepChannels<typename C::Gate>(
          args_, thread, valid,
          work_.KeyOffset<C>(args_.shape.H, thread_.group, c,
                             valid ? thread / 2 : 0) +
              first,
          channels);
      NamedBarrier(kGradMainBarrier + thread_.group, 128);
      AccumulateGates(thread, channels);
      NamedBarrier(kGradMainBarrier + thread_.group, 128);
      // The channels' elements are those of one warp's rows.
      if (thread_.warp == first / 16 && IsSteep(c, first + thread_.lane / 4)) {
        if (first / 8 % 2 == 0) {
          AddChannel<0>(c, q, k);
        } else {
          AddChannel<1>(c, q, k);
        }
      }
      __syncwarp();
    }
  }

 private:
  template <int kRow>
  __device__ void AddChannel(int c, float (&q)[32], float (&k)[32]) const {
    const SteepChannels& channels = shared_.steep[thread_.group];
    const float* const b = channels.b[thread_.lane / 4];
    const __nv_bfloat16* const raw_q = channels.q[thread_.lane / 4];
    const __nv_bfloat16* const raw_k = channels.k[thread_.lane / 4];
    const uint8_t* const d_a = shared_.d_a[2 * c];
    const float scale = args_.scale;
    // In local memory, so that the usual path keeps its registers.
    float values[16][2];
#pragma unroll
    for (int n = 0; n < 16; ++n) {
      values[n][0] = q[n / 2 * 4 + kRow * 2 + n % 2];
      values[n][1] = k[n / 2 * 4 + kRow * 2 + n % 2];
    }
#pragma unroll 1
    for (int n = 0; n < 16; ++n) {
      const int t = thread_.Token(n / 2 * 4 + n % 2);
      const float q_value = values[n][0], k_value = values[n][1];
      float from_keys = 0, from_queries = 0;
#pragma unroll 1
      for (int u = 0; u <= t; ++u) {
        from_keys +=
            Element(d_a, t, u) * __bfloat162float(raw_k[u]) * Exp2(b[t] - b[u]);
      }
#pragma unroll 1
      for (int u = t; u < kChunk; ++u) {
        from_queries +=
            Element(d_a, u, t) * __bfloat162float(raw_q[u]) * Exp2(b[u] - b[t]);
      }
      from_queries *= scale;
      auto& gated = shared_.gated[work_.buffer][thread_.group];
      __nv_bfloat16* const q_operand =
          ElementAt(gated.q[c], t, thread_.Channel(kRow));
      __nv_bfloat16* const k_operand =
          ElementAt(gated.k[c], t, thread_.Channel(kRow));
      const uint32_t term =
          __float_as_uint(__bfloat162float(*q_operand) * q_value +
                          scale * __bfloat162float(raw_q[t]) * from_keys -
                          (__bfloat162float(*k_operand) * k_value +
                           __bfloat162float(raw_k[t]) * from_queries));
      *q_operand = __ushort_as_bfloat16(term >> 16);
      *k_operand = __ushort_as_bfloat16(term & 0xffff);
      values[n][0] = scale * (Exp2(b[t]) * q_value + from_keys);
      values[n][1] = Exp2(b[kChunk - 1] - b[t]) * k_value + from_queries;
    }
#pragma unroll
    for (int n = 0; n < 16; ++n) {
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
  GradShared<C>& shared_;
  const GradWork& work_;
  const GradThread& thread_;
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_STEEP_CUH_
