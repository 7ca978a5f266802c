// From dq~ and dk^ of a chunk to dq, dk and dg (chunk_gla_sm90_grad.cuh,
// chunk_gla_sm90_backward.cuh).
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_FINISH_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_FINISH_CUH_

#include "kernels/gla/chunk_gla_sm90_gating.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_steep.cuh"

namespace gla::internal {

// -kUnits b, rounded to integers of 16 bits; kMayExceed: it may be larger.
template <int kUnits, bool kMayExceed = true, int kChannels>
__device__ inline Bf16Piece<kChannels> LogUnits(const float (&b)[kChannels]) {
  const auto units = [&b](int i) {
    constexpr float kIntegers = 1 << 23;  // floats from here on are integers
    const float x = fmaf(b[i], -kUnits, kIntegers);
    return __float_as_uint(kMayExceed ? fminf(x, kIntegers + 65535) : x);
  };
  Bf16Piece<kChannels> piece;
#pragma unroll
  for (int i = 0; i < kChannels; i += 2) {
    piece.pairs[i / 2] = __byte_perm(units(i), units(i + 1), 0x5410);
  }
  return piece;
}

// 2^-exponent e^b (if kInverse, e^-b) of one of a pair of such integers. The
// fma is exact where the exponent is an integer: all of it are multiples of 1 /
// kUnits below 2^15.
template <int kUnits, bool kInverse>
__device__ inline float DecayOfUnits(uint32_t pair, int i, float exponent) {
  constexpr uint32_t kIntegers = 0x4b000000;  // 2^23: bits below are integers
  constexpr float kUnit = (kInverse ? 1.0f : -1.0f) / kUnits;
  return Exp2(fmaf(
      __uint_as_float(__byte_perm(pair, kIntegers, i == 0 ? 0x7610 : 0x7632)),
      kUnit, -(1 << 23) * kUnit - exponent));
}

// sums += x y, of eight bf16 numbers each.
__device__ inline void AddProducts(const uint4& x, const uint4& y,
                                   float (&sums)[8]) {
  const uint32_t a[4] = {x.x, x.y, x.z, x.w};
  const uint32_t b[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    sums[2 * j] += LowFloat(a[j]) * LowFloat(b[j]);
    sums[2 * j + 1] += HighFloat(a[j]) * HighFloat(b[j]);
  }
}

// What a main warpgroup does with its accumulators of a chunk, kSize of dq~ and
// kSize of dk^ a thread. The results take the places of q~, k^ and the gates
// (dg of 32-bit gates is stored). `Scaling`, like UnscaledParts, says how the
// operands are scaled, whether they have rests, and whether dA's diagonal is
// apart.
template <typename Gate, int kSize, typename Scaling>
class GradFinish {
 public:
  __device__ GradFinish(const GradArgs& args, const GradChunk& chunk,
                        const GradThread& thread, const Scaling& scaling)
      : args_(args),
        chunk_(chunk),
        thread_(thread),
        scaling_(scaling),
        fragment_(SlabOffset((thread.lane & 7) + ((thread.lane >> 4) << 3),
                             2 * thread.warp + ((thread.lane >> 3) & 1)) +
                  thread.first_token * 128) {}

  // The sum of k^ d over the tokens that the quad has, those of part s times
  // weight(s, row); asked for the last part first.
  template <typename Fn>
  __device__ void KeyFlow(const float (&d)[kSize], Fn weight,
                          float (&sum)[2]) const {
    if (chunk_.rows >= kChunk) {
      AddKeyFlow<true>(d, weight, sum);
    } else {
      AddKeyFlow<false>(d, weight, sum);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sum[i] += __shfl_xor_sync(0xffffffff, sum[i], 1);
      sum[i] += __shfl_xor_sync(0xffffffff, sum[i], 2);
    }
  }

  // dq~ and dk^ to dq and dk, stored, and the terms q~ dq~ - k^ dk^ of dg, in
  // q. Steep channels have passed through GradSteep.
  __device__ void StoreKeys(bool any_steep, float (&q)[kSize],
                            float (&k)[kSize]) const {
    if (!any_steep && chunk_.rows >= kChunk) {
      StoreAllKeys<true>(q, k);
    } else {
      StoreAllKeys<false>(q, k);
    }
  }

