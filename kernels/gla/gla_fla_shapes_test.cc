// The shapes and input distributions of fla's tests (tests/ops/test_gla.py) on
// the chunk form and the recurrent form, in float32, within 1e-4 relative RMS.
#include <cstdint>

#include "gtest/gtest.h"
#include "kernels/gla/chunk_gla.h"
#include "kernels/gla/gla_reference_problem.h"
#include "kernels/gla/recurrent_gla.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/test_context.h"

namespace gla {
namespace {

GlaResults RunChunk(const ExecutionContext& ctx, const GlaProblem& problem) {
  const GlaShape& shape = problem.shape;
  GlaResults results(shape);
  OwnedTensor<float, 1> saved = PoisonedTensor<1>(
      {ChunkGlaSavedFloats(shape.keys(), shape.values(), shape.cu_seqlens)});
  ChunkGlaFwdArgs fwd;
  fwd.q = problem.q;
  fwd.k = problem.k;
  fwd.v = problem.v;
  fwd.g = problem.g;
  fwd.initial_state = problem.initial_state;
  fwd.cu_seqlens = shape.cu_seqlens;
  fwd.scale = problem.scale;
  fwd.o = results.o;
  fwd.final_state = results.final_state;
  fwd.saved = saved;
  ChunkGlaFwd(ctx, fwd);
  ChunkGlaBwdArgs bwd;
  bwd.q = problem.q;
  bwd.k = problem.k;
  bwd.v = problem.v;
  bwd.g = problem.g;
  bwd.initial_state = problem.initial_state;
  bwd.cu_seqlens = shape.cu_seqlens;
  bwd.scale = problem.scale;
  bwd.saved = saved;
  bwd.d_o = problem.d_o;
  bwd.d_final_state = problem.d_final_state;
  bwd.dq = results.dq;
  bwd.dk = results.dk;
  bwd.dv = results.dv;
  bwd.dg = results.dg;
  bwd.d_initial_state = results.d_initial_state;
  ChunkGlaBwd(ctx, bwd);
  return results;
}

// The recurrent form on one sequence of a packed batch, or on a whole batch.
class RecurrentRun {
 public:
  // Rows `rows`, tokens [begin, begin + tokens) of each, counted in the tensors
  // of `problem`; states from `first_state` on.
  RecurrentRun(int64_t rows, int64_t begin, int64_t tokens, int64_t first_state)
      : rows_(rows), begin_(begin), tokens_(tokens), state_(first_state) {}

  void operator()(const ExecutionContext& ctx, const GlaProblem& problem,
                  GlaResults* results) const {
    RecurrentGlaFwdArgs fwd;
    fwd.q = Rows(problem.q.view());
    fwd.k = Rows(problem.k.view());
    fwd.v = Rows(problem.v.view());
    fwd.g = Rows(problem.g.view());
    fwd.scale = problem.scale;
    fwd.o = Rows(results->o.view());
    fwd.state = States(results->final_state.view());
    RecurrentGlaFwd(ctx, fwd);
    RecurrentGlaBwdArgs bwd;
    bwd.q = fwd.q;
    bwd.k = fwd.k;
    bwd.v = fwd.v;
    bwd.g = fwd.g;
    bwd.initial_state = States(problem.initial_state.view());
    bwd.scale = problem.scale;
    bwd.d_o = Rows(problem.d_o.view());
    bwd.d_final_state = States(problem.d_final_state.view());
    bwd.dq = Rows(results->dq.view());
    bwd.dk = Rows(results->dk.view());
    bwd.dv = Rows(results->dv.view());
    bwd.dg = Rows(results->dg.view());
    bwd.d_initial_state = States(results->d_initial_state.view());
    RecurrentGlaBwd(ctx, bwd);
  }

 private:
  template <typename T>
  TensorView<T, 4> Rows(TensorView<T, 4> x) const {
    const int64_t token_size = x.dim(2) * x.dim(3);
    return {x.data() + begin_ * token_size,
            {rows_, tokens_, x.dim(2), x.dim(3)}};
  }
  template <typename T>
  TensorView<T, 4> States(TensorView<T, 4> x) const {
    return {x[state_].data(), {rows_, x.dim(1), x.dim(2), x.dim(3)}};
  }

  int64_t rows_, begin_, tokens_, state_;
};

GlaResults RunRecurrent(const ExecutionContext& ctx,
                        const GlaProblem& problem) {
  const GlaShape& shape = problem.shape;
  const auto& bounds = shape.cu_seqlens;
  GlaResults results(shape);
  results.final_state = problem.initial_state;
  if (bounds.empty()) {
    RecurrentRun(shape.B, 0, shape.T, 0)(ctx, problem, &results);
  }
  for (size_t n = 0; n + 1 < bounds.size(); ++n) {
    RecurrentRun(1, bounds[n], bounds[n + 1] - bounds[n], n)(ctx, problem,
                                                             &results);
  }
  return results;
}

struct FlaCase {
  GlaShape shape;
  double normalizer;
};

class GlaFlaShapes : public testing::TestWithParam<FlaCase> {};

TEST_P(GlaFlaShapes, BothFormsMatchReference) {
  const GlaProblem problem(GetParam().shape, GetParam().normalizer,
                           /*seed=*/42);
  const GlaExpected expected = ComputeExpected(problem);
  TestContext test;
  ExpectGlaResults(1e-4, RunChunk(test.ctx(), problem), expected);
  ExpectGlaResults(1e-4, RunRecurrent(test.ctx(), problem), expected);
}

INSTANTIATE_TEST_SUITE_P(Batched, GlaFlaShapes,
                         testing::Values(FlaCase{{1, 63, 1, 64, 64}, 1},
                                         FlaCase{{2, 1024, 4, 60, 60}, 1},
                                         FlaCase{{2, 1024, 8, 128, 128}, 0.1},
                                         FlaCase{{2, 1024, 8, 128, 128}, 1},
                                         FlaCase{{2, 1024, 8, 128, 128}, 10},
                                         FlaCase{{4, 2048, 8, 64, 64}, 1},
                                         FlaCase{{1, 128, 4, 256, 256}, 1},
                                         FlaCase{{1, 64, 2, 320, 320}, 1},
                                         FlaCase{{1, 128, 4, 512, 512}, 1}));

INSTANTIATE_TEST_SUITE_P(
    Packed, GlaFlaShapes,
    testing::Values(
        FlaCase{{1, 15, 4, 64, 64, {0, 15}}, 1},
        FlaCase{{1, 16, 4, 64, 64, {0, 0, 16}}, 1},
        FlaCase{{1, 1000, 4, 64, 64, {0, 256, 500, 1000}}, 1},
        FlaCase{{1, 2000, 4, 100, 100, {0, 15, 100, 300, 1200, 2000}}, 1},
        FlaCase{{1, 2048, 4, 64, 64, {0, 1, 100, 300, 1200, 2048}}, 1},
        FlaCase{{1, 2048, 4, 128, 128, {0, 200, 512, 1200, 2048}}, 1}));

}  // namespace
}  // namespace gla
