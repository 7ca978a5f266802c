#include "kernels/norm/rms_norm.h"

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

const Shape kShapes[] = {{1, 1},    {4, 1},    {5, 3},    {1, 60},  {7, 60},
                         {3, 100},  {65, 36},  {130, 17}, {6, 512}, {1, 512},
                         {3, 1023}, {2, 4096}, {3, 4097}};

// Everything about one problem in float64: y = norm(sum) * weight, and the
// gradients of <y, dy> + <sum, dresidual>.
struct Reference {
  Doubles sum, y = {}, rstd = {}, dsum = {}, dweight = {};
};

void ForwardReference(Shape shape, const Doubles& weight, Reference* r) {
  const auto [M, D] = shape;
  r->y.resize(M * D);
  r->rstd.resize(M);
  for (int64_t m = 0; m < M; ++m) {
    double squares = 0;
    for (int64_t d = 0; d < D; ++d) squares += std::pow(r->sum[m * D + d], 2);
    r->rstd[m] = 1 / std::sqrt(squares / D + kEps);
    for (int64_t d = 0; d < D; ++d) {
      r->y[m * D + d] = r->sum[m * D + d] * r->rstd[m] * weight[d];
    }
  }
}

void BackwardReference(Shape shape, const Doubles& weight, const Doubles& dy,
                       const Doubles& dresidual, Reference* r) {
  const auto [M, D] = shape;
  r->dsum.resize(M * D);
  r->dweight.assign(D, 0);
  for (int64_t m = 0; m < M; ++m) {
    double dot = 0;
    for (int64_t d = 0; d < D; ++d) {
      const int64_t i = m * D + d;
      dot += dy[i] * weight[d] * r->sum[i] * r->rstd[m];
      r->dweight[d] += dy[i] * r->sum[i] * r->rstd[m];
    }
    for (int64_t d = 0; d < D; ++d) {
      const int64_t i = m * D + d;
      const double n = r->sum[i] * r->rstd[m];
      r->dsum[i] =
          r->rstd[m] * (dy[i] * weight[d] - n * dot / D) + dresidual[i];
    }
  }
}

// A random problem; its tensors live on the host.
struct Problem {
  explicit Problem(Shape shape)
      : shape(shape),
        x(RandomUniform<2>(shape, 1, -2, 2)),
        residual(RandomUniform<2>(shape, 2, -5, 5)),
        weight(RandomNormal<1>({shape[1]}, 3)),
        dy(RandomUniform<2>(shape, 4, -2, 2)),
        dresidual(RandomUniform<2>(shape, 5, -2, 2)),
        dweight(RandomNormal<1>({shape[1]}, 6)),
        sum(shape),
        rstd({shape[0]}) {
    for (size_t i = 0; i < sum.size(); ++i) sum[i] = x[i] + residual[i];
    Reference r{.sum = sum.AsDouble()};
    ForwardReference(shape, weight.AsDouble(), &r);
    for (size_t m = 0; m < rstd.size(); ++m) rstd[m] = r.rstd[m];
  }

  // From `sum` on; dweight includes what it started from.
  Reference Solve() const {
    Reference r{.sum = sum.AsDouble()};
    ForwardReference(shape, weight.AsDouble(), &r);
    BackwardReference(shape, weight.AsDouble(), dy.AsDouble(),
                      dresidual.AsDouble(), &r);
    for (size_t d = 0; d < dweight.size(); ++d) r.dweight[d] += dweight[d];
    return r;
  }

  Shape shape;
  Matrix x, residual;
  Vector weight;
  Matrix dy, dresidual;
  Vector dweight;
  Matrix sum;   // x + residual, as the op rounds it
  Vector rstd;  // of `sum`
};

// What the op gives back.
struct Result {
  Matrix sum, y;
  Vector rstd;
};
struct Gradients {
  Matrix dsum;
  Vector dweight;
};

