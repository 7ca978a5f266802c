// The shapes and input distributions of fla's tests (tests/ops/test_gla.py) on
// the chunk form, on every device, and on the recurrent form on the CPU.
#include <cstdint>
#include <string>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/device/test_device.h"
#include "kernels/gla/chunk_gla_runner.h"
#include "kernels/gla/gla_reference_problem.h"
#include "kernels/gla/recurrent_gla.h"
#include "kernels/testing/random_tensor.h"

namespace gla {
namespace {

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

class GlaFlaShapes
    : public testing::TestWithParam<std::tuple<Device, FlaCase>> {};

TEST_P(GlaFlaShapes, MatchReference) {
  const auto& [device, fla] = GetParam();
  if (!IsPresent(device)) GTEST_SKIP() << "no GPU on this machine";
  const GlaProblem problem =
      RoundedFor(device, GlaProblem(fla.shape, fla.normalizer, /*seed=*/42));
  const GlaExpected expected = ComputeExpected(problem);
  TestDevice test(device);
  ExpectChunkGlaResults(device, RunChunkGla(test, problem), expected);
  if (device == Device::kCpu) {
    ExpectGlaResults(1e-4, RunRecurrent(test.ctx(), problem), expected);
  }
}

template <typename Cases>
auto OnAllDevices(const Cases& cases) {
  return testing::Combine(testing::ValuesIn(DevicesInBuild()), cases);
}

std::string CaseName(
    const testing::TestParamInfo<std::tuple<Device, FlaCase>>& info) {
  const char* device = std::get<0>(info.param) == Device::kCpu ? "Cpu" : "Cuda";
  return absl::StrCat(device, info.index);
}

INSTANTIATE_TEST_SUITE_P(
    Batched, GlaFlaShapes,
    OnAllDevices(testing::Values(
        FlaCase{{1, 63, 1, 64, 64}, 1}, FlaCase{{2, 1024, 4, 60, 60}, 1},
        FlaCase{{2, 1024, 8, 128, 128}, 0.1},
        FlaCase{{2, 1024, 8, 128, 128}, 1}, FlaCase{{2, 1024, 8, 128, 128}, 10},
        FlaCase{{4, 2048, 8, 64, 64}, 1}, FlaCase{{1, 128, 4, 256, 256}, 1},
        FlaCase{{1, 64, 2, 320, 320}, 1}, FlaCase{{1, 128, 4, 512, 512}, 1})),
    CaseName);

INSTANTIATE_TEST_SUITE_P(
    Packed, GlaFlaShapes,
    OnAllDevices(testing::Values(
        FlaCase{{1, 15, 4, 64, 64, {0, 15}}, 1},
        FlaCase{{1, 16, 4, 64, 64, {0, 0, 16}}, 1},
        FlaCase{{1, 1000, 4, 64, 64, {0, 256, 500, 1000}}, 1},
        FlaCase{{1, 2000, 4, 100, 100, {0, 15, 100, 300, 1200, 2000}}, 1},
        FlaCase{{1, 2048, 4, 64, 64, {0, 1, 100, 300, 1200, 2048}}, 1},
        FlaCase{{1, 2048, 4, 128, 128, {0, 200, 512, 1200, 2048}}, 1})),
    CaseName);

}  // namespace
}  // namespace gla
