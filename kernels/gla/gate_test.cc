#include "kernels/gla/gate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"
#include "kernels/device/test_device.h"
#include "kernels/testing/finite_difference.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/relative_rms.h"

namespace gla {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNormalizer = 16;
constexpr double kTolerance = 1e-6;

using Doubles = std::vector<double>;
using Matrix = OwnedTensor<float, 2>;
using Vector = OwnedTensor<float, 1>;
using Shape = std::array<int64_t, 2>;

const Shape kShapes[] = {{1, 1},   {5, 3},   {7, 60},   {3, 100},
                         {1, 512}, {6, 512}, {2, 4096}, {300, 37}};

double LogSigmoid(double x) {
  return std::min(x, 0.0) - std::log1p(std::exp(-std::abs(x)));
}

// The same function and the gradients of <g, dg>, in float64, from the logits.
struct Reference {
  Doubles g, dlogits, dbias;
};

void ForwardReference(const Doubles& logits, const Doubles& bias,
                      double normalizer, Reference* r) {
  r->g.resize(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    r->g[i] = LogSigmoid(logits[i] + bias[i % bias.size()]) / normalizer;
  }
}

void BackwardReference(const Doubles& logits, const Doubles& bias,
                       const Doubles& dg, double normalizer, Reference* r) {
  r->dlogits.resize(logits.size());
  r->dbias.assign(bias.size(), 0);
  for (size_t i = 0; i < logits.size(); ++i) {
    const double x = logits[i] + bias[i % bias.size()];
    r->dlogits[i] = dg[i] / normalizer / (1 + std::exp(x));
    r->dbias[i % bias.size()] += r->dlogits[i];
  }
}

struct Problem {
  explicit Problem(Shape shape, float normalizer = kNormalizer)
      : shape(shape),
        normalizer(normalizer),
        logits(RandomNormal<2>(shape, 1, 5)),
        bias(RandomNormal<1>({shape[1]}, 2)),
        dg(RandomNormal<2>(shape, 3)),
        dbias(RandomNormal<1>({shape[1]}, 4)) {}

  Reference Solve() const {
    Reference r;
    ForwardReference(logits.AsDouble(), bias.AsDouble(), normalizer, &r);
    BackwardReference(logits.AsDouble(), bias.AsDouble(), dg.AsDouble(),
                      normalizer, &r);
    for (size_t d = 0; d < dbias.size(); ++d) r.dbias[d] += dbias[d];
    return r;
  }

  Shape shape;
  float normalizer;
  Matrix logits;
  Vector bias;
  Matrix dg;
  Vector dbias;  // what dbias starts from
};

struct Result {
  Matrix g, dlogits;
  Vector dbias;
};

Result Compute(TestDevice& device, const Problem& p) {
  const auto g = device.Upload(PoisonedTensor<2>(p.shape));
  const auto dlogits = device.Upload(PoisonedTensor<2>(p.shape));
  const auto dbias = device.Upload(p.dbias);
  GateFwd(device.ctx(), {.logits = device.Upload(p.logits),
                         .bias = device.Upload(p.bias),
                         .normalizer = p.normalizer,
                         .g = g});
  GateBwd(device.ctx(), {.dg = device.Upload(p.dg),
                         .g = g,
                         .normalizer = p.normalizer,
                         .dlogits = dlogits,
                         .dbias = dbias});
  return {device.Download(g), device.Download(dlogits), device.Download(dbias)};
}

class GateTest : public testing::TestWithParam<Device> {
 protected:
  void SetUp() override {
    if (!IsPresent(GetParam())) GTEST_SKIP() << "no GPU on this machine";
    device_.emplace(GetParam());
  }
  TestDevice& device() { return *device_; }

