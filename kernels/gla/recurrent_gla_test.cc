#include "kernels/gla/recurrent_gla.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/device/test_device.h"
#include "kernels/gla/gla_reference_problem.h"
#include "kernels/testing/random_tensor.h"

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

GlaResults RunRecurrent(TestDevice& device, const GlaProblem& problem) {
  const GlaResults poison(problem.shape);
  const auto q = device.Upload(problem.q), k = device.Upload(problem.k);
  const auto v = device.Upload(problem.v), g = device.Upload(problem.g);
  RecurrentGlaFwdArgs fwd;
  fwd.q = q;
  fwd.k = k;
  fwd.v = v;
  fwd.g = g;
  fwd.scale = problem.scale;
  const auto o = fwd.o = device.Upload(poison.o);
  const auto state = fwd.state =
      device.Upload(problem.with_initial_state
                        ? problem.initial_state
                        : OwnedTensor<float, 4>(problem.shape.states()));
  RecurrentGlaFwd(device.ctx(), fwd);

  RecurrentGlaBwdArgs bwd;
  bwd.q = q;
  bwd.k = k;
  bwd.v = v;
  bwd.g = g;
  if (problem.with_initial_state) {
    bwd.initial_state = device.Upload(problem.initial_state);
  }
  bwd.scale = problem.scale;
  bwd.d_o = device.Upload(problem.d_o);
  if (problem.with_d_final_state) {
    bwd.d_final_state = device.Upload(problem.d_final_state);
  }
  bwd.dq = device.Upload(poison.dq);
  bwd.dk = device.Upload(poison.dk);
  bwd.dv = device.Upload(poison.dv);
  bwd.dg = device.Upload(poison.dg);
  bwd.d_initial_state = device.Upload(poison.d_initial_state);
  RecurrentGlaBwd(device.ctx(), bwd);

  GlaResults results(problem.shape);
  results.o = device.Download(o);
  results.final_state = device.Download(state);
  results.dq = device.Download(bwd.dq);
  results.dk = device.Download(bwd.dk);
  results.dv = device.Download(bwd.dv);
  results.dg = device.Download(bwd.dg);
  results.d_initial_state = device.Download(bwd.d_initial_state);
  return results;
}

constexpr double kTolerance = 1e-5;
// On a GPU dg is a running sum over a few tokens at a time, whose terms cancel
// where gates are strong.
double DgTolerance(Device device) {
  return device == Device::kCpu ? kTolerance : 5e-5;
}

class RecurrentGlaShapes
    : public testing::TestWithParam<std::tuple<Device, GlaShape>> {};