Result Forward(TestDevice& device, const Problem& p) {
  auto sum = device.Upload(PoisonedTensor<2>(p.shape));
  auto y = device.Upload(PoisonedTensor<2>(p.shape));
  auto rstd = device.Upload(PoisonedTensor<1>({p.shape[0]}));
  RmsNormFwd(device.ctx(), {.x = device.Upload(p.x),
                            .residual = device.Upload(p.residual),
                            .weight = device.Upload(p.weight),
                            .eps = kEps,
                            .sum = sum,
                            .y = y,
                            .rstd = rstd});
  return {device.Download(sum), device.Download(y), device.Download(rstd)};
}

Gradients Backward(TestDevice& device, const Problem& p) {
  auto dsum = device.Upload(PoisonedTensor<2>(p.shape));
  auto dweight = device.Upload(p.dweight);
  RmsNormBwd(device.ctx(), {.dy = device.Upload(p.dy),
                            .sum = device.Upload(p.sum),
                            .weight = device.Upload(p.weight),
                            .rstd = device.Upload(p.rstd),
                            .dresidual = device.Upload(p.dresidual),
                            .dsum = dsum,
                            .dweight = dweight});
  return {device.Download(dsum), device.Download(dweight)};
}

class RmsNormTest : public testing::TestWithParam<Device> {
 protected:
  void SetUp() override {
    if (!IsPresent(GetParam())) GTEST_SKIP() << "no GPU on this machine";
    device_.emplace(GetParam());
  }
  TestDevice& device() { return *device_; }

 private:
  std::optional<TestDevice> device_;
};

INSTANTIATE_TEST_SUITE_P(Devices, RmsNormTest,
                         testing::ValuesIn(DevicesInBuild()), DeviceName);

TEST_P(RmsNormTest, ForwardMatchesReferenceInAllShapes) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(absl::StrJoin(shape, "x"));
    const Problem p(shape);
    const Result result = Forward(device(), p);
    const Reference want = p.Solve();
    EXPECT_EQ(result.sum.values(), p.sum.values());
    EXPECT_TRUE(RelativeRmsAtMost(kTolerance, result.y.values(), want.y));
    EXPECT_TRUE(RelativeRmsAtMost(kTolerance, result.rstd.values(), want.rstd));
  }
}

TEST_P(RmsNormTest, BackwardMatchesReferenceInAllShapes) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(absl::StrJoin(shape, "x"));
    const Problem p(shape);
    const Gradients got = Backward(device(), p);
    const Reference want = p.Solve();
    EXPECT_TRUE(RelativeRmsAtMost(kTolerance, got.dsum.values(), want.dsum));
    EXPECT_TRUE(
        RelativeRmsAtMost(kTolerance, got.dweight.values(), want.dweight));
  }
}

TEST_P(RmsNormTest, MatchesReferenceAt4096x2048) {
  const Problem p({4096, 2048});
  const Reference want = p.Solve();
  const Result result = Forward(device(), p);
  EXPECT_TRUE(RelativeRmsAtMost(kTolerance, result.y.values(), want.y));
  const Gradients got = Backward(device(), p);
  EXPECT_TRUE(RelativeRmsAtMost(kTolerance, got.dsum.values(), want.dsum));
  EXPECT_TRUE(
      RelativeRmsAtMost(kTolerance, got.dweight.values(), want.dweight));
}

TEST_P(RmsNormTest, WorksWithoutTheOptionalTensors) {
  Problem p({9, 60});
  auto y = device().Upload(PoisonedTensor<2>(p.shape));
  RmsNormFwd(device().ctx(), {.x = device().Upload(p.sum),
                              .weight = device().Upload(p.weight),
                              .eps = kEps,
                              .y = y});
  for (size_t i = 0; i < p.dresidual.size(); ++i) p.dresidual[i] = 0;
  const Reference want = p.Solve();
  EXPECT_TRUE(
      RelativeRmsAtMost(kTolerance, device().Download(y).values(), want.y));

  auto dsum = device().Upload(PoisonedTensor<2>(p.shape));
  RmsNormBwd(device().ctx(), {.dy = device().Upload(p.dy),
                              .sum = device().Upload(p.sum),
                              .weight = device().Upload(p.weight),
                              .rstd = device().Upload(p.rstd),
                              .dsum = dsum,
                              .dweight = device().Upload(p.dweight)});
  EXPECT_TRUE(RelativeRmsAtMost(kTolerance, device().Download(dsum).values(),
                                want.dsum));
}

