// Backward pass of chunk_gla on the CPU. A task is one head of one sequence; it
// walks the chunks from the last to the first and carries dS, the gradient of
// the state after the chunk. With Q, K, P, a as in the forward pass and S the
// state before the chunk:
//
//   dv = P^T do + K dS          dQ = do S^T         dK = v dS^T
//   dP = tril(do v^T)           dS = diag(a) dS + Q^T do
//
// dg_t adds up, without cancellation between them, all paths that cross the
// gate of token t: state to state, state to query, key to state, key to query.
#include <cblas.h>

#include <algorithm>

#include "kernels/base/vector_math.h"
#include "kernels/gla/chunk_gla.h"
#include "kernels/gla/chunk_gla_cpu.h"
#include "kernels/gla/chunk_gla_gemm.h"
#include "kernels/gla/chunk_gla_plan.h"
#include "kernels/gla/chunk_gla_scores.h"

namespace gla {
namespace internal {
namespace {

// Scratch of one worker.
struct BackwardScratch {
  ChunkOperands operands;
  GlaGradientTiles grad;
  float* d_scores;           // [C, C]
  float* d_scores_diagonal;  // [C]
  float* d_through;          // [K] gradient of log a
  float* d_state;            // [K, V]
};

// d_scores = do v^T below the diagonal, 0 elsewhere; the diagonal apart.
void ComputeScoreGradients(const GlaBlock& chunk, const float* d_o,
                           BackwardScratch* scratch) {
  const int64_t n = chunk.tokens;
  GemmNT(n, n, chunk.V, {d_o, chunk.v_stride}, {chunk.v, chunk.v_stride}, 0,
         scratch->d_scores, kGlaChunk);
  for (int64_t t = 0; t < n; ++t) {
    float* row = scratch->d_scores + t * kGlaChunk;
    scratch->d_scores_diagonal[t] = row[t];
    std::fill(row + t, row + n, 0.0f);
  }
}

// d_state = diag(a) d_state, and the gradient of log a on the way. No state:
// zero.
void DecayStateGradient(const GlaBlock& chunk, const float* decay,
                        const float* state, float* d_state, float* d_through) {
  for (int64_t i = 0; i < chunk.K; ++i) {
    const int64_t row = i * chunk.V;
    const __m256 a = _mm256_set1_ps(decay[i]);
    __m256 sum = _mm256_setzero_ps();
    ForEachVector(chunk.V, [&](int64_t j, auto lanes) {
      const __m256 d = _mm256_mul_ps(a, lanes.Load(d_state + row + j));
      if (state != nullptr) {
        sum = _mm256_fmadd_ps(lanes.Load(state + row + j), d, sum);
      }
      lanes.Store(d_state + row + j, d);
    });
    d_through[i] = Sum8(sum);
  }
}

// Adds what only the finished chunk knows and writes the rows out.
void WriteGradients(const GlaBlock& chunk, const BackwardScratch& scratch,
                    float* dq, float* dk, float* dg) {
  const GlaGradientTiles& grad = scratch.grad;
  for (int64_t t = 0; t < chunk.tokens; ++t) {
    const int64_t row = t * chunk.K, out = t * chunk.qk_stride;
    const __m256 self =
        _mm256_set1_ps(chunk.scale * scratch.d_scores_diagonal[t]);
    ForEachVector(chunk.K, [&](int64_t i, auto lanes) {
      lanes.Store(dq + out + i,
                  _mm256_fmadd_ps(self, lanes.Load(chunk.k + out + i),
                                  lanes.Load(grad.dq + row + i)));
      lanes.Store(dk + out + i,
                  _mm256_fmadd_ps(self, lanes.Load(chunk.q + out + i),
                                  lanes.Load(grad.dk + row + i)));
      if (dg != nullptr) {
        lanes.Store(dg + out + i,
                    _mm256_add_ps(lanes.Load(scratch.d_through + i),
                                  lanes.Load(grad.dg + row + i)));
      }
    });
  }
}

// What a chunk's gradients come from besides its own tokens.
struct ChunkContext {
  const float* state;    // before the chunk; null: zero
  const float* scores;   // of the forward pass
  const float* d_o;      // the chunk's first row
  bool d_state_is_zero;  // after the chunk
  bool want_d_state;     // before the chunk
};

// Paths through the states: the gradients of queries, keys, v (added to what is
// there) and of the state, which goes from after the chunk to before it.
void AddStateGradients(const GlaBlock& chunk, const ChunkContext& context,
                       float* dv, float* d_state, BackwardScratch* scratch) {
  const int64_t n = chunk.tokens, K = chunk.K, V = chunk.V;
  const Rows d_o = {context.d_o, chunk.v_stride};
  const ChunkOperands& operands = scratch->operands;
  if (context.state != nullptr) {
    GemmNT(n, K, V, d_o, {context.state, V}, 0, operands.d_queries, K);
    AddQueryGradients(chunk, operands.queries, operands.d_queries,
                      scratch->grad);
  }
  std::fill_n(scratch->d_through, K, 0.0f);
  if (!context.d_state_is_zero) {
    GemmNT(n, K, V, {chunk.v, chunk.v_stride}, {d_state, V}, 0, operands.d_keys,
           K);
    AddKeyGradients(chunk, operands.keys, operands.d_keys, scratch->grad);
    GemmNN(n, V, K, {operands.keys.value, K}, {d_state, V}, 1, dv,
           chunk.v_stride);
    DecayStateGradient(chunk, operands.queries.decay + (n - 1) * K,
                       context.state, d_state, scratch->d_through);
  }
  if (context.want_d_state) {
    GemmTN(K, V, n, {operands.queries.value, K}, d_o,
           context.d_state_is_zero ? 0 : 1, d_state, V);
  }
}

// Leaves dq, dk and dg in scratch, for WriteGradients().
void BackwardChunk(const GlaBlock& chunk, const ChunkContext& context,
                   float* dv, float* d_state, BackwardScratch* scratch) {
  const int64_t n = chunk.tokens;
  const GlaGradientTiles& grad = scratch->grad;
  GateChunk(chunk, &scratch->operands);
  ComputeScoreGradients(chunk, context.d_o, scratch);
  for (float* tile : {grad.dq, grad.dk, grad.dg}) {
    std::fill_n(tile, n * chunk.K, 0.0f);
  }
  AddScoreGradients(chunk, scratch->operands, scratch->d_scores, grad);
  GemmTN(n, chunk.V, n, {context.scores, kGlaChunk},
         {context.d_o, chunk.v_stride}, 0, dv, chunk.v_stride);
  AddStateGradients(chunk, context, dv, d_state, scratch);
}

void BackwardTask(const ChunkGlaBwdArgs& args, const GlaPlan& plan,
                  int64_t task, BackwardScratch* scratch) {
  const int64_t chunks = plan.chunks(task);
  const int64_t state_size = args.k.dim(3) * args.v.dim(3);
  const int64_t state_offset = plan.StateOffset(task);
  float* d_state = args.d_initial_state.empty()
                       ? scratch->d_state
                       : args.d_initial_state.data() + state_offset;
  if (!args.d_final_state.empty()) {
    std::copy_n(args.d_final_state.data() + state_offset, state_size, d_state);
  } else if (chunks == 0) {
    std::fill_n(d_state, state_size, 0.0f);
  }
  for (int64_t c = chunks - 1; c >= 0; --c) {
    const GlaBlock chunk = plan.Chunk(task, c, args.q.data(), args.k.data(),
                                      args.v.data(), args.g.data(), args.scale);
    const int64_t key_row = plan.KeyOffset(task, c * kGlaChunk);
    const int64_t value_row = plan.ValueOffset(task, c * kGlaChunk);
    ChunkContext context;
    if (c > 0) {
      context.state = args.saved.data() + plan.SavedStateOffset(task, c);
    } else {
      context.state = args.initial_state.empty()
                          ? nullptr
                          : args.initial_state.data() + state_offset;
    }
    context.scores = args.saved.data() + plan.SavedScoresOffset(task, c);
    context.d_o = args.d_o.data() + value_row;
    context.d_state_is_zero = c == chunks - 1 && args.d_final_state.empty();
    context.want_d_state = c > 0 || !args.d_initial_state.empty();
    BackwardChunk(chunk, context, args.dv.data() + value_row, d_state, scratch);
    WriteGradients(chunk, *scratch, args.dq.data() + key_row,
                   args.dk.data() + key_row,
                   args.dg.empty() ? nullptr : args.dg.data() + key_row);
  }
}

BackwardScratch AllocateScratch(int64_t K, int64_t V, Arena* arena) {
  BackwardScratch scratch;
  scratch.operands = AllocateOperands(K, arena);
  scratch.grad.dq = arena->Allocate<float>(kGlaChunk * K);
  scratch.grad.dk = arena->Allocate<float>(kGlaChunk * K);
  scratch.grad.dg = arena->Allocate<float>(kGlaChunk * K);
  scratch.grad.K = K;
  scratch.d_scores = arena->Allocate<float>(kGlaChunk * kGlaChunk);
  scratch.d_scores_diagonal = arena->Allocate<float>(kGlaChunk);
  scratch.d_through = arena->Allocate<float>(K);
  scratch.d_state = arena->Allocate<float>(K * V);
  return scratch;
}

}  // namespace

void ChunkGlaBwdCpu(const ExecutionContext& ctx, const ChunkGlaBwdArgs& args) {
  ArenaScope scope(ctx.scratch);
  const GlaPlan plan(args.k.shape(), args.v.shape(), args.cu_seqlens,
                     ctx.scratch);
  const int workers = ctx.threads->num_threads();
  auto* scratch = ctx.scratch->Allocate<BackwardScratch>(workers);
  for (int i = 0; i < workers; ++i) {
    scratch[i] = AllocateScratch(args.k.dim(3), args.v.dim(3), ctx.scratch);
  }
  openblas_set_num_threads(1);
  ctx.threads->ParallelFor(plan.num_tasks(), [&](int64_t task, int worker) {
    BackwardTask(args, plan, task, &scratch[worker]);
  });
}

}  // namespace internal
}  // namespace gla
