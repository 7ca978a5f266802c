// Forward pass of chunk_gla on the CPU. A task is one head of one sequence; it
// walks the chunks in order and carries the state S:
//
//   o = Q S + P v        Q [C, K]: scale * q * decay since the chunk's start
//   S = diag(a) S + K^T v    K [C, K]: k * decay to its end;  a = whole decay
//   P [C, C]: gated scores inside the chunk (chunk_gla_scores.h)
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
struct ForwardScratch {
  ChunkOperands operands;
  float* scores;    // [C, C]
  float* state[2];  // [K, V]
};

void CheckArgs(const ChunkGlaFwdArgs& args, const GlaPlan& plan) {
  CHECK(!args.k.empty() && !args.v.empty());
  const auto [B, T, H, K] = args.k.shape();
  const int64_t V = args.v.dim(3);
  const std::array<int64_t, 4> state = {plan.num_sequences(), H, K, V};
  CheckShape("q", args.q, {B, T, H, K});
  CheckShape("v", args.v, {B, T, H, V});
  CheckShape("g", args.g, {B, T, H, K});
  CheckShape("o", args.o, {B, T, H, V});
  if (!args.initial_state.empty()) {
    CheckShape("initial_state", args.initial_state, state);
  }
  if (!args.final_state.empty()) {
    CheckShape("final_state", args.final_state, state);
  }
  if (!args.saved.empty())
    CheckShape("saved", args.saved, {plan.saved_floats()});
}

// next = diag(decay) state + keys^T v.
void AdvanceState(const GlaBlock& chunk, const ChunkOperands& operands,
                  const float* state, float* next) {
  const float* decay = operands.queries.decay + (chunk.tokens - 1) * chunk.K;
  for (int64_t i = 0; i < chunk.K; ++i) {
    const float* from = state + i * chunk.V;
    float* to = next + i * chunk.V;
    const __m256 a = _mm256_set1_ps(decay[i]);
    ForEachVector(chunk.V, [&](int64_t j, auto lanes) {
      lanes.Store(to + j, _mm256_mul_ps(a, lanes.Load(from + j)));
    });
  }
  GemmTN(chunk.K, chunk.V, chunk.tokens, {operands.keys.value, chunk.K},
         {chunk.v, chunk.v_stride}, 1, next, chunk.V);
}

void ForwardTask(const ChunkGlaFwdArgs& args, const GlaPlan& plan, int64_t task,
                 ForwardScratch* scratch) {
  const int64_t chunks = plan.sequence(task).chunks();
  const int64_t state_size = args.k.dim(3) * args.v.dim(3);
  float* final_state = args.final_state.empty()
                           ? nullptr
                           : args.final_state.data() + plan.StateOffset(task);
  // The state before chunk c; after the last one, where the caller wants it.
  auto state_before = [&](int64_t c) -> float* {
    if (c == chunks) return final_state;
    if (args.saved.empty()) return scratch->state[c % 2];
    return args.saved.data() + plan.SavedStateOffset(task, c);
  };

  float* state = state_before(0);
  if (state == nullptr) return;
  if (args.initial_state.empty()) {
    std::fill_n(state, state_size, 0.0f);
  } else {
    const float* initial = args.initial_state.data() + plan.StateOffset(task);
    if (initial != state) std::copy_n(initial, state_size, state);
  }
  for (int64_t c = 0; c < chunks; ++c) {
    const GlaBlock chunk = plan.Chunk(task, c, args.q.data(), args.k.data(),
                                      args.v.data(), args.g.data(), args.scale);
    float* o = args.o.data() + plan.ValueOffset(task, c * kGlaChunk);
    float* scores = args.saved.empty()
                        ? scratch->scores
                        : args.saved.data() + plan.SavedScoresOffset(task, c);
    GateChunk(chunk, &scratch->operands);
    ComputeScores(chunk, scratch->operands, scores);
    GemmNN(chunk.tokens, chunk.V, chunk.tokens, {scores, kGlaChunk},
           {chunk.v, chunk.v_stride}, 0, o, chunk.v_stride);
    GemmNN(chunk.tokens, chunk.V, chunk.K,
           {scratch->operands.queries.value, chunk.K}, {state, chunk.V}, 1, o,
           chunk.v_stride);
    float* next = state_before(c + 1);
    if (next != nullptr) {
      AdvanceState(chunk, scratch->operands, state, next);
    }
    state = next;
  }
}

}  // namespace
}  // namespace internal

void ChunkGlaFwd(const ExecutionContext& ctx, const ChunkGlaFwdArgs& args) {
  using internal::ForwardScratch;
  CHECK(ctx.device == Device::kCpu) << "ChunkGlaFwd runs on the CPU only";
  ArenaScope scope(ctx.scratch);
  const internal::GlaPlan plan(args.k.shape(), args.v.shape(), args.cu_seqlens,
                               ctx.scratch);
  internal::CheckArgs(args, plan);
  const int64_t K = args.k.dim(3), V = args.v.dim(3);
  const int workers = ctx.threads->num_threads();
  auto* scratch = ctx.scratch->Allocate<ForwardScratch>(workers);
  for (int i = 0; i < workers; ++i) {
    scratch[i].operands = internal::AllocateOperands(K, ctx.scratch);
    scratch[i].scores = ctx.scratch->Allocate<float>(kGlaChunk * kGlaChunk);
    for (float*& s : scratch[i].state) {
      s = ctx.scratch->Allocate<float>(K * V);
    }
  }
  openblas_set_num_threads(1);
  ctx.threads->ParallelFor(plan.num_tasks(), [&](int64_t task, int worker) {
    internal::ForwardTask(args, plan, task, &scratch[worker]);
  });
}

}  // namespace gla
