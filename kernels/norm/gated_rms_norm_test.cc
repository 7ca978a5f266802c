#include "kernels/norm/gated_rms_norm.h"

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

constexpr float kEps = 1e-5f;
constexpr double kTolerance = 1e-6;

using Doubles = std::vector<double>;
using Matrix = OwnedTensor<float, 2>;
using Vector = OwnedTensor<float, 1>;
using Shape = std::array<int64_t, 2>;

const Shape kShapes[] = {{1, 1},   {5, 3},    {1, 60},  {7, 60},
                         {3, 100}, {130, 17}, {6, 512}, {2, 4096}};

// The same function and the gradients of <y, dy>, in float64.
struct Reference {
  Doubles y, rstd, dx, dgate, dweight;
};

void ForwardReference(Shape shape, const Doubles& x, const Doubles& gate,
                      const Doubles& weight, Reference* r) {
  const auto [M, V] = shape;
  r->y.resize(M * V);
  r->rstd.resize(M);
  for (int64_t m = 0; m < M; ++m) {
    double squares = 0;
    for (int64_t i = m * V; i < (m + 1) * V; ++i) squares += x[i] * x[i];
    r->rstd[m] = 1 / std::sqrt(squares / V + kEps);
    for (int64_t i = m * V; i < (m + 1) * V; ++i) {
      const double silu = gate[i] / (1 + std::exp(-gate[i]));
      r->y[i] = x[i] * r->rstd[m] * weight[i - m * V] * silu;
    }
  }
}

void BackwardReference(Shape shape, const Doubles& x, const Doubles& gate,
                       const Doubles& weight, const Doubles& dy, Reference* r) {
  const auto [M, V] = shape;
  r->dx.resize(M * V);
  r->dgate.resize(M * V);
  r->dweight.assign(V, 0);
  for (int64_t m = 0; m < M; ++m) {
    const double rstd = r->rstd[m];
    double dot = 0;
    for (int64_t v = 0; v < V; ++v) {
      const int64_t i = m * V + v;
      const double sigmoid = 1 / (1 + std::exp(-gate[i]));
      const double n = x[i] * rstd;
      const double dh = dy[i] * gate[i] * sigmoid;
      r->dgate[i] =
          dy[i] * n * weight[v] * sigmoid * (1 + gate[i] * (1 - sigmoid));
      r->dweight[v] += dh * n;
      r->dx[i] = weight[v] * dh;
      dot += r->dx[i] * n;
    }
    for (int64_t i = m * V; i < (m + 1) * V; ++i) {
      r->dx[i] = rstd * (r->dx[i] - x[i] * rstd * dot / V);
    }
  }
}

struct Problem {
  explicit Problem(Shape shape)
      : shape(shape),
        x(RandomNormal<2>(shape, 1)),
        gate(RandomNormal<2>(shape, 2, 4)),
        weight(RandomNormal<1>({shape[1]}, 3)),
        dy(RandomNormal<2>(shape, 4)),
        dweight(RandomNormal<1>({shape[1]}, 5)) {}

  Reference Solve() const {
    Reference r;
    ForwardReference(shape, x.AsDouble(), gate.AsDouble(), weight.AsDouble(),
                     &r);
    BackwardReference(shape, x.AsDouble(), gate.AsDouble(), weight.AsDouble(),
                      dy.AsDouble(), &r);
    for (size_t i = 0; i < dweight.size(); ++i) r.dweight[i] += dweight[i];
    return r;
  }

  Shape shape;
  Matrix x, gate;
  Vector weight;
  Matrix dy;
  Vector dweight;  // what dweight starts from
};

struct Result {
  explicit Result(const Problem& p)
      : y(PoisonedTensor<2>(p.shape)),
        rstd(PoisonedTensor<1>({p.shape[0]})),
        dx(PoisonedTensor<2>(p.shape)),
        dgate(PoisonedTensor<2>(p.shape)),
        dweight(p.dweight) {}
  Matrix y;
  Vector rstd;
  Matrix dx, dgate;
  Vector dweight;
};

Result Compute(const ExecutionContext& ctx, const Problem& p) {
  Result r(p);
  GatedRmsNormFwd(ctx, {.x = p.x,
                        .gate = p.gate,
                        .weight = p.weight,
                        .eps = kEps,
                        .y = r.y,
                        .rstd = r.rstd});
  GatedRmsNormBwd(ctx, {.dy = p.dy,
                        .x = p.x,
                        .gate = p.gate,
                        .weight = p.weight,
                        .rstd = r.rstd,
                        .dx = r.dx,
                        .dgate = r.dgate,
                        .dweight = r.dweight});
  return r;
}

