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

#include "glog/logging.h"
#include "kernels/base/vector_math.h"
#include "kernels/gla/chunk_gla.h"
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

void CheckArgs(const ChunkGlaBwdArgs& args, const GlaPlan& plan) {
  CHECK(!args.k.empty() && !args.v.empty());
  const auto [B, T, H, K] = args.k.shape();
  const int64_t V = args.v.dim(3);
  const std::array<int64_t, 4> state = {plan.num_sequences(), H, K, V};
  CheckShape("q", args.q, {B, T, H, K});
  CheckShape("v", args.v, {B, T, H, V});
  CheckShape("g", args.g, {B, T, H, K});
  CheckShape("saved", args.saved, {plan.saved_floats()});
  CheckShape("d_o", args.d_o, {B, T, H, V});
  CheckShape("dq", args.dq, {B, T, H, K});
  CheckShape("dk", args.dk, {B, T, H, K});
  CheckShape("dv", args.dv, {B, T, H, V});
  if (!args.dg.empty()) CheckShape("dg", args.dg, {B, T, H, K});
  if (!args.initial_state.empty()) {
    CheckShape("initial_state", args.initial_state, state);
  }
  if (!args.d_final_state.empty()) {
    CheckShape("d_final_state", args.d_final_state, state);
  }
  if (!args.d_initial_state.empty()) {
    CheckShape("d_initial_state", args.d_initial_state, state);
  }
}

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

// d_state = diag(a) d_state, and the gradient of log a on the way.
void DecayStateGradient(const GlaBlock& chunk, const float* decay,
                        const float* state, float* d_state, float* d_through) {
  for (int64_t i = 0; i < chunk.K; ++i) {
    const float* s = state + i * chunk.V;
    float* ds = d_state + i * chunk.V;
    const __m256 a = _mm256_set1_ps(decay[i]);
    __m256 sum = _mm256_setzero_ps();
    ForEachVector(chunk.V, [&](int64_t j, auto lanes) {
      const __m256 d = _mm256_mul_ps(a, lanes.Load(ds + j));
      sum = _mm256_fmadd_ps(lanes.Load(s + j), d, sum);
      lanes.Store(ds + j, d);
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

// One chunk; d_state goes from after it to before it.
void BackwardChunk(const GlaBlock& chunk, const float* state,
                   const float* scores, const float* d_o, float* dv,
                   float* d_state, BackwardScratch* scratch) {
  const int64_t n = chunk.tokens, K = chunk.K, V = chunk.V;
  const Rows d_o_rows = {d_o, chunk.v_stride};
  ChunkOperands& operands = scratch->operands;
  const GlaGradientTiles& grad = scratch->grad;
  GateChunk(chunk, &operands);
  ComputeScoreGradients(chunk, d_o, scratch);
  for (float* tile : {grad.dq, grad.dk, grad.dg}) {
    std::fill_n(tile, n * K, 0.0f);
  }
  AddScoreGradients(chunk, operands, scratch->d_scores, grad);

  GemmNT(n, K, V, d_o_rows, {state, V}, 0, operands.d_queries, K);
  AddQueryGradients(chunk, operands.queries, operands.d_queries, grad);
  GemmNT(n, K, V, {chunk.v, chunk.v_stride}, {d_state, V}, 0, operands.d_keys,
         K);
  AddKeyGradients(chunk, operands.keys, operands.d_keys, grad);

  GemmTN(n, V, n, {scores, kGlaChunk}, d_o_rows, 0, dv, chunk.v_stride);
  GemmNN(n, V, K, {operands.keys.value, K}, {d_state, V}, 1, dv,
         chunk.v_stride);

  DecayStateGradient(chunk, operands.queries.decay + (n - 1) * K, state,
                     d_state, scratch->d_through);
  GemmTN(K, V, n, {operands.queries.value, K}, d_o_rows, 1, d_state, V);
}

void BackwardTask(const ChunkGlaBwdArgs& args, const GlaPlan& plan,
                  int64_t task, BackwardScratch* scratch) {
  const int64_t state_size = args.k.dim(3) * args.v.dim(3);
  float* d_state = args.d_initial_state.empty()
                       ? scratch->d_state
                       : args.d_initial_state.data() + plan.StateOffset(task);
  if (args.d_final_state.empty()) {
    std::fill_n(d_state, state_size, 0.0f);
  } else {
    std::copy_n(args.d_final_state.data() + plan.StateOffset(task), state_size,
                d_state);
  }
  for (int64_t c = plan.sequence(task).chunks() - 1; c >= 0; --c) {
    const GlaBlock chunk = plan.Chunk(task, c, args.q.data(), args.k.data(),
                                      args.v.data(), args.g.data(), args.scale);
    const int64_t key_row = plan.KeyOffset(task, c * kGlaChunk);
    const int64_t value_row = plan.ValueOffset(task, c * kGlaChunk);
    BackwardChunk(chunk, args.saved.data() + plan.SavedStateOffset(task, c),
                  args.saved.data() + plan.SavedScoresOffset(task, c),
                  args.d_o.data() + value_row, args.dv.data() + value_row,
                  d_state, scratch);
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
}  // namespace internal

void ChunkGlaBwd(const ExecutionContext& ctx, const ChunkGlaBwdArgs& args) {
  using internal::BackwardScratch;
  CHECK(ctx.device == Device::kCpu) << "ChunkGlaBwd runs on the CPU only";
  ArenaScope scope(ctx.scratch);
  const internal::GlaPlan plan(args.k.shape(), args.v.shape(), args.cu_seqlens,
                               ctx.scratch);
  internal::CheckArgs(args, plan);
  const int workers = ctx.threads->num_threads();
  auto* scratch = ctx.scratch->Allocate<BackwardScratch>(workers);
  for (int i = 0; i < workers; ++i) {
    scratch[i] =
        internal::AllocateScratch(args.k.dim(3), args.v.dim(3), ctx.scratch);
  }
  openblas_set_num_threads(1);
  ctx.threads->ParallelFor(plan.num_tasks(), [&](int64_t task, int worker) {
    internal::BackwardTask(args, plan, task, &scratch[worker]);
  });
}

}  // namespace gla
