#include "kernels/norm/gated_rms_norm.h"

#include <cmath>
#include <optional>
#include <vector>

#include "absl/strings/str_join.h"
#include "gtest/gtest.h"
#include "kernels/device/test_device.h"
#include "kernels/testing/finite_difference.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/relative_rms.h"

namespace gla {
namespace {

constexpr float kEps = 1e-5f;
constexpr double kTolerance = 1e-6;

using Doubles = std::vector<double>;
using Matrix = OwnedTensor<float, 2>;
using Vector = OwnedTensor<float, 1>;
using Shape = std::array<int64_t, 2>;

const Shape kShapes[] = {{1, 1},   {5, 3},    {1, 60},   {7, 60},    {3, 100},
                         {9, 128}, {130, 17}, {33, 256}, {300, 512}, {2, 4096}};

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
  Matrix y;
  Vector rstd;
  Matrix dx, dgate;
  Vector dweight;
};

Result Compute(TestDevice& device, const Problem& p) {
  const auto x = device.Upload(p.x), gate = device.Upload(p.gate);
  const auto weight = device.Upload(p.weight);
  const auto y = device.Upload(PoisonedTensor<2>(p.shape));
  const auto rstd = device.Upload(PoisonedTensor<1>({p.shape[0]}));
  const auto dx = device.Upload(PoisonedTensor<2>(p.shape));
  const auto dgate = device.Upload(PoisonedTensor<2>(p.shape));
  const auto dweight = device.Upload(p.dweight);
  GatedRmsNormFwd(device.ctx(), {.x = x,
                                 .gate = gate,
                                 .weight = weight,
                                 .eps = kEps,
                                 .y = y,
                                 .rstd = rstd});
  GatedRmsNormBwd(device.ctx(), {.dy = device.Upload(p.dy),
                                 .x = x,
                                 .gate = gate,
                                 .weight = weight,
                                 .rstd = rstd,
                                 .dx = dx,
                                 .dgate = dgate,
                                 .dweight = dweight});
  return {device.Download(y), device.Download(rstd), device.Download(dx),
          device.Download(dgate), device.Download(dweight)};
}

class GatedRmsNormTest : public testing::TestWithParam<Device> {
 protected:
  void SetUp() override {
    if (!IsPresent(GetParam())) GTEST_SKIP() << "no GPU on this machine";
    device_.emplace(GetParam());
  }
  TestDevice& device() { return *device_; }

 private:
  std::optional<TestDevice> device_;
};

INSTANTIATE_TEST_SUITE_P(Devices, GatedRmsNormTest,
                         testing::ValuesIn(DevicesInBuild()), DeviceName);

TEST_P(GatedRmsNormTest, MatchesReferenceInAllShapes) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(absl::StrJoin(shape, "x"));
    const Problem p(shape);
    const Result got = Compute(device(), p);
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

TEST_P(GatedRmsNormTest, StaysFiniteAtExtremeGates) {
  Problem p({1, 8});
  const float gates[] = {-1e30f, -200, -88, 0, 1e-30f, 88, 200, 1e30f};
  for (int i = 0; i < 8; ++i) p.gate[i] = gates[i];
  const Result got = Compute(device(), p);
  for (int i = 0; i < 8; ++i) {
    EXPECT_TRUE(std::isfinite(got.y[i])) << gates[i];
    EXPECT_TRUE(std::isfinite(got.dgate[i])) << gates[i];
  }
}

TEST_P(GatedRmsNormTest, YMayAliasX) {
  for (const int64_t V : {17, 100, 512}) {
    const Problem p({5, V});
    const auto x = device().Upload(p.x);
    GatedRmsNormFwd(device().ctx(), {.x = x,
                                     .gate = device().Upload(p.gate),
                                     .weight = device().Upload(p.weight),
                                     .eps = kEps,
                                     .y = x});
    EXPECT_EQ(device().Download(x), Compute(device(), p).y);
  }
}

TEST_P(GatedRmsNormTest, DxMayAliasDy) {
  for (const int64_t V : {17, 100, 512}) {
    const Problem p({5, V});
    const Result want = Compute(device(), p);
    const auto dy = device().Upload(p.dy);
    const auto dgate = device().Upload(PoisonedTensor<2>(p.shape));
    const auto dweight = device().Upload(p.dweight);
    GatedRmsNormBwd(device().ctx(), {.dy = dy,
                                     .x = device().Upload(p.x),
                                     .gate = device().Upload(p.gate),
                                     .weight = device().Upload(p.weight),
                                     .rstd = device().Upload(want.rstd),
                                     .dx = dy,
                                     .dgate = dgate,
                                     .dweight = dweight});
    EXPECT_EQ(device().Download(dy), want.dx);
    EXPECT_EQ(device().Download(dgate), want.dgate);
    EXPECT_EQ(device().Download(dweight), want.dweight);
  }
}

// Enough rows for a GPU block to have several.
TEST_P(GatedRmsNormTest, RepeatsBitForBitWhateverTheThreadCount) {
  const Problem p({10007, 84});
  const Result want = Compute(device(), p);
  for (const int num_threads : {1, 3, 4}) {
    TestDevice other(GetParam(), num_threads);
    const Result got = Compute(other, p);
    EXPECT_EQ(got.y, want.y);
    EXPECT_EQ(got.dx, want.dx);
    EXPECT_EQ(got.dgate, want.dgate);
    EXPECT_EQ(got.dweight, want.dweight);
  }
  EXPECT_TRUE(
      RelativeRmsAtMost(kTolerance, want.dweight.values(), p.Solve().dweight));
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
  TestDevice device(Device::kCpu);
  Matrix x({2, 4}), gate({2, 3}), y({2, 4});
  Vector weight({4});
  EXPECT_DEATH(
      GatedRmsNormFwd(
          device.ctx(),
          {.x = x, .gate = gate, .weight = weight, .eps = kEps, .y = y}),
      "gate: want \\[2, 4\\], got \\[2, 3\\]");
}

}  // namespace
}  // namespace gla