TEST_P(RmsNormTest, SumMayAliasXOrResidual) {
  const Problem p({5, 100});
  const Result want = Forward(device(), p);
  for (const bool alias_x : {false, true}) {
    auto x = device().Upload(p.x);
    auto residual = device().Upload(p.residual);
    auto sum = alias_x ? x : residual;
    auto y = device().Upload(PoisonedTensor<2>(p.shape));
    RmsNormFwd(device().ctx(), {.x = x,
                                .residual = residual,
                                .weight = device().Upload(p.weight),
                                .eps = kEps,
                                .sum = sum,
                                .y = y});
    EXPECT_EQ(device().Download(sum), want.sum);
    EXPECT_EQ(device().Download(y), want.y);
  }
}

TEST_P(RmsNormTest, YMayAliasXWithoutResidual) {
  const Problem p({5, 100});
  auto x = device().Upload(p.sum);
  RmsNormFwd(
      device().ctx(),
      {.x = x, .weight = device().Upload(p.weight), .eps = kEps, .y = x});
  EXPECT_EQ(device().Download(x), Forward(device(), p).y);
}

TEST_P(RmsNormTest, DsumMayAliasDresidualOrDy) {
  const Problem p({5, 100});
  const Gradients want = Backward(device(), p);
  for (const bool alias_dy : {false, true}) {
    auto dy = device().Upload(p.dy);
    auto dresidual = device().Upload(p.dresidual);
    auto dsum = alias_dy ? dy : dresidual;
    auto dweight = device().Upload(p.dweight);
    RmsNormBwd(device().ctx(), {.dy = dy,
                                .sum = device().Upload(p.sum),
                                .weight = device().Upload(p.weight),
                                .rstd = device().Upload(p.rstd),
                                .dresidual = dresidual,
                                .dsum = dsum,
                                .dweight = dweight});
    EXPECT_EQ(device().Download(dsum), want.dsum);
    EXPECT_EQ(device().Download(dweight), want.dweight);
  }
}

TEST_P(RmsNormTest, RepeatsBitForBitWhateverTheThreadCount) {
  const Problem p({517, 84});
  const Result y = Forward(device(), p);
  const Gradients gradients = Backward(device(), p);
  for (const int num_threads : {1, 3, 4}) {
    TestDevice other(GetParam(), num_threads);
    EXPECT_EQ(Forward(other, p).y, y.y);
    const Gradients again = Backward(other, p);
    EXPECT_EQ(again.dsum, gradients.dsum);
    EXPECT_EQ(again.dweight, gradients.dweight);
  }
}

TEST_P(RmsNormTest, ARowHasTheSameBitsAloneAndAmongOthers) {
  Problem p({33, 100});
  const Result all = Forward(device(), p);
  const int64_t row = 21;
  Problem alone({1, 100});
  for (int64_t d = 0; d < 100; ++d) {
    alone.x[d] = p.x[row * 100 + d];
    alone.residual[d] = p.residual[row * 100 + d];
  }
  const Result one = Forward(device(), alone);
  for (int64_t d = 0; d < 100; ++d) EXPECT_EQ(one.y[d], all.y[row * 100 + d]);
}