  // Terms to gradients: the sum of a token's and all later terms, plus `flow`,
  // to which all are added.
  __device__ void SumTerms(float (&term)[kSize], float (&flow)[2]) const {
    constexpr int kBatch = 4;  // shuffles that are under way together
#pragma unroll
    for (int j = kSize / 4 - 1; j >= 0; j -= kBatch / 2) {
      // Of the lane beside this one, of both, of the quad's other two.
      float beside[kBatch], both[kBatch], others[kBatch];
#pragma unroll
      for (int n = 0; n < kBatch; ++n) {
        const int e = 4 * (j - n / 2) + n % 2 * 2;
        term[e] += term[e + 1];
        beside[n] = __shfl_xor_sync(0xffffffff, term[e], 1);
      }
#pragma unroll
      for (int n = 0; n < kBatch; ++n) {
        const int e = 4 * (j - n / 2) + n % 2 * 2;
        both[n] = term[e] + beside[n];
        others[n] = __shfl_xor_sync(0xffffffff, both[n], 2);
      }
#pragma unroll
      for (int n = 0; n < kBatch; ++n) {
        const int e = 4 * (j - n / 2) + n % 2 * 2;
        float later = flow[n % 2];
        if (thread_.lane % 2 == 0) later += beside[n];
        if (thread_.lane % 4 < 2) later += others[n];
        term[e] += later;
        term[e + 1] += later;
        flow[n % 2] += both[n] + others[n];
      }
    }
  }

  __device__ void StoreGates(bool any_steep, float (&d_g)[kSize]) const {
    if (any_steep) ZeroResets(d_g);
    if constexpr (sizeof(Gate) == 2) {
#pragma unroll
      for (int s = 0; s < kSize / 8; ++s) {
        uint32_t a[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          a[i] = PackBf16(d_g[8 * s + 2 * i], d_g[8 * s + 2 * i + 1]);
        }
        StoreMatrixTransposed(SharedAddress(chunk_.b) + fragment_ + 2048 * s,
                              a);
      }
    } else {
      float* const to = static_cast<float*>(args_.dg);
#pragma unroll
      for (int e = 0; e < kSize; ++e) {
        if (thread_.Token(e) < chunk_.rows) to[Offset(e)] = d_g[e];
      }
    }
  }

 private:
  // kPlain: the sequence has all rows of the chunk, and no channel is steep.
  template <bool kPlain>
  __device__ bool IsRow(int e) const {
    return kPlain || thread_.Token(e) < chunk_.rows;
  }

  template <bool kPlain, typename Fn>
  __device__ void AddKeyFlow(const float (&d)[kSize], Fn weight,
                             float (&sum)[2]) const {
    sum[0] = sum[1] = 0;
#pragma unroll
    for (int s = kSize / 8 - 1; s >= 0; --s) {
      uint32_t x[4], rest[4] = {};
      LoadMatrixTransposed(SharedAddress(chunk_.k) + fragment_ + 2048 * s, x);
      LoadRest(chunk_.k_rest, fragment_ + 2048 * s, rest);
      float of_part[2] = {0, 0};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int e = 8 * s + 2 * i;
        const float2 key = Sum(x[i], rest[i]);
        if (IsRow<kPlain>(e)) of_part[i % 2] += key.x * d[e];
        if (IsRow<kPlain>(e + 1)) of_part[i % 2] += key.y * d[e + 1];
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) sum[i] += weight(s, i) * of_part[i];
    }
  }

  // In two halves, by one copy of the code where they are large: code comes
  // from memory in every kernel's first item. k is not kept.
  static constexpr int kUnrolledHalves = kSize < 32 ? 2 : 1;
  template <bool kPlain>
  __device__ void StoreAllKeys(float (&q)[kSize], float (&k)[kSize]) const {
    uint32_t offset = fragment_;
#pragma unroll kUnrolledHalves
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int s = 0; s < kSize / 16; ++s) {
        const uint32_t q_at = SharedAddress(chunk_.q) + offset + 2048 * s;
        const uint32_t k_at = SharedAddress(chunk_.k) + offset + 2048 * s;
        uint32_t x[4], y[4], b[4], x_rest[4] = {}, y_rest[4] = {};
        LoadMatrixTransposed(q_at, x);
        LoadMatrixTransposed(k_at, y);
        LoadMatrixTransposed(SharedAddress(chunk_.b) + offset + 2048 * s, b);
        LoadRest(chunk_.q_rest, offset + 2048 * s, x_rest);
        LoadRest(chunk_.k_rest, offset + 2048 * s, y_rest);
        float own[2][2] = {};  // [i][j]: of tokens 8 i + j on from the first
        if constexpr (Scaling::kOwnApart) {
          LoadOwn(half * kSize / 2 + 8 * s, own);
        }
        const int part = half * (kSize / 16) + s;
        const PartScale scale[2] = {scaling_.Part(part, 0),
                                    scaling_.Part(part, 1)};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          FinishPair<kPlain>(8 * s + 2 * i, half * kSize / 2, scale[i % 2],
                             Sum(x[i], x_rest[i]), Sum(y[i], y_rest[i]),
                             own[i / 2], b[i], x[i], y[i], q, k);
        }
        StoreMatrixTransposed(q_at, x);
        StoreMatrixTransposed(k_at, y);
      }
      offset += 2048 * (kSize / 16);
