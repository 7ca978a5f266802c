// The checks of the C interface. Where there is no GPU, a call with good
// arguments fails at the device; what the kernels compute is tested through
// tools/python/gla_kernels_test.py.
#include "kernels/c_api/gla_kernels.h"

#include <cuda_runtime_api.h>

#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace {

using testing::HasSubstr;

constexpr gla_shape kShape = {.B = 2,
                              .T = 3,
                              .H = 2,
                              .K = 64,
                              .V = 128,
                              .N = 2,
                              .dtype = GLA_BFLOAT16,
                              .gate_dtype = GLA_FLOAT32};

// The same with heads whose backward pass needs workspace.
constexpr gla_shape kShapeWithWorkspace = [] {
  gla_shape shape = kShape;
  shape.K = 128;
  shape.V = 256;
  return shape;
}();

// Addresses that only the checks look at.
alignas(256) char memory[512];
constexpr int64_t kPlenty = int64_t{1} << 40;

template <typename Args>
Args WithInputs() {
  Args args = {};
  args.shape = kShape;
  args.scale = 1;
  args.q = args.k = args.v = args.g = memory;
  return args;
}

gla_chunk_fwd_args ChunkFwdArgs() {
  auto args = WithInputs<gla_chunk_fwd_args>();
  args.o = args.saved = args.workspace = memory;
  args.saved_bytes = args.workspace_bytes = kPlenty;
  return args;
}

template <typename Args>
Args BwdArgs() {
  auto args = WithInputs<Args>();
  args.d_o = memory;
  args.dq = args.dk = args.dv = args.dg = args.workspace = memory;
  args.workspace_bytes = kPlenty;
  return args;
}

gla_chunk_bwd_args ChunkBwdArgs() {
  auto args = BwdArgs<gla_chunk_bwd_args>();
  args.saved = memory;
  args.saved_bytes = kPlenty;
  return args;
}

gla_recurrent_fwd_args RecurrentFwdArgs() {
  auto args = WithInputs<gla_recurrent_fwd_args>();
  args.o = memory;
  return args;
}

TEST(GlaKernelsTest, VersionIsThatOfTheHeader) {
  EXPECT_EQ(gla_kernels_version(), GLA_KERNELS_VERSION);
}

TEST(GlaKernelsTest, SizesAreOfTheShape) {
  gla_chunk_bytes bytes = {
      .saved = -1, .fwd_workspace = -1, .bwd_workspace = -1};
  EXPECT_EQ(gla_chunk_sizes(&kShape, &bytes), GLA_OK);
  EXPECT_GE(bytes.saved, 0);
  EXPECT_GE(bytes.fwd_workspace, 0);
  EXPECT_GE(bytes.bwd_workspace, 0);
  int64_t workspace_bytes = -1;
  EXPECT_EQ(gla_recurrent_bwd_size(&kShape, &workspace_bytes), GLA_OK);
  EXPECT_GE(workspace_bytes, 0);
}

TEST(GlaKernelsTest, NamesNullArguments) {
  EXPECT_EQ(gla_chunk_fwd(nullptr, nullptr), GLA_INVALID_ARGUMENT);
  EXPECT_STREQ(gla_last_error(), "gla_chunk_fwd: args is null");
  gla_chunk_bytes bytes;
  EXPECT_EQ(gla_chunk_sizes(nullptr, &bytes), GLA_INVALID_ARGUMENT);
  EXPECT_STREQ(gla_last_error(), "gla_chunk_sizes: shape is null");

  gla_chunk_fwd_args fwd = ChunkFwdArgs();
  fwd.v = nullptr;
  EXPECT_EQ(gla_chunk_fwd(&fwd, nullptr), GLA_INVALID_ARGUMENT);
  EXPECT_STREQ(gla_last_error(), "gla_chunk_fwd: v is null");

  gla_chunk_bwd_args bwd = ChunkBwdArgs();
  bwd.dg = nullptr;
  EXPECT_EQ(gla_chunk_bwd(&bwd, nullptr), GLA_INVALID_ARGUMENT);
  EXPECT_STREQ(gla_last_error(), "gla_chunk_bwd: dg is null");
}