TEST(GatedRmsNorm, MatchesReferenceInAllShapes) {
  TestContext test;
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(absl::StrJoin(shape, "x"));
    const Problem p(shape);
    const Result got = Compute(test.ctx(), p);
    const Reference want = p.Solve();
    EXPECT_TRUE(RelativeRmsAtMost(kTolerance, got.y.values(), want.y));
    EXPECT_TRUE(RelativeRmsAtMost(kTolerance, got.rstd.values(), want.rstd));
    EXPECT_TRUE(RelativeRmsAtMost(kTolerance, got.dgate.values(), want.dgate));
    EXPECT_TRUE(
        RelativeRmsAtMost(kTolerance, got.dweight.values(), want.dweight));
    // In a row of one element the gradient cancels but for eps.
    if (shape[1] > 1) {
      EXPECT_TRUE(RelativeRmsAtMost(kTolerance, got.dx.values(), want.dx));
    } else {
      EXPECT_NEAR(got.dx[0], want.dx[0], 1e-6);
    }
  }
}

TEST(GatedRmsNorm, StaysFiniteAtExtremeGates) {
  TestContext test;
  Problem p({1, 8});
  const float gates[] = {-1e30f, -200, -88, 0, 1e-30f, 88, 200, 1e30f};
  for (int i = 0; i < 8; ++i) p.gate[i] = gates[i];
  const Result got = Compute(test.ctx(), p);
  for (int i = 0; i < 8; ++i) {
    EXPECT_TRUE(std::isfinite(got.y[i])) << gates[i];
    EXPECT_TRUE(std::isfinite(got.dgate[i])) << gates[i];
  }
}

TEST(GatedRmsNormFwd, YMayAliasX) {
  TestContext test;
  Problem p({5, 100});
  const Result want = Compute(test.ctx(), p);
  GatedRmsNormFwd(
      test.ctx(),
      {.x = p.x, .gate = p.gate, .weight = p.weight, .eps = kEps, .y = p.x});
  EXPECT_EQ(p.x, want.y);
}

TEST(GatedRmsNormBwd, DxMayAliasDy) {
  TestContext test;
  Problem p({5, 100});
  const Result want = Compute(test.ctx(), p);
  Result got(p);
  GatedRmsNormBwd(test.ctx(), {.dy = p.dy,
                               .x = p.x,
                               .gate = p.gate,
                               .weight = p.weight,
                               .rstd = want.rstd,
                               .dx = p.dy,
                               .dgate = got.dgate,
                               .dweight = got.dweight});
  EXPECT_EQ(p.dy, want.dx);
  EXPECT_EQ(got.dgate, want.dgate);
  EXPECT_EQ(got.dweight, want.dweight);
}

TEST(GatedRmsNorm, HasTheSameBitsForAnyThreadCount) {
  const Problem p({517, 84});
  TestContext one(1);
  const Result want = Compute(one.ctx(), p);
  for (const int num_threads : {2, 3, 4}) {
    TestContext test(num_threads);
    const Result got = Compute(test.ctx(), p);
    EXPECT_EQ(got.y, want.y);
    EXPECT_EQ(got.dx, want.dx);
    EXPECT_EQ(got.dgate, want.dgate);
    EXPECT_EQ(got.dweight, want.dweight);
  }
}

TEST(GatedRmsNormReference, GradientsMatchFiniteDifferences) {
  const Problem p({3, 5});
  Doubles x = p.x.AsDouble(), gate = p.gate.AsDouble();
  Doubles weight = p.weight.AsDouble(), dy = p.dy.AsDouble();
  Reference r;
  const auto loss = [&] {
    ForwardReference(p.shape, x, gate, weight, &r);
    double total = 0;
    for (size_t i = 0; i < dy.size(); ++i) total += r.y[i] * dy[i];
    return total;
  };
  const auto gradient = [&](Doubles& of) {
    return FiniteDifferenceGradient(absl::MakeSpan(of), 1e-5, loss);
  };
  const Doubles dx = gradient(x), dgate = gradient(gate);
  const Doubles dweight = gradient(weight);
  loss();
  BackwardReference(p.shape, x, gate, weight, dy, &r);
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_NEAR(r.dx[i], dx[i], 1e-8);
    EXPECT_NEAR(r.dgate[i], dgate[i], 1e-8);
  }
  for (size_t i = 0; i < weight.size(); ++i) {
    EXPECT_NEAR(r.dweight[i], dweight[i], 1e-8);
  }
}

TEST(GatedRmsNormDeathTest, NamesTheTensorWithTheWrongShape) {
  TestContext test;
  Matrix x({2, 4}), gate({2, 3}), y({2, 4});
  Vector weight({4});
  EXPECT_DEATH(
      GatedRmsNormFwd(
          test.ctx(),
          {.x = x, .gate = gate, .weight = weight, .eps = kEps, .y = y}),
      "gate: want \\[2, 4\\], got \\[2, 3\\]");
}

}  // namespace
}  // namespace gla
