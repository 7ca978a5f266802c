#include "kernels/activation/swiglu.h"

#include <cmath>
#include <vector>

#include "absl/strings/str_join.h"
#include "gtest/gtest.h"
#include "kernels/testing/finite_difference.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/relative_rms.h"
#include "kernels/testing/test_context.h"

namespace gla {
namespace {

constexpr double kTolerance = 1e-6;

using Doubles = std::vector<double>;
using Matrix = OwnedTensor<float, 2>;
using Shape = std::array<int64_t, 2>;

const Shape kShapes[] = {{1, 1},   {5, 3},   {7, 60},   {3, 100},
                         {1, 512}, {6, 512}, {2, 4096}, {300, 37}};

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// The same function and the gradients of <y, dy>, in float64.
struct Reference {
  Doubles y, dgate, dup;
};

void ForwardReference(const Doubles& gate, const Doubles& up, Reference* r) {
  r->y.resize(gate.size());
  for (size_t i = 0; i < gate.size(); ++i) {
    r->y[i] = gate[i] * Sigmoid(gate[i]) * up[i];
  }
}

void BackwardReference(const Doubles& gate, const Doubles& up,
                       const Doubles& dy, Reference* r) {
  r->dgate.resize(gate.size());
  r->dup.resize(gate.size());
  for (size_t i = 0; i < gate.size(); ++i) {
    const double s = Sigmoid(gate[i]);
    r->dgate[i] = dy[i] * up[i] * s * (1 + gate[i] * (1 - s));
    r->dup[i] = dy[i] * gate[i] * s;
  }
}

struct Problem {
  explicit Problem(Shape shape)
      : shape(shape),
        gate(RandomNormal<2>(shape, 1, 4)),
        up(RandomNormal<2>(shape, 2)),
        dy(RandomNormal<2>(shape, 3)) {}

  Reference Solve() const {
    Reference r;
    ForwardReference(gate.AsDouble(), up.AsDouble(), &r);
    BackwardReference(gate.AsDouble(), up.AsDouble(), dy.AsDouble(), &r);
    return r;
  }