TEST(GlaKernelsTest, NamesBadSizes) {
  gla_chunk_fwd_args args = ChunkFwdArgs();
  args.shape.T = 0;
  EXPECT_EQ(gla_chunk_fwd(&args, nullptr), GLA_INVALID_ARGUMENT);
  EXPECT_STREQ(gla_last_error(), "gla_chunk_fwd: T is 0, must be at least 1");

  args = ChunkFwdArgs();
  args.shape.K = 513;
  EXPECT_EQ(gla_chunk_fwd(&args, nullptr), GLA_UNSUPPORTED);
  EXPECT_STREQ(gla_last_error(),
               "gla_chunk_fwd: K is 513, must be at most 512");

  args = ChunkFwdArgs();
  args.shape.N = 3;
  EXPECT_EQ(gla_chunk_fwd(&args, nullptr), GLA_INVALID_ARGUMENT);
  EXPECT_STREQ(gla_last_error(),
               "gla_chunk_fwd: N is 3, must be B = 2 without cu_seqlens");

  const int32_t cu_seqlens[] = {0, 1, 3};
  args.cu_seqlens = cu_seqlens;
  EXPECT_EQ(gla_chunk_fwd(&args, nullptr), GLA_INVALID_ARGUMENT);
  EXPECT_STREQ(gla_last_error(),
               "gla_chunk_fwd: B is 2, must be 1 with cu_seqlens");
}

TEST(GlaKernelsTest, NamesBadTypes) {
  gla_chunk_fwd_args args = ChunkFwdArgs();
  args.shape.dtype = GLA_FLOAT32;
  EXPECT_EQ(gla_chunk_fwd(&args, nullptr), GLA_UNSUPPORTED);
  EXPECT_STREQ(gla_last_error(),
               "gla_chunk_fwd: dtype float32 is not supported");
  args = ChunkFwdArgs();
  args.shape.gate_dtype = 7;
  EXPECT_EQ(gla_chunk_fwd(&args, nullptr), GLA_INVALID_ARGUMENT);
  EXPECT_STREQ(gla_last_error(),
               "gla_chunk_fwd: gate_dtype is 7, which is no gla_dtype");
}

TEST(GlaKernelsTest, NamesMisalignedTensors) {
  gla_chunk_fwd_args args = ChunkFwdArgs();
  args.k = memory + 8;
  EXPECT_EQ(gla_chunk_fwd(&args, nullptr), GLA_INVALID_ARGUMENT);
  EXPECT_THAT(gla_last_error(), HasSubstr("gla_chunk_fwd: k is at address"));
  EXPECT_THAT(gla_last_error(), HasSubstr("multiple of 16 bytes"));

  args = ChunkFwdArgs();
  args.saved = memory + 128;
  EXPECT_EQ(gla_chunk_fwd(&args, nullptr), GLA_INVALID_ARGUMENT);
  EXPECT_THAT(gla_last_error(), HasSubstr("saved is at address"));

  gla_chunk_bwd_args bwd = ChunkBwdArgs();
  bwd.shape = kShapeWithWorkspace;
  bwd.workspace = memory + 128;
  EXPECT_EQ(gla_chunk_bwd(&bwd, nullptr), GLA_INVALID_ARGUMENT);
  EXPECT_THAT(gla_last_error(), HasSubstr("workspace is at address"));

  // Rows of 60 bfloat16 keep 8 bytes of alignment, so more is not asked for.
  gla_recurrent_fwd_args recurrent = RecurrentFwdArgs();
  recurrent.shape.K = 60;
  recurrent.q = memory + 8;
  recurrent.k = memory + 4;
  EXPECT_EQ(gla_recurrent_fwd(&recurrent, nullptr), GLA_INVALID_ARGUMENT);
  EXPECT_THAT(gla_last_error(), HasSubstr("k is at address"));
  EXPECT_THAT(gla_last_error(), HasSubstr("multiple of 8 bytes"));
}

TEST(GlaKernelsTest, RefusesToOverwriteTheInitialState) {
  gla_chunk_fwd_args args = ChunkFwdArgs();
  args.final_state = reinterpret_cast<float*>(memory);
  args.initial_state = args.final_state;
  EXPECT_EQ(gla_chunk_fwd(&args, nullptr), GLA_INVALID_ARGUMENT);
  EXPECT_STREQ(gla_last_error(),
               "gla_chunk_fwd: final_state must not be initial_state");
}

