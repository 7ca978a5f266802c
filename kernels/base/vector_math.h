// Eight floats at a time: the elementary functions of the model and the loops
// that apply them to arrays of any length. Needs AVX2 and FMA (x86-64-v3).
//
// Every lane's result depends on that lane's input alone, so an element has the
// same bits wherever it stands in an array. Errors below are relative to the
// exact value and were measured over the whole range by vector_math_test.
// NaN in gives NaN out.
#ifndef GLA_KERNELS_BASE_VECTOR_MATH_H_
#define GLA_KERNELS_BASE_VECTOR_MATH_H_

#include <immintrin.h>

#include <cstdint>
#include <limits>

namespace gla {

inline constexpr int kLanes = 8;

// ---------------------------------------------------------------------------
// Arrays of any length.

// How a loop step reads and writes memory: all eight lanes, or the first few.
struct FullLanes {
  __m256 Load(const float* p) const { return _mm256_loadu_ps(p); }
  void Store(float* p, __m256 x) const { _mm256_storeu_ps(p, x); }
};
class TailLanes {
 public:
  explicit TailLanes(int64_t count)  // 0 <= count < kLanes
      : mask_(_mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                                 _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))) {}
  // Zero in the lanes that are left out; never touches their memory.
  __m256 Load(const float* p) const { return _mm256_maskload_ps(p, mask_); }
  void Store(float* p, __m256 x) const { _mm256_maskstore_ps(p, mask_, x); }

 private:
  __m256i mask_;
};

// Calls fn(i, lanes) for i = 0, 8, 16, ... < n, in order; `lanes` is FullLanes
// or, at the end, TailLanes. Example, y = silu(x):
//   ForEachVector(n, [&](int64_t i, auto lanes) {
//     lanes.Store(y + i, Silu8(lanes.Load(x + i)));
//   });
template <typename Fn>
inline void ForEachVector(int64_t n, Fn fn) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) fn(i, FullLanes{});
  if (i < n) fn(i, TailLanes(n - i));
}

// ---------------------------------------------------------------------------
// Across the lanes of one vector, always in the same order.

inline float Sum8(__m256 x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  s = _mm_add_ss(s, _mm_movehdup_ps(s));
  return _mm_cvtss_f32(s);
}

inline float Max8(__m256 x) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  m = _mm_max_ss(m, _mm_movehdup_ps(m));
  return _mm_cvtss_f32(m);
}

// ---------------------------------------------------------------------------
// Elementary functions.

// x = n ln 2 + r with |r| <= ln 2 / 2: writes the integers n, returns e^r - 1.
inline __m256 ExpReduced8(__m256 x, __m256i* n) {
  const __m256 rounded = _mm256_round_ps(
      _mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),  // 1 / ln 2
      _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  *n = _mm256_cvtps_epi32(rounded);
  // ln 2 in two pieces; n times the first is exact.
  __m256 r = _mm256_fnmadd_ps(rounded, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(rounded, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.0f / 5040);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 2));
  return _mm256_fmadd_ps(_mm256_mul_ps(r, r), p, r);
}

// e^x, error < 1e-7. Exactly 0 where e^x is below the smallest normal float
// (x < -87.33, -inf included), inf where it is above the largest (x > 88.72).
inline __m256 Exp8(__m256 x) {
  const __m256 smallest = _mm256_set1_ps(-87.336544f);
  const __m256 largest = _mm256_set1_ps(88.722832f);
  __m256i n;
  const __m256 p = _mm256_add_ps(ExpReduced8(x, &n), _mm256_set1_ps(1));
  // Times 2^n, by adding n to the exponent.
  const __m256 y = _mm256_castsi256_ps(
      _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(n, 23)));
  const __m256 inf = _mm256_set1_ps(std::numeric_limits<float>::infinity());
  const __m256 capped =
      _mm256_blendv_ps(y, inf, _mm256_cmp_ps(x, largest, _CMP_GT_OQ));
  return _mm256_andnot_ps(_mm256_cmp_ps(x, smallest, _CMP_LT_OQ), capped);
}

// e^x - 1 for x <= 0, error < 1e-7 also where x is tiny; -1 at -inf.
inline __m256 Expm1Negative8(__m256 x) {
  __m256i n;
  const __m256 p = ExpReduced8(_mm256_max_ps(_mm256_set1_ps(-80), x), &n);
  const __m256 two_n = _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  return _mm256_fmadd_ps(two_n, p, _mm256_sub_ps(two_n, _mm256_set1_ps(1)));
}

// ln(1 + u) for u in [0, 1], error < 3e-7 also where u is tiny.
inline __m256 Log1pUnit8(__m256 u) {
  // = 2 atanh(s), s = u / (2 + u) <= 1/3, by its series.
  const __m256 s = _mm256_div_ps(u, _mm256_add_ps(u, _mm256_set1_ps(2)));
  const __m256 t = _mm256_mul_ps(s, s);
  __m256 p = _mm256_set1_ps(2.0f / 15);
  p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(2.0f / 13));
  p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(2.0f / 11));
  p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(2.0f / 9));
  p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(2.0f / 7));
  p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(2.0f / 5));
  p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(2.0f / 3));
  p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(2));
  return _mm256_mul_ps(s, p);
}

// 1 / (1 + e^-x), error < 2e-7. Exactly 0 for x < -88.73, 1 for large x.
inline __m256 Sigmoid8(__m256 x) {
  const __m256 one = _mm256_set1_ps(1);
  const __m256 e = Exp8(_mm256_sub_ps(_mm256_setzero_ps(), x));
  return _mm256_div_ps(one, _mm256_add_ps(one, e));
}

// x * sigmoid(x), error < 2e-7. (NaN at -inf, as 0 times infinity is.)
inline __m256 Silu8(__m256 x) { return _mm256_mul_ps(x, Sigmoid8(x)); }

// ln(sigmoid(x)) = min(x, 0) - ln(1 + e^-|x|), error < 3e-7 everywhere; -0 for
// x > 87.34, -inf at -inf. (softplus(x) is -LogSigmoid8(-x).)
inline __m256 LogSigmoid8(__m256 x) {
  const __m256 minus_abs = _mm256_or_ps(x, _mm256_set1_ps(-0.0f));
  return _mm256_sub_ps(_mm256_min_ps(_mm256_setzero_ps(), x),
                       Log1pUnit8(Exp8(minus_abs)));
}

}  // namespace gla

#endif  // GLA_KERNELS_BASE_VECTOR_MATH_H_