  Shape shape;
  Matrix gate, up, dy;
};

struct Result {
  explicit Result(Shape shape)
      : y(PoisonedTensor<2>(shape)),
        y_again(PoisonedTensor<2>(shape)),
        dgate(PoisonedTensor<2>(shape)),
        dup(PoisonedTensor<2>(shape)) {}
  Matrix y, y_again, dgate, dup;
};

Result Compute(const ExecutionContext& ctx, const Problem& p) {
  Result r(p.shape);
  SwigluFwd(ctx, p.gate, p.up, r.y);
  SwigluBwd(ctx, {.dy = p.dy,
                  .gate = p.gate,
                  .up = p.up,
                  .dgate = r.dgate,
                  .dup = r.dup,
                  .y = r.y_again});
  return r;
}

TEST(Swiglu, MatchesReferenceInAllShapes) {
  TestContext test;
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(absl::StrJoin(shape, "x"));
    const Problem p(shape);
    const Result got = Compute(test.ctx(), p);
    const Reference want = p.Solve();
    EXPECT_TRUE(RelativeRmsAtMost(kTolerance, got.y.values(), want.y));
    EXPECT_TRUE(RelativeRmsAtMost(kTolerance, got.y_again.values(), want.y));
    EXPECT_TRUE(RelativeRmsAtMost(kTolerance, got.dgate.values(), want.dgate));
    EXPECT_TRUE(RelativeRmsAtMost(kTolerance, got.dup.values(), want.dup));
  }
}

TEST(Swiglu, StaysFiniteAtExtremeGates) {
  TestContext test;
  Problem p({1, 8});
  const float gates[] = {-1e30f, -200, -88, 0, 1e-30f, 88, 200, 1e30f};
  for (int i = 0; i < 8; ++i) p.gate[i] = gates[i];
  const Result got = Compute(test.ctx(), p);
  const Reference want = p.Solve();
  for (int i = 0; i < 8; ++i) {
    EXPECT_NEAR(got.y[i], want.y[i], 1e-6 * std::abs(want.y[i]) + 1e-30);
    EXPECT_NEAR(got.dgate[i], want.dgate[i],
                1e-6 * std::abs(want.dgate[i]) + 1e-30);
  }
}

TEST(SwigluFwd, YMayAliasGateOrUp) {
  TestContext test;
  const Problem p({5, 100});
  const Matrix want = Compute(test.ctx(), p).y;
  Matrix gate = p.gate;
  SwigluFwd(test.ctx(), gate, p.up, gate);
  EXPECT_EQ(gate, want);
  Matrix up = p.up;
  SwigluFwd(test.ctx(), p.gate, up, up);
  EXPECT_EQ(up, want);
}

TEST(SwigluBwd, OutputsMayAliasGateUpAndDy) {
  TestContext test;
  Problem p({5, 100});
  const Result want = Compute(test.ctx(), p);
  SwigluBwd(test.ctx(), {.dy = p.dy,
                         .gate = p.gate,
                         .up = p.up,
                         .dgate = p.gate,
                         .dup = p.up,
                         .y = p.dy});
  EXPECT_EQ(p.gate, want.dgate);
  EXPECT_EQ(p.up, want.dup);
  EXPECT_EQ(p.dy, want.y);
}

TEST(Swiglu, HasTheSameBitsForAnyThreadCount) {
  const Problem p({517, 84});
  TestContext one(1);
  const Result want = Compute(one.ctx(), p);
  for (const int num_threads : {2, 3, 4}) {
    TestContext test(num_threads);
    const Result got = Compute(test.ctx(), p);
    EXPECT_EQ(got.y, want.y);
    EXPECT_EQ(got.dgate, want.dgate);
    EXPECT_EQ(got.dup, want.dup);
  }
}

TEST(Swiglu, ARowHasTheSameBitsAloneAndAmongOthers) {
  TestContext test;
  const Problem p({9, 37});
  const Matrix all = Compute(test.ctx(), p).y;
  Problem alone({1, 37});
  for (int i = 0; i < 37; ++i) {
    alone.gate[i] = p.gate[5 * 37 + i];
    alone.up[i] = p.up[5 * 37 + i];
  }
  const Matrix one = Compute(test.ctx(), alone).y;
  for (int i = 0; i < 37; ++i) EXPECT_EQ(one[i], all[5 * 37 + i]);
}

TEST(SwigluReference, GradientsMatchFiniteDifferences) {
  const Problem p({3, 5});
  Doubles gate = p.gate.AsDouble(), up = p.up.AsDouble();
  const Doubles dy = p.dy.AsDouble();
  Reference r;
  const auto loss = [&] {
    ForwardReference(gate, up, &r);
    double total = 0;
    for (size_t i = 0; i < dy.size(); ++i) total += r.y[i] * dy[i];
    return total;
  };
  const Doubles dgate =
      FiniteDifferenceGradient(absl::MakeSpan(gate), 1e-5, loss);
  const Doubles dup = FiniteDifferenceGradient(absl::MakeSpan(up), 1e-5, loss);
  BackwardReference(gate, up, dy, &r);
  for (size_t i = 0; i < dy.size(); ++i) {
    EXPECT_NEAR(r.dgate[i], dgate[i], 1e-8);
    EXPECT_NEAR(r.dup[i], dup[i], 1e-8);
  }
}

TEST(SwigluDeathTest, NamesTheTensorWithTheWrongShape) {
  TestContext test;
  Matrix gate({2, 4}), up({2, 3}), y({2, 4});
  EXPECT_DEATH(SwigluFwd(test.ctx(), gate, up, y),
               "up: want \\[2, 4\\], got \\[2, 3\\]");
}

}  // namespace
}  // namespace gla
