// Forward pass of chunk_gla on the CPU. A task is one head of one sequence; it
// walks the chunks in order and carries the state S:
//
//   o = Q S + P v        Q [C, K]: scale * q * decay since the chunk's start
//   S = diag(a) S + K^T v    K [C, K]: k * decay to its end;  a = whole decay
//   P [C, C]: gated scores inside the chunk (chunk_gla_scores.h)
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
struct ForwardScratch {
  ChunkOperands operands;
  float* scores;  // [C, C]
  float* state;   // [K, V]
};

// next = diag(decay) state + keys^T v; next may be state. No state: zero.
void AdvanceState(const GlaBlock& chunk, const ChunkOperands& operands,
                  const float* state, float* next) {
  const float* decay = operands.queries.decay + (chunk.tokens - 1) * chunk.K;
  for (int64_t i = 0; state != nullptr && i < chunk.K; ++i) {
    const float* from = state + i * chunk.V;
    float* to = next + i * chunk.V;
    const __m256 a = _mm256_set1_ps(decay[i]);
    ForEachVector(chunk.V, [&](int64_t j, auto lanes) {
      lanes.Store(to + j, _mm256_mul_ps(a, lanes.Load(from + j)));
    });
  }
  GemmTN(chunk.K, chunk.V, chunk.tokens, {operands.keys.value, chunk.K},
         {chunk.v, chunk.v_stride}, state == nullptr ? 0 : 1, next, chunk.V);
}

// One chunk: o, scores, and the state after it if `next` is given.
void ForwardChunk(const GlaBlock& chunk, const float* state, float* scores,
                  float* o, float* next, ChunkOperands* operands) {
  const int64_t n = chunk.tokens, K = chunk.K, V = chunk.V;
  GateChunk(chunk, operands);
  ComputeScores(chunk, *operands, scores);
  GemmNN(n, V, n, {scores, kGlaChunk}, {chunk.v, chunk.v_stride}, 0, o,
         chunk.v_stride);
  if (state != nullptr) {
    GemmNN(n, V, K, {operands->queries.value, K}, {state, V}, 1, o,
           chunk.v_stride);
  }
  if (next != nullptr) AdvanceState(chunk, *operands, state, next);
}

void ForwardTask(const ChunkGlaFwdArgs& args, const GlaPlan& plan, int64_t task,
                 ForwardScratch* scratch) {
  const int64_t chunks = plan.chunks(task);
  const int64_t state_size = args.k.dim(3) * args.v.dim(3);
  const float* initial_state =
      args.initial_state.empty()
          ? nullptr
          : args.initial_state.data() + plan.StateOffset(task);
  float* final_state = args.final_state.empty()
                           ? nullptr
                           : args.final_state.data() + plan.StateOffset(task);
  if (chunks == 0 && final_state != nullptr) {
    if (initial_state == nullptr) {
      std::fill_n(final_state, state_size, 0.0f);
    } else if (final_state != initial_state) {
      std::copy_n(initial_state, state_size, final_state);
    }
  }
  const float* state = initial_state;
  for (int64_t c = 0; c < chunks; ++c) {
    float* scores = args.saved.empty()
                        ? scratch->scores
                        : args.saved.data() + plan.SavedScoresOffset(task, c);
    // The state after the chunk goes where it is needed next.
    float* next = final_state;
    if (c + 1 < chunks) {
      next = args.saved.empty()
                 ? scratch->state
                 : args.saved.data() + plan.SavedStateOffset(task, c + 1);
    }
    ForwardChunk(plan.Chunk(task, c, args.q.data(), args.k.data(),
                            args.v.data(), args.g.data(), args.scale),
                 state, scores,
                 args.o.data() + plan.ValueOffset(task, c * kGlaChunk), next,
                 &scratch->operands);
    state = next;
  }
}

}  // namespace

void ChunkGlaFwdCpu(const ExecutionContext& ctx, const ChunkGlaFwdArgs& args) {
  ArenaScope scope(ctx.scratch);
  const GlaPlan plan(args.k.shape(), args.v.shape(), args.cu_seqlens,
                     ctx.scratch);
  const int64_t K = args.k.dim(3), V = args.v.dim(3);
  const int workers = ctx.threads->num_threads();
  auto* scratch = ctx.scratch->Allocate<ForwardScratch>(workers);
  for (int i = 0; i < workers; ++i) {
    scratch[i].operands = AllocateOperands(K, ctx.scratch);
    scratch[i].scores = ctx.scratch->Allocate<float>(kGlaChunk * kGlaChunk);
    scratch[i].state = ctx.scratch->Allocate<float>(K * V);
  }
  openblas_set_num_threads(1);
  ctx.threads->ParallelFor(plan.num_tasks(), [&](int64_t task, int worker) {
    ForwardTask(args, plan, task, &scratch[worker]);
  });
}

}  // namespace internal
}  // namespace gla