TEST(GlaKernelsTest, ChecksTheGate) {
  gla_gate_fwd_args args = {};
  args.M = 3;
  args.D = 8;
  args.normalizer = 16;
  args.dtype = GLA_BFLOAT16;
  args.gate_dtype = GLA_FLOAT32;
  args.logits = memory;
  EXPECT_EQ(gla_gate_fwd(&args, nullptr), GLA_INVALID_ARGUMENT);
  EXPECT_STREQ(gla_last_error(), "gla_gate_fwd: g is null");
  args.g = memory;
  EXPECT_EQ(gla_gate_fwd(&args, nullptr), GLA_INVALID_ARGUMENT);
  EXPECT_STREQ(gla_last_error(), "gla_gate_fwd: g must not be logits");
  args.bias = memory;
  args.bias_dtype = -1;
  EXPECT_EQ(gla_gate_fwd(&args, nullptr), GLA_INVALID_ARGUMENT);
  EXPECT_STREQ(gla_last_error(),
               "gla_gate_fwd: bias_dtype is -1, which is no gla_dtype");
}

TEST(GlaKernelsTest, ChecksTheGatedRmsNorm) {
  gla_gated_rms_norm_bwd_args args = {};
  args.shape = {
      .M = 3, .V = 8, .dtype = GLA_FLOAT16, .weight_dtype = GLA_FLOAT32};
  args.dy = args.x = args.gate = args.weight = memory;
  args.dx = args.dgate = memory;
  args.dweight = reinterpret_cast<float*>(memory);
  EXPECT_EQ(gla_gated_rms_norm_bwd(&args, nullptr), GLA_INVALID_ARGUMENT);
  EXPECT_STREQ(gla_last_error(), "gla_gated_rms_norm_bwd: rstd is null");
  args.rstd = args.dweight;
  EXPECT_EQ(gla_gated_rms_norm_bwd(&args, nullptr), GLA_INVALID_ARGUMENT);
  EXPECT_STREQ(gla_last_error(),
               "gla_gated_rms_norm_bwd: dgate must not be dy");
  int64_t workspace_bytes = -1;
  EXPECT_EQ(gla_gated_rms_norm_bwd_size(&args.shape, &workspace_bytes), GLA_OK);
  EXPECT_GE(workspace_bytes, 0);
}

TEST(GlaKernelsTest, NamesBuffersThatAreTooSmall) {
  gla_chunk_bytes bytes;
  ASSERT_EQ(gla_chunk_sizes(&kShapeWithWorkspace, &bytes), GLA_OK);
  ASSERT_GT(bytes.bwd_workspace, 0);
  gla_chunk_bwd_args args = ChunkBwdArgs();
  args.shape = kShapeWithWorkspace;
  args.workspace_bytes = bytes.bwd_workspace - 1;
  EXPECT_EQ(gla_chunk_bwd(&args, nullptr), GLA_INVALID_ARGUMENT);
  EXPECT_THAT(gla_last_error(), HasSubstr("workspace has"));
}

TEST(GlaKernelsTest, GoodArgumentsReachTheDevice) {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0) {
    GTEST_SKIP() << "these arguments are host memory";
  }
  const gla_chunk_fwd_args fwd = ChunkFwdArgs();
  EXPECT_EQ(gla_chunk_fwd(&fwd, nullptr), GLA_CUDA_ERROR);
  EXPECT_THAT(gla_last_error(), HasSubstr("gla_chunk_fwd: cudaError"));
  const gla_chunk_bwd_args bwd = ChunkBwdArgs();
  EXPECT_EQ(gla_chunk_bwd(&bwd, nullptr), GLA_CUDA_ERROR);
  const gla_recurrent_fwd_args recurrent_fwd = RecurrentFwdArgs();
  EXPECT_EQ(gla_recurrent_fwd(&recurrent_fwd, nullptr), GLA_CUDA_ERROR);
  const auto recurrent_bwd = BwdArgs<gla_recurrent_bwd_args>();
  EXPECT_EQ(gla_recurrent_bwd(&recurrent_bwd, nullptr), GLA_CUDA_ERROR);
}

TEST(GlaKernelsTest, ErrorsAreOfTheThread) {
  EXPECT_EQ(gla_chunk_fwd(nullptr, nullptr), GLA_INVALID_ARGUMENT);
  std::thread([] { EXPECT_STREQ(gla_last_error(), ""); }).join();
  EXPECT_STREQ(gla_last_error(), "gla_chunk_fwd: args is null");
}

}  // namespace