TEST_P(RmsNormTest, ReadsRowsThatAreNotAligned) {
  const int64_t D = 64;
  const Problem p({1, D});
  Matrix shifted({1, D + 1});
  for (int64_t d = 0; d < D; ++d) shifted[d + 1] = p.sum[d];
  const TensorView<float, 2> x(device().Upload(shifted).data() + 1, {1, D});
  auto y = device().Upload(PoisonedTensor<2>({1, D}));
  RmsNormFwd(
      device().ctx(),
      {.x = x, .weight = device().Upload(p.weight), .eps = kEps, .y = y});
  EXPECT_TRUE(RelativeRmsAtMost(kTolerance, device().Download(y).values(),
                                p.Solve().y));
}

TEST_P(RmsNormTest, ARowOfZerosStaysFinite) {
  auto y = device().Upload(PoisonedTensor<2>({1, 8}));
  auto rstd = device().Upload(PoisonedTensor<1>({1}));
  RmsNormFwd(device().ctx(),
             {.x = device().Upload(Matrix({1, 8})),
              .weight = device().Upload(RandomNormal<1>({8}, 1)),
              .eps = kEps,
              .y = y,
              .rstd = rstd});
  EXPECT_EQ(device().Download(y), Matrix({1, 8}));
  EXPECT_FLOAT_EQ(device().Download(rstd)[0], 1 / std::sqrt(kEps));
}

TEST(RmsNormReference, GradientsMatchFiniteDifferences) {
  const Shape shape = {3, 5};
  const Problem p(shape);
  Reference r{.sum = p.sum.AsDouble()};
  Doubles weight = p.weight.AsDouble();
  const Doubles dy = p.dy.AsDouble();
  const Doubles dresidual = p.dresidual.AsDouble();
  const auto loss = [&] {
    ForwardReference(shape, weight, &r);
    double total = 0;
    for (size_t i = 0; i < dy.size(); ++i) {
      total += r.y[i] * dy[i] + r.sum[i] * dresidual[i];
    }
    return total;
  };
  const Doubles dsum =
      FiniteDifferenceGradient(absl::MakeSpan(r.sum), 1e-5, loss);
  const Doubles dweight =
      FiniteDifferenceGradient(absl::MakeSpan(weight), 1e-5, loss);
  loss();
  BackwardReference(shape, weight, dy, dresidual, &r);
  for (size_t i = 0; i < dsum.size(); ++i)
    EXPECT_NEAR(r.dsum[i], dsum[i], 1e-8);
  for (size_t d = 0; d < dweight.size(); ++d) {
    EXPECT_NEAR(r.dweight[d], dweight[d], 1e-8);
  }
}

TEST(RmsNormCpu, TakesNoMemoryWhenRepeated) {
  TestDevice device(Device::kCpu);
  const Problem p({65, 36});
  Backward(device, p);
  const int64_t reserved = device.ctx().scratch->reserved_bytes();
  Backward(device, p);
  EXPECT_EQ(device.ctx().scratch->reserved_bytes(), reserved);
}

TEST(RmsNormDeathTest, NamesTheTensorWithTheWrongShape) {
  TestDevice device(Device::kCpu);
  Matrix x({2, 4}), y({2, 4});
  Vector weight({3});
  EXPECT_DEATH(RmsNormFwd(device.ctx(), {.x = x, .weight = weight, .y = y}),
               "weight: want \\[4\\], got \\[3\\]");
}

#ifndef GLA_CUDA
TEST(RmsNormDeathTest, NamesTheFlagThatIsMissingWhenAskedForAGpu) {
  TestDevice device(Device::kCpu);
  ExecutionContext ctx = device.ctx();
  ctx.device = Device::kCuda;
  Matrix x({2, 4}), y({2, 4}), dsum({2, 4});
  Vector weight({4}), rstd({2}), dweight({4});
  EXPECT_DEATH(RmsNormFwd(ctx, {.x = x, .weight = weight, .y = y}),
               "--config=cuda");
  EXPECT_DEATH(RmsNormBwd(ctx, {.dy = y,
                                .sum = x,
                                .weight = weight,
                                .rstd = rstd,
                                .dsum = dsum,
                                .dweight = dweight}),
               "--config=cuda");
}
#endif

}  // namespace
}  // namespace gla
