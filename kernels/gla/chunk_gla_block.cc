#include "kernels/gla/chunk_gla_block.h"

#include <algorithm>

#include "kernels/base/vector_math.h"

namespace gla::internal {

GlaBlock GlaBlock::Slice(int64_t first, int64_t count) const {
  GlaBlock slice = *this;
  slice.tokens = count;
  slice.q += first * qk_stride;
  slice.k += first * qk_stride;
  slice.v += first * v_stride;
  slice.g += first * qk_stride;
  return slice;
}

void GateQueries(const GlaBlock& block, const GatedTile& queries) {
  const __m256 scale = _mm256_set1_ps(block.scale);
  ForEachVector(block.K, [&](int64_t i, auto lanes) {
    __m256 log_decay = _mm256_setzero_ps();
    for (int64_t t = 0; t < block.tokens; ++t) {
      const int64_t in = t * block.qk_stride + i, out = t * block.K + i;
      log_decay = _mm256_add_ps(log_decay, lanes.Load(block.g + in));
      const __m256 decay = Exp8(log_decay);
      const __m256 q = _mm256_mul_ps(scale, lanes.Load(block.q + in));
      lanes.Store(queries.decay + out, decay);
      lanes.Store(queries.value + out, _mm256_mul_ps(q, decay));
    }
  });
}

void GateKeys(const GlaBlock& block, const GatedTile& keys) {
  ForEachVector(block.K, [&](int64_t i, auto lanes) {
    __m256 log_decay = _mm256_setzero_ps();
    for (int64_t t = block.tokens - 1; t >= 0; --t) {
      const int64_t in = t * block.qk_stride + i, out = t * block.K + i;
      const __m256 decay = Exp8(log_decay);
      lanes.Store(keys.decay + out, decay);
      lanes.Store(keys.value + out,
                  _mm256_mul_ps(lanes.Load(block.k + in), decay));
      log_decay = _mm256_add_ps(log_decay, lanes.Load(block.g + in));
    }
  });
}

void GateKeysInverse(const GlaBlock& block, const float* query_decay,
                     const GatedTile& keys) {
  for (int64_t t = 0; t < block.tokens; ++t) {
    const float* k = block.k + t * block.qk_stride;
    const int64_t row = t * block.K;
    ForEachVector(block.K, [&](int64_t i, auto lanes) {
      const __m256 decay =
          _mm256_div_ps(_mm256_set1_ps(1), lanes.Load(query_decay + row + i));
      lanes.Store(keys.decay + row + i, decay);
      lanes.Store(keys.value + row + i,
                  _mm256_mul_ps(lanes.Load(k + i), decay));
    });
  }
}

bool FitsOneFrame(const GlaBlock& block) {
  __m256 least = _mm256_setzero_ps();
  ForEachVector(block.K, [&](int64_t i, auto lanes) {
    __m256 log_decay = _mm256_setzero_ps();
    for (int64_t t = 0; t < block.tokens; ++t) {
      log_decay = _mm256_add_ps(log_decay,
                                lanes.Load(block.g + t * block.qk_stride + i));
    }
    least = _mm256_min_ps(least, log_decay);
  });
  return Max8(_mm256_sub_ps(_mm256_setzero_ps(), least)) <= kMaxLogDecay;
}

void AddQueryGradients(const GlaBlock& block, const GatedTile& queries,
                       const float* d_value, const GlaGradientTiles& grad) {
  const __m256 scale = _mm256_set1_ps(block.scale);
  ForEachVector(block.K, [&](int64_t i, auto lanes) {
    __m256 crossing = _mm256_setzero_ps();
    for (int64_t t = block.tokens - 1; t >= 0; --t) {
      const int64_t at = t * block.K + i;
      const __m256 d = lanes.Load(d_value + at);
      crossing = _mm256_fmadd_ps(lanes.Load(queries.value + at), d, crossing);
      const __m256 factor =
          _mm256_mul_ps(scale, lanes.Load(queries.decay + at));
      lanes.Store(grad.dq + at,
                  _mm256_fmadd_ps(factor, d, lanes.Load(grad.dq + at)));
      lanes.Store(grad.dg + at,
                  _mm256_add_ps(crossing, lanes.Load(grad.dg + at)));
    }
  });
}

void AddKeyGradients(const GlaBlock& block, const GatedTile& keys,
                     const float* d_value, const GlaGradientTiles& grad) {
  ForEachVector(block.K, [&](int64_t i, auto lanes) {
    __m256 crossing = _mm256_setzero_ps();
    for (int64_t t = 0; t < block.tokens; ++t) {
      const int64_t at = t * block.K + i;
      const __m256 d = lanes.Load(d_value + at);
      lanes.Store(grad.dg + at,
                  _mm256_add_ps(crossing, lanes.Load(grad.dg + at)));
      lanes.Store(grad.dk + at, _mm256_fmadd_ps(lanes.Load(keys.decay + at), d,
                                                lanes.Load(grad.dk + at)));
      crossing = _mm256_fmadd_ps(lanes.Load(keys.value + at), d, crossing);
    }
  });
}

void AddFrameGradients(const GlaBlock& block, const GatedTile& queries,
                       const float* d_query, const GatedTile& keys,
                       const float* d_key, const GlaGradientTiles& grad) {
  const __m256 scale = _mm256_set1_ps(block.scale);
  ForEachVector(block.K, [&](int64_t i, auto lanes) {
    __m256 crossing = _mm256_setzero_ps();
    for (int64_t t = block.tokens - 1; t >= 0; --t) {
      const int64_t at = t * block.K + i;
      const __m256 dq = lanes.Load(d_query + at), dk = lanes.Load(d_key + at);
      crossing = _mm256_fmadd_ps(lanes.Load(queries.value + at), dq, crossing);
      crossing = _mm256_fnmadd_ps(lanes.Load(keys.value + at), dk, crossing);
      const __m256 factor =
          _mm256_mul_ps(scale, lanes.Load(queries.decay + at));
      lanes.Store(grad.dq + at,
                  _mm256_fmadd_ps(factor, dq, lanes.Load(grad.dq + at)));
      lanes.Store(grad.dk + at, _mm256_fmadd_ps(lanes.Load(keys.decay + at), dk,
                                                lanes.Load(grad.dk + at)));
      lanes.Store(grad.dg + at,
                  _mm256_add_ps(crossing, lanes.Load(grad.dg + at)));
    }
  });
}

}  // namespace gla::internal