 private:
  std::optional<TestDevice> device_;
};

INSTANTIATE_TEST_SUITE_P(Devices, GateTest, testing::ValuesIn(DevicesInBuild()),
                         DeviceName);

TEST_P(GateTest, MatchesReferenceInAllShapes) {
  for (const Shape& shape : kShapes) {
    for (const float normalizer : {16.0f, 1.0f, 0.1f}) {
      SCOPED_TRACE(absl::StrCat(absl::StrJoin(shape, "x"), " / ", normalizer));
      const Problem p(shape, normalizer);
      const Result got = Compute(device(), p);
      const Reference want = p.Solve();
      EXPECT_TRUE(RelativeRmsAtMost(kTolerance, got.g.values(), want.g));
      EXPECT_TRUE(
          RelativeRmsAtMost(kTolerance, got.dlogits.values(), want.dlogits));
      EXPECT_TRUE(
          RelativeRmsAtMost(kTolerance, got.dbias.values(), want.dbias));
    }
  }
}

// Every element to its own relative accuracy: the gate near one (g near 0),
// where 1 - exp would cancel, and the gate near zero.
TEST_P(GateTest, IsAccurateFromOpenToClosed) {
  Problem p({1, 1001});
  for (int64_t d = 0; d < 1001; ++d) {
    p.logits[d] = -80 + 0.16f * d;
    p.bias[d] = 0;
    p.dg[d] = 1;
  }
  const Result got = Compute(device(), p);
  const Reference want = p.Solve();
  for (int64_t d = 0; d < 1001; ++d) {
    EXPECT_NEAR(got.g[d] / want.g[d], 1, 1e-6) << p.logits[d];
    EXPECT_NEAR(got.dlogits[d] / want.dlogits[d], 1, 1e-6) << p.logits[d];
  }
}

TEST_P(GateTest, AClosedGateHasAFiniteGradient) {
  Problem p({1, 4});
  const float logits[] = {-kInf, -1e30f, 1e30f, kInf};
  for (int d = 0; d < 4; ++d) p.logits[d] = logits[d];
  const Result got = Compute(device(), p);
  EXPECT_EQ(got.g[0], -kInf);
  EXPECT_EQ(got.dlogits[0], p.dg[0] / kNormalizer);
  EXPECT_FLOAT_EQ(got.g[1], -1e30f / kNormalizer);
  EXPECT_EQ(got.dlogits[1], p.dg[1] / kNormalizer);
  for (int d = 2; d < 4; ++d) {
    EXPECT_EQ(got.g[d], 0);
    EXPECT_EQ(got.dlogits[d], 0);
  }
}

TEST_P(GateTest, OutputsMayAliasInputs) {
  for (const int64_t D : {37, 104}) {
    const Problem p({5, D});
    const Result want = Compute(device(), p);
    const auto logits = device().Upload(p.logits);
    GateFwd(device().ctx(), {.logits = logits,
                             .bias = device().Upload(p.bias),
                             .normalizer = kNormalizer,
                             .g = logits});
    EXPECT_EQ(device().Download(logits), want.g);
    const auto dg = device().Upload(p.dg);
    const auto dbias = device().Upload(p.dbias);
    GateBwd(device().ctx(), {.dg = dg,
                             .g = device().Upload(want.g),
                             .normalizer = kNormalizer,
                             .dlogits = dg,
                             .dbias = dbias});
    EXPECT_EQ(device().Download(dg), want.dlogits);
    EXPECT_EQ(device().Download(dbias), want.dbias);
  }
}

TEST_P(GateTest, RepeatsBitForBitWhateverTheThreadCount) {
  const Problem p({5170, 88});
  const Result want = Compute(device(), p);
  for (const int num_threads : {1, 3, 4}) {
    TestDevice other(GetParam(), num_threads);
    const Result got = Compute(other, p);
    EXPECT_EQ(got.g, want.g);
    EXPECT_EQ(got.dlogits, want.dlogits);
    EXPECT_EQ(got.dbias, want.dbias);
  }
  EXPECT_TRUE(
      RelativeRmsAtMost(kTolerance, want.dbias.values(), p.Solve().dbias));
}

TEST(GateReference, GradientsMatchFiniteDifferences) {
  const Problem p({3, 5});
  Doubles logits = p.logits.AsDouble(), bias = p.bias.AsDouble();
  const Doubles dg = p.dg.AsDouble();
  Reference r;
  const auto loss = [&] {
    ForwardReference(logits, bias, kNormalizer, &r);
    double total = 0;
    for (size_t i = 0; i < dg.size(); ++i) total += r.g[i] * dg[i];
    return total;
  };
  const Doubles dlogits =
      FiniteDifferenceGradient(absl::MakeSpan(logits), 1e-5, loss);
  const Doubles dbias =
      FiniteDifferenceGradient(absl::MakeSpan(bias), 1e-5, loss);
  BackwardReference(logits, bias, dg, kNormalizer, &r);
  for (size_t i = 0; i < dlogits.size(); ++i) {
    EXPECT_NEAR(r.dlogits[i], dlogits[i], 1e-8);
  }
  for (size_t d = 0; d < dbias.size(); ++d) {
    EXPECT_NEAR(r.dbias[d], dbias[d], 1e-8);
  }
}

TEST(GateDeathTest, NamesTheTensorWithTheWrongShape) {
  TestDevice device(Device::kCpu);
  Matrix logits({2, 4}), g({2, 4});
  Vector bias({3});
  EXPECT_DEATH(GateFwd(device.ctx(), {.logits = logits, .bias = bias, .g = g}),
               "bias: want \\[4\\], got \\[3\\]");
}

}  // namespace
}  // namespace gla
