// What recurrent_gla_test cannot reach: 16-bit element types, cu_seqlens, and
// the kernel for a token each of many sequences.
#include "kernels/gla/recurrent_gla_cuda.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "gtest/gtest.h"
#include "kernels/base/cuda_check.h"
#include "kernels/device/test_elements.h"
#include "kernels/gla/gla_reference_problem.h"
#include "kernels/gla/recurrent_gla_decode.h"

namespace gla {
namespace {

RecurrentGlaShape CudaShape(const GlaShape& shape, DType dtype) {
  return {.B = shape.B,
          .T = shape.T,
          .H = shape.H,
          .K = shape.K,
          .V = shape.V,
          .N = shape.num_sequences(),
          .dtype = dtype,
          .gate_dtype = dtype};
}

const int32_t* UploadSeqlens(TestDevice& device, const GlaShape& shape) {
  if (shape.cu_seqlens.empty()) return nullptr;
  OwnedTensor<int32_t, 1> host({shape.num_sequences() + 1});
  std::copy(shape.cu_seqlens.begin(), shape.cu_seqlens.end(), host.data());
  return device.Upload(host).data();
}

// Forward into results->o and final_state.
void RunForward(DType dtype, TestDevice& device, const GlaProblem& p,
                GlaResults* results) {
  RecurrentGlaFwdCudaArgs args = {};
  args.shape = CudaShape(p.shape, dtype);
  args.scale = p.scale;
  args.q = UploadAs(dtype, device, p.q);
  args.k = UploadAs(dtype, device, p.k);
  args.v = UploadAs(dtype, device, p.v);
  args.g = UploadAs(dtype, device, p.g);
  args.cu_seqlens = UploadSeqlens(device, p.shape);
  args.initial_state = device.Upload(p.initial_state).data();
  args.o = UploadAs(dtype, device, results->o);
  const auto final_state = device.Upload(results->final_state);
  args.final_state = final_state.data();
  CUDA_CHECK(RecurrentGlaFwdCuda(args, /*stream=*/nullptr));
  results->o = DownloadAs(dtype, device, args.o, p.shape.values());
  results->final_state = device.Download(final_state);
}

// Backward into the gradients of results.
void RunBackward(DType dtype, TestDevice& device, const GlaProblem& p,
                 GlaResults* results) {
  RecurrentGlaBwdCudaArgs args = {};
  args.shape = CudaShape(p.shape, dtype);
  args.scale = p.scale;
  args.q = UploadAs(dtype, device, p.q);
  args.k = UploadAs(dtype, device, p.k);
  args.v = UploadAs(dtype, device, p.v);
  args.g = UploadAs(dtype, device, p.g);
  args.cu_seqlens = UploadSeqlens(device, p.shape);
  args.initial_state = device.Upload(p.initial_state).data();
  args.d_o = UploadAs(dtype, device, p.d_o);
  args.d_final_state = device.Upload(p.d_final_state).data();
  args.dq = UploadAs(dtype, device, results->dq);
  args.dk = UploadAs(dtype, device, results->dk);
  args.dv = UploadAs(dtype, device, results->dv);
  args.dg = UploadAs(dtype, device, results->dg);
  const auto d_initial_state = device.Upload(results->d_initial_state);
  args.d_initial_state = d_initial_state.data();
  args.workspace = DeviceWorkspace(device.ctx(), "RecurrentGlaBwd",
                                   RecurrentGlaBwdWorkspaceBytes(args.shape));
  CUDA_CHECK(RecurrentGlaBwdCuda(args, /*stream=*/nullptr));
  results->dq = DownloadAs(dtype, device, args.dq, p.shape.keys());
  results->dk = DownloadAs(dtype, device, args.dk, p.shape.keys());
  results->dv = DownloadAs(dtype, device, args.dv, p.shape.values());
  results->dg = DownloadAs(dtype, device, args.dg, p.shape.keys());
  results->d_initial_state = device.Download(d_initial_state);
}

GlaResults Compute(DType dtype, const GlaProblem& problem) {
  TestDevice device(Device::kCuda);
  GlaResults results(problem.shape);
  RunForward(dtype, device, problem, &results);
  RunBackward(dtype, device, problem, &results);
  return results;
}

// Arithmetic is float32 whatever the types: the result is that of float32
// tensors with the same values, rounded.
TEST(RecurrentGlaCuda, RoundsItsOutputsAndNothingElse) {
  if (!IsPresent(Device::kCuda)) GTEST_SKIP() << "no GPU on this machine";
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    GlaProblem p({2, 11, 2, 70, 36}, /*normalizer=*/16, /*seed=*/1);
    for (auto* x : {&p.q, &p.k, &p.v, &p.g, &p.d_o}) *x = RoundTo(dtype, *x);
    const GlaResults want = Compute(DType::kFloat32, p);
    const GlaResults got = Compute(dtype, p);
    EXPECT_EQ(got.o, RoundTo(dtype, want.o));
    EXPECT_EQ(got.final_state, want.final_state);
    EXPECT_EQ(got.dq, RoundTo(dtype, want.dq));
    EXPECT_EQ(got.dk, RoundTo(dtype, want.dk));
    EXPECT_EQ(got.dv, RoundTo(dtype, want.dv));
    EXPECT_EQ(got.dg, RoundTo(dtype, want.dg));
    EXPECT_EQ(got.d_initial_state, want.d_initial_state);
  }
}

TEST(RecurrentGlaCuda, PackedSequencesMatchReference) {
  if (!IsPresent(Device::kCuda)) GTEST_SKIP() << "no GPU on this machine";
  for (const auto& [K, V] : {std::array<int64_t, 2>{20, 24}, {70, 90}}) {
    const GlaProblem problem({1, 40, 2, K, V, {0, 0, 13, 14, 14, 37, 40, 40}},
                             /*normalizer=*/1, /*seed=*/2);
    ExpectGlaResults(1e-5, 5e-5, Compute(DType::kFloat32, problem),
                     ComputeExpected(problem));
  }
}

struct Decoded {
  OwnedTensor<float, 4> o, states;
};

// A token each for p's sequences, the same `steps` times, one call behind the
// other. The states are every other one of `states`, from the last on. With
// `packed` through cu_seqlens, which keeps the kernel for decoding away.
Decoded Decode(const GlaProblem& p, const OwnedTensor<float, 4>& states,
               DType gate_dtype, int steps, bool packed) {
  TestDevice device(Device::kCuda);
  const int64_t N = p.shape.B;
  OwnedTensor<int32_t, 1> slots({N}), cu_seqlens({N + 1});
  for (int64_t n = 0; n < N; ++n) slots[n] = 2 * (N - 1 - n) + 1;
  for (int64_t n = 0; n <= N; ++n) cu_seqlens[n] = n;
  RecurrentGlaFwdCudaArgs args = {};
  args.shape = CudaShape(p.shape, DType::kBFloat16);
  args.shape.gate_dtype = gate_dtype;
  if (packed) std::swap(args.shape.B, args.shape.T);
  args.scale = p.scale;
  args.q = UploadAs(DType::kBFloat16, device, p.q);
  args.k = UploadAs(DType::kBFloat16, device, p.k);
  args.v = UploadAs(DType::kBFloat16, device, p.v);
  args.g = UploadAs(gate_dtype, device, p.g);
  if (packed) args.cu_seqlens = device.Upload(cu_seqlens).data();
  args.slots = device.Upload(slots).data();
  const auto pool = device.Upload(states);
  args.initial_state = args.final_state = pool.data();
  args.o = UploadAs(DType::kBFloat16, device, GlaResults(p.shape).o);
  internal::SweepParams sweep = {};
  sweep.shape = args.shape;
  sweep.cu_seqlens = args.cu_seqlens;
  sweep.first_state = args.initial_state;
  sweep.last_state = args.final_state;
  EXPECT_EQ(internal::HasDecodeKernel(sweep), !packed);
  for (int i = 0; i < steps; ++i) {
    CUDA_CHECK(RecurrentGlaFwdCuda(args, /*stream=*/nullptr));
  }
  return {DownloadAs(DType::kBFloat16, device, args.o, p.shape.values()),
          device.Download(pool)};
}

// Its calls start while the ones before them end.
TEST(RecurrentGlaCuda, DecodingManySequencesLeavesTheSameBits) {
  if (!IsPresent(Device::kCuda)) GTEST_SKIP() << "no GPU on this machine";
  constexpr int64_t N = 43, H = 2, V = 192;  // 258 blocks of 64 values
  for (const int64_t K : {64, 128, 256, 512}) {
    GlaProblem p({N, 1, H, K, V}, /*normalizer=*/1, /*seed=*/3);
    for (int64_t i = 0; i < 40; ++i) p.g[7 * i] = -INFINITY;
    const OwnedTensor<float, 4> states =
        GlaProblem({2 * N, 1, H, K, V}, /*normalizer=*/1, /*seed=*/4)
            .initial_state;
    for (const DType gate_dtype : {DType::kBFloat16, DType::kFloat32}) {
      for (const int steps : {1, 9}) {
        const Decoded got = Decode(p, states, gate_dtype, steps, false);
        const Decoded want = Decode(p, states, gate_dtype, steps, true);
        EXPECT_EQ(got.o, want.o) << "K " << K << ", " << steps << " steps";
        EXPECT_EQ(got.states, want.states)
            << "K " << K << ", " << steps << " steps";
      }
    }
  }
}

}  // namespace
}  // namespace gla