#pragma unroll
      for (int e = 0; e < kSize / 2; ++e) {
        const float other = q[e + kSize / 2];
        q[e + kSize / 2] = q[e];
        q[e] = other;
        k[e] = k[e + kSize / 2];
      }
    }
  }

  // The rest of an operand, as LoadMatrixTransposed reads it, if there is one.
  static __device__ void LoadRest(const uint8_t* slab, uint32_t offset,
                                  uint32_t (&rest)[4]) {
    if constexpr (Scaling::kHasRest) {
      LoadMatrixTransposed(SharedAddress(slab) + offset, rest);
    }
  }
  static __device__ float2 Sum(uint32_t pair, uint32_t rest) {
    float2 x = Scaling::Unpack(pair);
    if constexpr (Scaling::kHasRest) {
      const float2 y = Scaling::Unpack(rest);
      x.x += y.x;
      x.y += y.y;
    }
    return x;
  }

  // dA's diagonal for element e's token and the next, and for those 8 on.
  __device__ void LoadOwn(int e, float (&own)[2][2]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 pair = *reinterpret_cast<const float2*>(
          &chunk_.own_d_a[thread_.Token(e + 4 * i)]);
      own[i][0] = pair.x;
      own[i][1] = pair.y;
    }
  }

  // Elements e and e + 1, with their operands, dA's diagonal (if it is apart:
  // then the terms of dg are without it) and gates: x and y, where the operands
  // lay, become dq and dk, q the terms of dg.
  template <bool kPlain>
  __device__ void FinishPair(int e, int before, const PartScale& scale,
                             const float2& query, const float2& key,
                             const float (&own)[2], uint32_t b, uint32_t& x,
                             uint32_t& y, float (&q)[kSize],
                             float (&k)[kSize]) const {
    constexpr int kUnits = Scaling::kLogUnits;
    float term[2], dq[2], dk[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float operand_q = i == 0 ? query.x : query.y;
      const float operand_k = i == 0 ? key.x : key.y;
      dq[i] = q[e + i];
      dk[i] = k[e + i];
      term[i] = operand_q * dq[i] - operand_k * dk[i];
      if constexpr (Scaling::kScaled) term[i] *= scale.term;
      if constexpr (Scaling::kOwnApart) {
        dq[i] += own[i] * operand_k;
        dk[i] += own[i] * operand_q;
      }
      dq[i] *= DecayOfUnits<kUnits, false>(b, i, scale.dq);
      if (!Scaling::kScaled) dq[i] *= args_.scale;
      dk[i] *= DecayOfUnits<kUnits, true>(b, i, scale.dk);
    }
    if (!kPlain && scale.steep) {  // GradSteep has left them so.
      term[0] = __uint_as_float(__byte_perm(x, y, 0x1054));
      term[1] = __uint_as_float(__byte_perm(x, y, 0x3276));
      dq[0] = q[e], dq[1] = q[e + 1];
      dk[0] = k[e], dk[1] = k[e + 1];
    }
    x = PackBf16(dq[0], dq[1]);
    y = PackBf16(dk[0], dk[1]);
    q[e] = IsRow<kPlain>(e + before) ? term[0] : 0;
    q[e + 1] = IsRow<kPlain>(e + 1 + before) ? term[1] : 0;
  }

  // Where element e is in a [B, T, H, K] tensor.
  __device__ int64_t Offset(int e) const {
    return chunk_.first + thread_.Token(e) * chunk_.stride +
           thread_.Channel(e / 2 % 2);
  }

  // dg is 0 where a gate is -inf.
  __device__ void ZeroResets(float (&d_g)[kSize]) const {
    const Gate* const g = static_cast<const Gate*>(args_.g);
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      if (thread_.Token(e) < chunk_.rows &&
          static_cast<float>(g[Offset(e)]) == -INFINITY) {
        d_g[e] = 0;
      }
    }
  }

  const GradArgs& args_;
  const GradChunk& chunk_;
  const GradThread& thread_;
  const Scaling& scaling_;
  const uint32_t fragment_;  // this lane's place in 16 rows of a slab, as
                             // ldmatrix and stmatrix want it
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_FINISH_CUH_
