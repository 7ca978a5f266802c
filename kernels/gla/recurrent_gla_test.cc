#include "kernels/gla/recurrent_gla.h"

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/gla/gla_reference_problem.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/test_context.h"

namespace gla {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// Tokens [begin, end) of every row of x [B, T, H, D].
OwnedTensor<float, 4> Tokens(const OwnedTensor<float, 4>& x, int64_t begin,
                             int64_t end) {
  const int64_t row = x.dim(2) * x.dim(3);
  OwnedTensor<float, 4> part({x.dim(0), end - begin, x.dim(2), x.dim(3)});
  for (int64_t b = 0; b < x.dim(0); ++b) {
    std::copy(x.data() + (b * x.dim(1) + begin) * row,
              x.data() + (b * x.dim(1) + end) * row,
              part.data() + b * (end - begin) * row);
  }
  return part;
}

GlaResults RunRecurrent(const ExecutionContext& ctx,
                        const GlaProblem& problem) {
  GlaResults results(problem.shape);
  if (problem.with_initial_state) {
    results.final_state = problem.initial_state;
  } else {
    results.final_state = OwnedTensor<float, 4>(problem.shape.states());
  }
  RecurrentGlaFwdArgs fwd;
  fwd.q = problem.q;
  fwd.k = problem.k;
  fwd.v = problem.v;
  fwd.g = problem.g;
  fwd.scale = problem.scale;
  fwd.o = results.o;
  fwd.state = results.final_state;
  RecurrentGlaFwd(ctx, fwd);
  RecurrentGlaBwdArgs bwd;
  bwd.q = problem.q;
  bwd.k = problem.k;
  bwd.v = problem.v;
  bwd.g = problem.g;
  if (problem.with_initial_state) bwd.initial_state = problem.initial_state;
  bwd.scale = problem.scale;
  bwd.d_o = problem.d_o;
  if (problem.with_d_final_state) bwd.d_final_state = problem.d_final_state;
  bwd.dq = results.dq;
  bwd.dk = results.dk;
  bwd.dv = results.dv;
  bwd.dg = results.dg;
  bwd.d_initial_state = results.d_initial_state;
  RecurrentGlaBwd(ctx, bwd);
  return results;
}

class RecurrentGlaShapes : public testing::TestWithParam<GlaShape> {};

TEST_P(RecurrentGlaShapes, MatchReference) {
  TestContext test;
  for (const double normalizer : {16.0, 1.0, 0.1}) {
    for (const bool with_states : {true, false}) {
      GlaProblem problem(GetParam(), normalizer, /*seed=*/3);
      problem.with_initial_state = problem.with_d_final_state = with_states;
      ExpectGlaResults(1e-5, RunRecurrent(test.ctx(), problem),
                       ComputeExpected(problem));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, RecurrentGlaShapes,
    testing::Values(GlaShape{1, 1, 1, 1, 1}, GlaShape{3, 2, 2, 3, 5},
                    GlaShape{1, 3, 1, 128, 256}, GlaShape{2, 10, 1, 60, 100},
                    GlaShape{1, 17, 3, 5, 33}, GlaShape{2, 130, 2, 20, 12}));

TEST(RecurrentGla, ResetsAreExact) {
  GlaProblem problem({2, 30, 2, 12, 20}, /*normalizer=*/16, /*seed=*/1);
  for (size_t i = 0; i < problem.g.size(); i += 7) problem.g[i] = -kInf;
  TestContext test;
  const GlaResults results = RunRecurrent(test.ctx(), problem);
  ExpectGlaResults(1e-5, results, ComputeExpected(problem));
  for (size_t i = 0; i < problem.g.size(); i += 7) {
    EXPECT_EQ(results.dg[i], 0);
  }
}

TEST(RecurrentGla, ReadsAndWritesOnlyTheSlotsItIsGiven) {
  const GlaProblem problem({3, 4, 2, 20, 36}, 1, /*seed=*/2);
  TestContext test;
  const GlaResults want = RunRecurrent(test.ctx(), problem);
  const std::vector<int32_t> slots = {5, 0, 3};
  const int64_t size = 2 * 20 * 36;
  OwnedTensor<float, 4> pool = PoisonedTensor<4>({7, 2, 20, 36});
  for (int row = 0; row < 3; ++row) {
    std::copy_n(problem.initial_state.data() + row * size, size,
                pool.data() + slots[row] * size);
  }
  OwnedTensor<float, 4> o = PoisonedTensor<4>(problem.shape.values());
  RecurrentGlaFwdArgs fwd;
  fwd.q = problem.q;
  fwd.k = problem.k;
  fwd.v = problem.v;
  fwd.g = problem.g;
  fwd.slots = slots;
  fwd.scale = problem.scale;
  fwd.o = o;
  fwd.state = pool;
  RecurrentGlaFwd(test.ctx(), fwd);
  EXPECT_EQ(o, want.o);
  for (int row = 0; row < 3; ++row) {
    for (int64_t i = 0; i < size; ++i) {
      ASSERT_EQ(pool[slots[row] * size + i], want.final_state[row * size + i]);
    }
  }
  for (const int slot : {1, 2, 4, 6}) {
    for (int64_t i = 0; i < size; ++i) {
      ASSERT_TRUE(pool[slot * size + i] != pool[slot * size + i]);
    }
  }
}

// V is split over threads when there are few heads; K has a remainder.
TEST(RecurrentGla, HasTheSameBitsForAnySplitOverThreadsCallsAndRows) {
  const GlaProblem problem({2, 12, 1, 30, 70}, 1, /*seed=*/2);
  TestContext one(1), three(3);
  const GlaResults want = RunRecurrent(one.ctx(), problem);
  const GlaResults got = RunRecurrent(three.ctx(), problem);
  EXPECT_EQ(got.o, want.o);
  EXPECT_EQ(got.final_state, want.final_state);
  EXPECT_EQ(got.dg, want.dg);
  EXPECT_EQ(got.dv, want.dv);

  for (int32_t row = 0; row < 2; ++row) {
    OwnedTensor<float, 4> state = problem.initial_state;
    for (const auto& [begin, end] :
         std::vector<std::array<int64_t, 2>>{{0, 1}, {1, 7}, {7, 8}, {8, 12}}) {
      auto part = [&](const OwnedTensor<float, 4>& x) {
        const OwnedTensor<float, 4> tokens = Tokens(x, begin, end);
        OwnedTensor<float, 4> alone(
            {1, end - begin, tokens.dim(2), tokens.dim(3)});
        std::copy_n(tokens.data() + row * alone.size(), alone.size(),
                    alone.data());
        return alone;
      };
      const OwnedTensor<float, 4> q = part(problem.q), k = part(problem.k),
                                  v = part(problem.v), g = part(problem.g);
      OwnedTensor<float, 4> o = PoisonedTensor<4>(v.shape());
      RecurrentGlaFwdArgs fwd;
      fwd.q = q;
      fwd.k = k;
      fwd.v = v;
      fwd.g = g;
      fwd.slots = absl::MakeConstSpan(&row, 1);
      fwd.scale = problem.scale;
      fwd.o = o;
      fwd.state = state;
      RecurrentGlaFwd(three.ctx(), fwd);
      EXPECT_EQ(o, part(want.o));
    }
    const int64_t size = 30 * 70;
    for (int64_t i = row * size; i < (row + 1) * size; ++i) {
      ASSERT_EQ(state[i], want.final_state[i]);
    }
  }
}

TEST(RecurrentGla, AllocatesNothingFromTheSecondCallOn) {
  const GlaProblem problem({2, 65, 2, 64, 64}, 1, /*seed=*/1);
  TestContext test;
  RunRecurrent(test.ctx(), problem);
  const int64_t reserved = test.scratch().reserved_bytes();
  RunRecurrent(test.ctx(), problem);
  EXPECT_EQ(test.scratch().reserved_bytes(), reserved);
}

}  // namespace
}  // namespace gla
