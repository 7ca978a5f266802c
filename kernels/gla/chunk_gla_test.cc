#include "kernels/gla/chunk_gla.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"
#include "kernels/base/philox.h"
#include "kernels/device/test_device.h"
#include "kernels/gla/chunk_gla_runner.h"
#include "kernels/gla/gla_reference_problem.h"
#include "kernels/testing/random_tensor.h"

namespace gla {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

bool SameBits(const GlaResults& a, const GlaResults& b) {
  return a.o == b.o && a.final_state == b.final_state && a.dq == b.dq &&
         a.dk == b.dk && a.dv == b.dv && a.dg == b.dg &&
         a.d_initial_state == b.d_initial_state;
}

void ExpectMatchesReference(Device device, const GlaProblem& any) {
  TestDevice test(device);
  const GlaProblem problem = RoundedFor(device, any);
  ExpectChunkGlaResults(device, RunChunkGla(test, problem),
                        ComputeExpected(problem));
}

// ---------------------------------------------------------------------------
// Shapes.

class ChunkGlaShapes
    : public testing::TestWithParam<std::tuple<Device, GlaShape>> {
 protected:
  void SetUp() override {
    if (!IsPresent(device())) GTEST_SKIP() << "no GPU on this machine";
  }
  Device device() const { return std::get<0>(GetParam()); }
  const GlaShape& shape() const { return std::get<1>(GetParam()); }
};

TEST_P(ChunkGlaShapes, MatchReference) {
  GlaProblem problem(shape(), /*normalizer=*/4, /*seed=*/1);
  ExpectMatchesReference(device(), problem);
}

TEST_P(ChunkGlaShapes, MatchReferenceWithoutStates) {
  GlaProblem problem(shape(), /*normalizer=*/4, /*seed=*/2);
  problem.with_initial_state = problem.with_d_final_state = false;
  ExpectMatchesReference(device(), problem);
}

TEST_P(ChunkGlaShapes, MatchReferenceWithStrongGates) {
  GlaProblem problem(shape(), /*normalizer=*/0.1, /*seed=*/3);
  ExpectMatchesReference(device(), problem);
}

template <typename Shapes>
auto OnAllDevices(const Shapes& shapes) {
  return testing::Combine(testing::ValuesIn(DevicesInBuild()), shapes);
}

std::string ShapeName(
    const testing::TestParamInfo<std::tuple<Device, GlaShape>>& info) {
  const auto& [device, shape] = info.param;
  const std::string packed = shape.cu_seqlens.empty()
                                 ? ""
                                 : "_" + absl::StrJoin(shape.cu_seqlens, "_");
  return absl::StrCat(device == Device::kCpu ? "Cpu" : "Cuda", "_B", shape.B,
                      "_T", shape.T, "_H", shape.H, "_K", shape.K, "_V",
                      shape.V, packed);
}

INSTANTIATE_TEST_SUITE_P(
    Tokens, ChunkGlaShapes,
    OnAllDevices(testing::Values(
        GlaShape{2, 1, 2, 16, 16}, GlaShape{2, 15, 2, 16, 32},
        GlaShape{1, 63, 3, 16, 16}, GlaShape{3, 64, 1, 16, 24},
        GlaShape{2, 65, 2, 16, 16}, GlaShape{1, 127, 2, 32, 16},
        GlaShape{1, 300, 1, 8, 8}, GlaShape{2, 257, 2, 64, 128})),
    ShapeName);
INSTANTIATE_TEST_SUITE_P(
    Heads, ChunkGlaShapes,
    OnAllDevices(testing::Values(
        GlaShape{2, 70, 2, 1, 1}, GlaShape{2, 70, 3, 3, 5},
        GlaShape{1, 70, 2, 60, 100}, GlaShape{1, 130, 1, 100, 60},
        GlaShape{1, 200, 1, 128, 256}, GlaShape{1, 70, 1, 320, 1},
        GlaShape{1, 70, 1, 1, 512}, GlaShape{1, 200, 2, 128, 128},
        GlaShape{1, 200, 1, 256, 512})),
    ShapeName);
INSTANTIATE_TEST_SUITE_P(
    Packed, ChunkGlaShapes,
    OnAllDevices(testing::Values(
        GlaShape{1, 15, 4, 64, 64, {0, 15}},
        GlaShape{1, 16, 2, 16, 16, {0, 0, 16}},
        GlaShape{1, 200, 2, 20, 36, {0, 1, 1, 66, 130, 199, 200}},
        GlaShape{1, 3, 2, 8, 8, {0, 1, 2, 3, 3}},
        GlaShape{1, 200, 2, 64, 128, {0, 1, 1, 66, 130, 199, 200}})),
    ShapeName);

// ---------------------------------------------------------------------------
// Gates.

// A problem whose gates are gate(t, i) for token t, channel i.
template <typename Gate>
GlaProblem WithGates(Gate gate) {
  const GlaShape shape = {2, 200, 2, 24, 40};
  GlaProblem problem(shape, /*normalizer=*/1, /*seed=*/7);
  for (size_t at = 0; at < problem.g.size(); ++at) {
    const int64_t t = at / (shape.H * shape.K) % shape.T;
    problem.g[at] = gate(t, at % shape.K, problem.g[at],
                         PhiloxUniform(/*seed=*/8, /*stream=*/0, at));
  }
  return problem;
}

class ChunkGlaGates : public testing::TestWithParam<Device> {
 protected:
  void SetUp() override {
    if (!IsPresent(GetParam())) GTEST_SKIP() << "no GPU on this machine";
  }
  static void Expect(const GlaProblem& problem) {
    ExpectMatchesReference(GetParam(), problem);
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, ChunkGlaGates,
                         testing::ValuesIn(DevicesInBuild()), DeviceName);

TEST_P(ChunkGlaGates, AreAccurateAtNormalizer16) {
  Expect(WithGates([](int64_t, int64_t, float g, float) { return g / 16; }));
}

TEST_P(ChunkGlaGates, AreAccurateAtNormalizer1) {
  Expect(WithGates([](int64_t, int64_t, float g, float) { return g; }));
}

TEST_P(ChunkGlaGates, AreAccurateAtSevenPerStepEverywhere) {
  Expect(WithGates([](int64_t, int64_t, float, float) { return -7.0f; }));
}

TEST_P(ChunkGlaGates, AreAccurateWhenAllZero) {
  Expect(WithGates([](int64_t, int64_t, float, float) { return 0.0f; }));
}

TEST_P(ChunkGlaGates, AreAccurateWithSingleChannelsAtThirtyPerStep) {
  Expect(WithGates([](int64_t, int64_t i, float g, float) {
    return i % 11 == 3 ? -30.0f : g / 16;
  }));
}

TEST_P(ChunkGlaGates, AreAccurateWithRandomResets) {
  Expect(WithGates([](int64_t, int64_t, float g, float uniform) {
    return uniform < 0.05f ? -kInf : g / 16;
  }));
}

TEST_P(ChunkGlaGates, AreAccurateWhenMixed) {
  Expect(WithGates([](int64_t t, int64_t i, float g, float uniform) {
    if (uniform < 0.002f) return -kInf;
    if (uniform < 0.01f) return -30.0f;
    if (i % 5 == 0) return 0.0f;
    return t < 100 ? g / 16 : g * static_cast<float>(i % 7);
  }));
}

// Chunks just inside and just outside of what one frame can hold.
TEST_P(ChunkGlaGates, AreAccurateOnBothSidesOfTheFrameLimit) {
  for (const float total : {-59.9f, -60.1f}) {
    Expect(WithGates([total](int64_t, int64_t i, float g, float) {
      return i < 3 ? total / 64 : g / 16;
    }));
    // All of it at once, early or late in the chunk.
    for (const int64_t strong : {1, 63}) {
      Expect(WithGates([=](int64_t t, int64_t i, float, float) {
        return i < 12 && t % 64 == strong ? total : 0.0f;
      }));
    }
  }
}

TEST_P(ChunkGlaGates, ForgetExactlyAtAResetOfAllChannels) {
  TestDevice test(GetParam());
  GlaProblem problem = WithGates([](int64_t t, int64_t, float g, float) {
    return t == 100 ? -kInf : g / 16;
  });
  const GlaResults results = RunChunkGla(test, problem);
  const GlaShape& shape = problem.shape;
  for (int64_t i = 0; i < shape.H * shape.K; ++i) {
    EXPECT_EQ(results.dg[100 * shape.H * shape.K + i], 0);
  }
  // What came before does not matter, whatever it was.
  GlaProblem other = problem;
  for (int64_t i = 0; i < 100 * shape.H * shape.V; ++i) other.v[i] += 1;
  const GlaResults others = RunChunkGla(test, other);
  for (int64_t i = 100 * shape.H * shape.V; i < shape.T * shape.H * shape.V;
       ++i) {
    ASSERT_EQ(results.o[i], others.o[i]) << i;
  }
}

// ---------------------------------------------------------------------------
// Bits and memory.

GlaProblem AnyProblem() {
  return GlaProblem({2, 150, 3, 40, 48}, /*normalizer=*/0.5, /*seed=*/11);
}

class ChunkGla : public testing::TestWithParam<Device> {
 protected:
  void SetUp() override {
    if (!IsPresent(GetParam())) GTEST_SKIP() << "no GPU on this machine";
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, ChunkGla, testing::ValuesIn(DevicesInBuild()),
                         DeviceName);

TEST_P(ChunkGla, HasTheSameBitsEveryTimeForAnyNumberOfThreads) {
  const GlaProblem problem = AnyProblem();
  TestDevice one(GetParam(), 1);
  const GlaResults results = RunChunkGla(one, problem);
  for (int repeat = 0; repeat < 20; ++repeat) {
    TestDevice three(GetParam(), 3);
    ASSERT_TRUE(SameBits(results, RunChunkGla(three, problem)));
  }
}

TEST_P(ChunkGla, HasTheSameOutputsWhereThereIsNoBackwardPass) {
  const GlaProblem problem = AnyProblem();
  TestDevice test(GetParam());
  EXPECT_EQ(RunChunkGlaOutput(test, problem), RunChunkGla(test, problem).o);
}

TEST(ChunkGlaCpu, HasTheSameBitsAloneAndInABatch) {
  const GlaProblem batch({3, 100, 2, 32, 40}, /*normalizer=*/1, /*seed=*/5);
  GlaProblem alone({1, 100, 2, 32, 40}, /*normalizer=*/1, /*seed=*/5);
  auto take_row = [](const OwnedTensor<float, 4>& from, int64_t row,
                     OwnedTensor<float, 4>* to) {
    std::copy_n(from.data() + row * to->size(), to->size(), to->data());
  };
  take_row(batch.q, 1, &alone.q);
  take_row(batch.k, 1, &alone.k);
  take_row(batch.v, 1, &alone.v);
  take_row(batch.g, 1, &alone.g);
  take_row(batch.initial_state, 1, &alone.initial_state);
  TestDevice test(Device::kCpu);
  const GlaResults all = RunChunkGla(test, batch);
  const GlaResults one = RunChunkGla(test, alone);
  for (size_t i = 0; i < one.o.size(); ++i) {
    ASSERT_EQ(one.o[i], all.o[one.o.size() + i]) << i;
  }
  for (size_t i = 0; i < one.final_state.size(); ++i) {
    ASSERT_EQ(one.final_state[i], all.final_state[one.final_state.size() + i]);
  }
}

TEST_P(ChunkGla, OutputsDoNotDependOnLaterTokens) {
  TestDevice test(GetParam());
  for (const double normalizer : {16.0, 0.1}) {
    const GlaProblem problem({1, 150, 2, 32, 40}, normalizer, /*seed=*/5);
    const GlaResults results = RunChunkGla(test, problem);
    for (const int64_t changed : {1, 40, 64, 100, 149}) {
      GlaProblem other = problem;
      const int64_t key = changed * 2 * 32, value = changed * 2 * 40;
      for (int64_t i = key; i < key + 2 * 32; ++i) {
        other.q[i] += 1;
        other.k[i] -= 1;
        // Gates choose how a chunk is divided; these keep one frame.
        if (normalizer == 16) other.g[i] *= 0.5f;
      }
      for (int64_t i = value; i < value + 2 * 40; ++i) other.v[i] *= 3;
      const GlaResults others = RunChunkGla(test, other);
      for (int64_t i = 0; i < value; ++i) {
        ASSERT_EQ(results.o[i], others.o[i]) << i << " changed " << changed;
      }
    }
  }
}

TEST(ChunkGlaCpu, WorksWithoutOptionalArguments) {
  const GlaProblem problem = AnyProblem();
  TestDevice test(Device::kCpu);
  const GlaResults all = RunChunkGla(test, problem);

  ChunkGlaFwdArgs fwd;
  fwd.q = problem.q;
  fwd.k = problem.k;
  fwd.v = problem.v;
  fwd.g = problem.g;
  fwd.initial_state = problem.initial_state;
  fwd.scale = problem.scale;
  GlaResults few(problem.shape);
  fwd.o = few.o;
  ChunkGlaFwd(test.ctx(), fwd);  // no final_state, nothing saved
  EXPECT_EQ(few.o, all.o);

  OwnedTensor<float, 4> state = problem.initial_state;  // in place
  fwd.initial_state = state;
  fwd.final_state = state;
  ChunkGlaFwd(test.ctx(), fwd);
  EXPECT_EQ(state, all.final_state);

  OwnedTensor<float, 1> saved(
      {ChunkGlaSavedFloats(problem.shape.keys(), problem.shape.values(), {})});
  fwd.initial_state = problem.initial_state;
  fwd.final_state = {};
  fwd.saved = saved;
  ChunkGlaFwd(test.ctx(), fwd);
  ChunkGlaBwdArgs bwd;
  bwd.q = problem.q;
  bwd.k = problem.k;
  bwd.v = problem.v;
  bwd.g = problem.g;
  bwd.initial_state = problem.initial_state;
  bwd.scale = problem.scale;
  bwd.saved = saved;
  bwd.d_o = problem.d_o;
  bwd.d_final_state = problem.d_final_state;
  bwd.dq = few.dq;
  bwd.dk = few.dk;
  bwd.dv = few.dv;
  ChunkGlaBwd(test.ctx(), bwd);  // no dg, no d_initial_state
  EXPECT_EQ(few.dq, all.dq);
  EXPECT_EQ(few.dk, all.dk);
  EXPECT_EQ(few.dv, all.dv);
}

TEST(ChunkGlaCpu, AllocatesNothingFromTheSecondCallOn) {
  const GlaProblem problem({2, 130, 2, 128, 256}, 0.1, /*seed=*/1);
  TestDevice test(Device::kCpu);
  RunChunkGla(test, problem);
  const int64_t reserved = test.ctx().scratch->reserved_bytes();
  RunChunkGla(test, problem);
  EXPECT_EQ(test.ctx().scratch->reserved_bytes(), reserved);
}

TEST(ChunkGlaDeathTest, RefusesTypesThatTheDeviceDoesNotHave) {
  TestDevice test(Device::kCpu);
  ExecutionContext cuda = test.ctx();
  cuda.device = Device::kCuda;
  EXPECT_DEATH(ChunkGlaFwd(cuda, ChunkGlaFwdArgs{}), "float is for the CPU");
  EXPECT_DEATH(ChunkGlaFwd(test.ctx(), ChunkGlaFwdArgsOf<BFloat16>{}),
               "16-bit floating point for CUDA");
}

TEST(ChunkGlaDeathTest, RefusesSequencesThatDoNotCoverTheTokens) {
  GlaProblem problem({1, 20, 1, 4, 4}, 1, /*seed=*/1);
  problem.shape.cu_seqlens = {0, 19};
  TestDevice test(Device::kCpu);
  EXPECT_DEATH(RunChunkGla(test, problem), "cu_seqlens");
}

}  // namespace
}  // namespace gla