TEST_P(RecurrentGlaShapes, MatchReference) {
  const auto& [device, shape] = GetParam();
  if (!IsPresent(device)) GTEST_SKIP() << "no GPU on this machine";
  TestDevice test(device);
  for (const double normalizer : {16.0, 1.0, 0.1}) {
    for (const bool with_states : {true, false}) {
      GlaProblem problem(shape, normalizer, /*seed=*/3);
      problem.with_initial_state = problem.with_d_final_state = with_states;
      ExpectGlaResults(kTolerance, DgTolerance(device),
                       RunRecurrent(test, problem), ComputeExpected(problem));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, RecurrentGlaShapes,
    testing::Combine(
        testing::ValuesIn(DevicesInBuild()),
        testing::Values(GlaShape{1, 1, 1, 1, 1}, GlaShape{3, 2, 2, 3, 5},
                        GlaShape{1, 3, 1, 128, 256}, GlaShape{1, 5, 1, 512, 90},
                        GlaShape{1, 3, 2, 130, 512},
                        GlaShape{2, 10, 1, 60, 100}, GlaShape{1, 17, 3, 5, 33},
                        GlaShape{2, 130, 2, 20, 12})),
    [](const auto& info) {
      const GlaShape& shape = std::get<1>(info.param);
      return absl::StrCat(
          std::get<0>(info.param) == Device::kCpu ? "Cpu" : "Cuda", "B",
          shape.B, "T", shape.T, "H", shape.H, "K", shape.K, "V", shape.V);
    });

class RecurrentGlaTest : public testing::TestWithParam<Device> {
 protected:
  void SetUp() override {
    if (!IsPresent(GetParam())) GTEST_SKIP() << "no GPU on this machine";
    device_.emplace(GetParam());
  }
  TestDevice& device() { return *device_; }

 private:
  std::optional<TestDevice> device_;
};

INSTANTIATE_TEST_SUITE_P(Devices, RecurrentGlaTest,
                         testing::ValuesIn(DevicesInBuild()), DeviceName);

TEST_P(RecurrentGlaTest, ResetsAreExact) {
  GlaProblem problem({2, 30, 2, 12, 20}, /*normalizer=*/16, /*seed=*/1);
  for (size_t i = 0; i < problem.g.size(); i += 7) problem.g[i] = -kInf;
  const GlaResults results = RunRecurrent(device(), problem);
  ExpectGlaResults(kTolerance, results, ComputeExpected(problem));
  for (size_t i = 0; i < problem.g.size(); i += 7) {
    EXPECT_EQ(results.dg[i], 0);
  }
}

TEST_P(RecurrentGlaTest, ReadsAndWritesOnlyTheSlotsItIsGiven) {
  const GlaProblem problem({3, 4, 2, 20, 36}, 1, /*seed=*/2);
  const GlaResults want = RunRecurrent(device(), problem);
  OwnedTensor<int32_t, 1> slots({3});
  slots[0] = 5, slots[1] = 0, slots[2] = 3;
  const int64_t size = 2 * 20 * 36;
  OwnedTensor<float, 4> pool = PoisonedTensor<4>({7, 2, 20, 36});
  for (int row = 0; row < 3; ++row) {
    std::copy_n(problem.initial_state.data() + row * size, size,
                pool.data() + slots[row] * size);
  }
  RecurrentGlaFwdArgs fwd;
  fwd.q = device().Upload(problem.q);
  fwd.k = device().Upload(problem.k);
  fwd.v = device().Upload(problem.v);
  fwd.g = device().Upload(problem.g);
  fwd.slots = absl::MakeConstSpan(device().Upload(slots).data(), 3);
  fwd.scale = problem.scale;
  fwd.o = device().Upload(PoisonedTensor<4>(problem.shape.values()));
  fwd.state = device().Upload(pool);
  RecurrentGlaFwd(device().ctx(), fwd);
  EXPECT_EQ(device().Download(fwd.o), want.o);
  pool = device().Download(fwd.state);
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

// Row `row` of x [B, T, H, D], tokens [begin, end), alone.
OwnedTensor<float, 4> Part(const OwnedTensor<float, 4>& x, int64_t row,
                           int64_t begin, int64_t end) {
  const OwnedTensor<float, 4> tokens = Tokens(x, begin, end);
  OwnedTensor<float, 4> part({1, end - begin, tokens.dim(2), tokens.dim(3)});
  std::copy_n(tokens.data() + row * part.size(), part.size(), part.data());
  return part;
}

// Every row alone, its tokens in several calls, gives the bits that `want`, all
// rows in one call, has.
void ExpectSameBitsInParts(TestDevice& device, const GlaProblem& problem,
                           const GlaResults& want) {
  const auto state = device.Upload(problem.initial_state);
  for (int32_t row = 0; row < problem.shape.B; ++row) {
    OwnedTensor<int32_t, 1> slot({1});
    slot[0] = row;
    for (const auto& [begin, end] :
         std::vector<std::array<int64_t, 2>>{{0, 1}, {1, 7}, {7, 8}, {8, 12}}) {
      const auto part = [&](const OwnedTensor<float, 4>& x) {
        return Part(x, row, begin, end);
      };
      RecurrentGlaFwdArgs fwd;
      fwd.q = device.Upload(part(problem.q));
      fwd.k = device.Upload(part(problem.k));
      fwd.v = device.Upload(part(problem.v));
      fwd.g = device.Upload(part(problem.g));
      fwd.slots = absl::MakeConstSpan(device.Upload(slot).data(), 1);
      fwd.scale = problem.scale;
      const OwnedTensor<float, 4> expected = part(want.o);
      fwd.o = device.Upload(PoisonedTensor<4>(expected.shape()));
      fwd.state = state;
      RecurrentGlaFwd(device.ctx(), fwd);
      EXPECT_EQ(device.Download(fwd.o), expected);
    }
  }
  EXPECT_EQ(device.Download(state), want.final_state);
}

// On a CPU, V is split over threads when there are few heads; K has a
// remainder. On a GPU, the slices of V are narrower for few heads.
TEST_P(RecurrentGlaTest, HasTheSameBitsForAnySplitOverThreadsCallsAndRows) {
  for (const GlaShape& shape :
       {GlaShape{2, 12, 1, 30, 70}, GlaShape{40, 12, 2, 30, 160}}) {
    const GlaProblem problem(shape, 1, /*seed=*/2);
    TestDevice one(GetParam(), 1), three(GetParam(), 3);
    const GlaResults want = RunRecurrent(one, problem);
    const GlaResults got = RunRecurrent(three, problem);
    EXPECT_EQ(got.o, want.o);
    EXPECT_EQ(got.final_state, want.final_state);
    EXPECT_EQ(got.dg, want.dg);
    EXPECT_EQ(got.dv, want.dv);
    ExpectSameBitsInParts(three, problem, want);
  }
}

TEST(RecurrentGlaCpu, AllocatesNothingFromTheSecondCallOn) {
  const GlaProblem problem({2, 65, 2, 64, 64}, 1, /*seed=*/1);
  TestDevice device(Device::kCpu);
  RunRecurrent(device, problem);
  const int64_t reserved = device.ctx().scratch->reserved_bytes();
  RunRecurrent(device, problem);
  EXPECT_EQ(device.ctx().scratch->reserved_bytes(), reserved);
}

}  // namespace
}  // namespace gla
