// Recurrent GLA on the CPU. Decoding reads and writes every state once per
// token, so its speed is that of memory: the forward pass walks a state from
// its first byte to its last, past one row of v and one of o that stay in
// cache. (Several rows at a time save cache traffic but disturb the prefetcher:
// half the speed on states that come from memory.)
#include "kernels/gla/recurrent_gla_cpu.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/vector_math.h"

namespace gla {
namespace {

constexpr int64_t kValueGrain = 16;  // slices of V are multiples of this

// One token of one head.
struct Token {
  const float* q;  // [K]
  const float* k;
  const float* v;      // [V]
  const float* decay;  // [K] exp(g)
  float scale;
};

void ExpRow(int64_t K, const float* g, float* decay) {
  ForEachVector(K, [&](int64_t i, auto lanes) {
    lanes.Store(decay + i, Exp8(lanes.Load(g + i)));
  });
}

// One step on columns [0, V) of a state whose rows are `stride` apart: next =
// decay * state + k v^T, and, if o is given, o = scale * next^T q. next may be
// state.
void Step(const Token& token, int64_t K, int64_t V, int64_t stride,
          const float* state, float* next, float* o) {
  if (o != nullptr) std::fill_n(o, V, 0.0f);
  for (int64_t i = 0; i < K; ++i, state += stride, next += stride) {
    const __m256 decay = _mm256_set1_ps(token.decay[i]);
    const __m256 k = _mm256_set1_ps(token.k[i]);
    const __m256 q = _mm256_set1_ps(token.scale * token.q[i]);
    ForEachVector(V, [&](int64_t j, auto lanes) {
      const __m256 kv = _mm256_mul_ps(k, lanes.Load(token.v + j));
      const __m256 s = _mm256_fmadd_ps(decay, lanes.Load(state + j), kv);
      lanes.Store(next + j, s);
      if (o != nullptr) {
        lanes.Store(o + j, _mm256_fmadd_ps(q, s, lanes.Load(o + j)));
      }
    });
  }
}

// One head of one row of the batch: where its tokens start.
struct Head {
  int64_t key_offset, key_stride;      // into [B, T, H, K]
  int64_t value_offset, value_stride;  // into [B, T, H, V]
};

Head HeadAt(const std::array<int64_t, 4>& k_shape, int64_t V, int64_t b,
            int64_t h) {
  const auto [B, T, H, K] = k_shape;
  const int64_t first = b * T * H + h;
  return {first * K, H * K, first * V, H * V};
}

template <typename Args>
Token TokenAt(const Args& args, const Head& head, int64_t t,
              const float* decay) {
  const int64_t key = head.key_offset + t * head.key_stride;
  return {args.q.data() + key, args.k.data() + key,
          args.v.data() + head.value_offset + t * head.value_stride, decay,
          args.scale};
}

// Gradients of one token, rows of the outputs.
struct TokenGradients {
  float* dq;  // [K]
  float* dk;
  float* dg;
  float* dv;  // [V]
};

// Channel i of one step back; d_state goes from after the token to before it.
void StepBackRow(const Token& token, int64_t i, int64_t V, const float* d_o,
                 const float* before, const float* after, float* d_state,
                 const TokenGradients& grad) {
  const __m256 q = _mm256_set1_ps(token.scale * token.q[i]);
  const __m256 k = _mm256_set1_ps(token.k[i]);
  const __m256 decay = _mm256_set1_ps(token.decay[i]);
  __m256 dq = _mm256_setzero_ps(), dk = dq, dg = dq;
  ForEachVector(V, [&](int64_t j, auto lanes) {
    const __m256 out = lanes.Load(d_o + j);
    const __m256 ds = _mm256_fmadd_ps(q, out, lanes.Load(d_state + j));
    const __m256 decayed = _mm256_mul_ps(decay, ds);
    dq = _mm256_fmadd_ps(lanes.Load(after + j), out, dq);
    dk = _mm256_fmadd_ps(lanes.Load(token.v + j), ds, dk);
    dg = _mm256_fmadd_ps(lanes.Load(before + j), decayed, dg);
    lanes.Store(grad.dv + j, _mm256_fmadd_ps(k, ds, lanes.Load(grad.dv + j)));
    lanes.Store(d_state + j, decayed);
  });
  grad.dq[i] = token.scale * Sum8(dq);
  grad.dk[i] = Sum8(dk);
  grad.dg[i] = Sum8(dg);
}

// Scratch of one worker. States are kept at the start of every segment of
// tokens, and of one segment at a time for every token.
struct BackwardScratch {
  float* decay;           // [K]
  float* segment_starts;  // [segments, K, V]
  float* states;          // [segment + 1, K, V]
  float* d_state;         // [K, V]
};

int64_t SegmentTokens(int64_t T) {
  return 1 + static_cast<int64_t>(std::sqrt(static_cast<double>(T)));
}

void CopyOrZero(const TensorView<const float, 4>& from, int64_t offset,
                int64_t n, float* to) {
  if (from.empty()) {
    std::fill_n(to, n, 0.0f);
  } else {
    std::copy_n(from.data() + offset, n, to);
  }
}

// Fills segment_starts.
void SweepForward(const RecurrentGlaBwdArgs& args, const Head& head,
                  BackwardScratch* scratch) {
  const auto [B, T, H, K] = args.k.shape();
  const int64_t V = args.v.dim(3), segment = SegmentTokens(T);
  const int64_t last_start = (T - 1) / segment * segment;
  for (int64_t t = 0; t < last_start; ++t) {
    float* start = scratch->segment_starts + t / segment * K * V;
    float* next = start + K * V;
    const float* state = t % segment == 0 ? start : next;
    ExpRow(K, args.g.data() + head.key_offset + t * head.key_stride,
           scratch->decay);
    Step(TokenAt(args, head, t, scratch->decay), K, V, V, state, next,
         /*o=*/nullptr);
  }
}

void SegmentBackward(const RecurrentGlaBwdArgs& args, const Head& head,
                     int64_t begin, int64_t end, BackwardScratch* scratch) {
  const int64_t K = args.k.dim(3), V = args.v.dim(3);
  const float* g = args.g.data() + head.key_offset;
  for (int64_t t = begin; t < end; ++t) {
    float* state = scratch->states + (t - begin) * K * V;
    ExpRow(K, g + t * head.key_stride, scratch->decay);
    Step(TokenAt(args, head, t, scratch->decay), K, V, V, state, state + K * V,
         /*o=*/nullptr);
  }
  for (int64_t t = end - 1; t >= begin; --t) {
    const int64_t key = head.key_offset + t * head.key_stride;
    const int64_t value = head.value_offset + t * head.value_stride;
    const float* before = scratch->states + (t - begin) * K * V;
    const TokenGradients grad = {args.dq.data() + key, args.dk.data() + key,
                                 args.dg.data() + key, args.dv.data() + value};
    ExpRow(K, g + t * head.key_stride, scratch->decay);
    std::fill_n(grad.dv, V, 0.0f);
    for (int64_t i = 0; i < K; ++i) {
      StepBackRow(TokenAt(args, head, t, scratch->decay), i, V,
                  args.d_o.data() + value, before + i * V, before + (K + i) * V,
                  scratch->d_state + i * V, grad);
    }
  }
}

void BackwardHead(const RecurrentGlaBwdArgs& args, int64_t b, int64_t h,
                  BackwardScratch* scratch) {
  const auto [B, T, H, K] = args.k.shape();
  const int64_t V = args.v.dim(3), segment = SegmentTokens(T);
  const int64_t state_offset = (b * H + h) * K * V;
  const Head head = HeadAt(args.k.shape(), V, b, h);
  CopyOrZero(args.initial_state, state_offset, K * V, scratch->segment_starts);
  CopyOrZero(args.d_final_state, state_offset, K * V, scratch->d_state);
  SweepForward(args, head, scratch);
  for (int64_t s = (T - 1) / segment; s >= 0; --s) {
    std::copy_n(scratch->segment_starts + s * K * V, K * V, scratch->states);
    SegmentBackward(args, head, s * segment, std::min(T, (s + 1) * segment),
                    scratch);
  }
  if (!args.d_initial_state.empty()) {
    std::copy_n(scratch->d_state, K * V,
                args.d_initial_state.data() + state_offset);
  }
}

}  // namespace

void RecurrentGlaFwdCpu(const ExecutionContext& ctx,
                        const RecurrentGlaFwdArgs& args) {
  const auto [B, T, H, K] = args.k.shape();
  const int64_t V = args.v.dim(3);
  ArenaScope scope(ctx.scratch);
  const int workers = ctx.threads->num_threads();
  float* decays = ctx.scratch->Allocate<float>(workers * K);
  // Columns of a state do not mix, so few heads may share them out.
  const int64_t wanted = (2 * workers + B * H - 1) / (B * H);
  const int64_t width = (V + wanted - 1) / wanted;
  const int64_t slice = (width + kValueGrain - 1) / kValueGrain * kValueGrain;
  const int64_t slices = (V + slice - 1) / slice;
  ctx.threads->ParallelFor(B * H * slices, [&](int64_t task, int worker) {
    const int64_t j = task % slices * slice, h = task / slices % H;
    const int64_t b = task / slices / H;
    const int64_t slot = args.slots.empty() ? b : args.slots[b];
    const Head head = HeadAt(args.k.shape(), V, b, h);
    float* state = args.state.data() + (slot * H + h) * K * V + j;
    float* decay = decays + worker * K;
    for (int64_t t = 0; t < T; ++t) {
      ExpRow(K, args.g.data() + head.key_offset + t * head.key_stride, decay);
      Token token = TokenAt(args, head, t, decay);
      token.v += j;
      float* o = args.o.data() + head.value_offset + t * head.value_stride + j;
      Step(token, K, std::min(slice, V - j), V, state, state, o);
    }
  });
}

void RecurrentGlaBwdCpu(const ExecutionContext& ctx,
                        const RecurrentGlaBwdArgs& args) {
  const auto [B, T, H, K] = args.k.shape();
  const int64_t state_size = K * args.v.dim(3), segment = SegmentTokens(T);
  const int64_t segments = 1 + T / segment;
  ArenaScope scope(ctx.scratch);
  const int workers = ctx.threads->num_threads();
  auto* scratch = ctx.scratch->Allocate<BackwardScratch>(workers);
  for (int i = 0; i < workers; ++i) {
    scratch[i].decay = ctx.scratch->Allocate<float>(K);
    scratch[i].segment_starts =
        ctx.scratch->Allocate<float>(segments * state_size);
    scratch[i].states =
        ctx.scratch->Allocate<float>((segment + 1) * state_size);
    scratch[i].d_state = ctx.scratch->Allocate<float>(state_size);
  }
  ctx.threads->ParallelFor(B * H, [&](int64_t task, int worker) {
    BackwardHead(args, task / H, task % H, &scratch[worker]);
  });
}

}  // namespace gla
