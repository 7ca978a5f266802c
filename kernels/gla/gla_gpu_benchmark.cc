// Prints the speed of chunk GLA and of decoding on a Hopper GPU, bfloat16 with
// bfloat16 gates, a row per shape and pass:
//
//   us        median of one pass, by CUDA events; "graph" is the same inside a
//             CUDA graph, without the cost of launching
//   TFLOP/s   of the products a pass must do, in chunks of 64 tokens
//   GB/s      of the tensors it must read and write
//   roofline  what the copy and matmul speeds below would allow, over "graph"
//
//   gla_gpu_benchmark [substring of the row's name]
#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/base/philox.h"
#include "kernels/device/gpu_ceilings.h"
#include "kernels/device/gpu_memory.h"
#include "kernels/device/gpu_timer.h"
#include "kernels/gla/chunk_gla_cuda.h"
#include "kernels/gla/recurrent_gla_cuda.h"

namespace gla {
namespace {

constexpr int64_t kChunk = 64;
// Calls rotate among so much memory that the L2 cache, 50 MB, does not help.
constexpr int64_t kRotatedBytes = int64_t{192} << 20;
constexpr int kMaxVariants = 64;

int Variants(int64_t bytes_per_call) {
  return std::clamp<int64_t>(kRotatedBytes / bytes_per_call + 1, 2,
                             kMaxVariants);
}

// Numbers that the tensors repeat; a prime count, so that rows differ.
constexpr int kPatternSize = 1048583;

std::vector<__nv_bfloat16> Normals() {
  std::vector<__nv_bfloat16> values;
  for (int i = 0; i < kPatternSize; ++i) {
    values.emplace_back(PhiloxNormal(/*seed=*/1, /*stream=*/1, i));
  }
  return values;
}

// log_sigmoid(normal) / 16
std::vector<__nv_bfloat16> LogGates() {
  std::vector<__nv_bfloat16> values;
  for (int i = 0; i < kPatternSize; ++i) {
    const float x = PhiloxNormal(/*seed=*/1, /*stream=*/2, i);
    values.emplace_back(-std::log1p(std::exp(-x)) / 16);
  }
  return values;
}

GpuMemory Tensor(int64_t elements, std::span<const __nv_bfloat16> pattern) {
  GpuMemory memory = AllocateGpu(2 * elements);
  FillGpu(memory.get(), 2 * elements, pattern);
  return memory;
}

// What a pass must do and move, whatever the kernels do.
struct Work {
  double flops, bytes;
  Work operator+(const Work& other) const {
    return {flops + other.flops, bytes + other.bytes};
  }
};

Work ChunkForward(const ChunkGlaShape& s) {
  const double rows = s.B * s.T * s.H;
  return {rows * (4 * s.K * s.V + 2 * kChunk * (s.K + s.V)),
          rows * (6 * s.K + 4 * s.V)};
}

Work ChunkBackward(const ChunkGlaShape& s) {
  const double rows = s.B * s.T * s.H;
  return {rows * (10 * s.K * s.V + 2 * kChunk * (3 * s.K + 2 * s.V)),
          rows * (12 * s.K + 6 * s.V)};
}

Work Decode(const RecurrentGlaShape& s) {
  const double heads = s.N * s.H;
  return {heads * 4 * s.K * s.V, heads * (8 * s.K * s.V + 6 * s.K + 4 * s.V)};
}

class Report {
 public:
  Report(const GpuCeilings& ceilings, const char* filter)
      : ceilings_(ceilings), filter_(filter) {
    std::printf("copy %.0f GB/s, bfloat16 matmul %.0f TFLOP/s\n",
                1e-9 * ceilings.copy_bytes_per_second,
                1e-12 * ceilings.matmul_flops_per_second);
    std::printf("%-34s %9s %9s %9s %9s %9s\n", "B,T,H,K,V", "us", "graph us",
                "TFLOP/s", "GB/s", "roofline");
  }

  bool Wants(const std::string& name) const {
    return name.find(filter_) != std::string::npos;
  }

  void Row(const std::string& name, const Work& work, double seconds,
           double graph_seconds) const {
    const double bound =
        std::max(work.flops / ceilings_.matmul_flops_per_second,
                 work.bytes / ceilings_.copy_bytes_per_second);
    std::printf("%-34s %9.1f %9.1f %9.1f %9.0f %8.1f%%\n", name.c_str(),
                1e6 * seconds, 1e6 * graph_seconds,
                1e-12 * work.flops / graph_seconds,
                1e-9 * work.bytes / graph_seconds, 100 * bound / graph_seconds);
    std::fflush(stdout);
  }

 private:
  const GpuCeilings ceilings_;
  const char* const filter_;
};

// The tensors of one call; kernels' memory is shared by all of them.
class ChunkCall {
 public:
  ChunkCall(const ChunkGlaShape& s, std::span<const __nv_bfloat16> normals,
            std::span<const __nv_bfloat16> gates, void* saved, void* workspace)
      : s_(s), saved_(saved), workspace_(workspace) {
    const int64_t keys = s.B * s.T * s.H * s.K, values = s.B * s.T * s.H * s.V;
    for (GpuMemory* x : {&q_, &k_, &dq_, &dk_, &dg_})
      *x = Tensor(keys, normals);
    for (GpuMemory* x : {&v_, &o_, &d_o_, &dv_}) *x = Tensor(values, normals);
    g_ = Tensor(keys, gates);
  }

  static int64_t Bytes(const ChunkGlaShape& s) {
    return 2 * s.B * s.T * s.H * (3 * s.K + 2 * s.V);
  }

  void Forward(bool save, cudaStream_t stream) const {
    CUDA_CHECK(ChunkGlaFwdCuda({.shape = s_,
                                .scale = Scale(),
                                .q = q_.get(),
                                .k = k_.get(),
                                .v = v_.get(),
                                .g = g_.get(),
                                .initial_state = nullptr,
                                .cu_seqlens = nullptr,
                                .o = o_.get(),
                                .final_state = nullptr,
                                .saved = save ? saved_ : nullptr,
                                .workspace = workspace_},
                               stream));
  }

  void Backward(cudaStream_t stream) const {
    CUDA_CHECK(ChunkGlaBwdCuda({.shape = s_,
                                .scale = Scale(),
                                .q = q_.get(),
                                .k = k_.get(),
                                .v = v_.get(),
                                .g = g_.get(),
                                .initial_state = nullptr,
                                .cu_seqlens = nullptr,
                                .saved = saved_,
                                .d_o = d_o_.get(),
                                .d_final_state = nullptr,
                                .dq = dq_.get(),
                                .dk = dk_.get(),
                                .dv = dv_.get(),
                                .dg = dg_.get(),
                                .d_initial_state = nullptr,
                                .workspace = workspace_},
                               stream));
  }

 private:
  float Scale() const { return 1 / std::sqrt(static_cast<float>(s_.K)); }

  const ChunkGlaShape s_;
  GpuMemory q_, k_, v_, g_, o_, d_o_, dq_, dk_, dv_, dg_;
  void* const saved_;
  void* const workspace_;
};

void BenchmarkChunk(GpuTimer& timer, const Report& report,
                    const ChunkGlaShape& s) {
  char shape[64];
  std::snprintf(shape, sizeof(shape), "%ld,%ld,%ld,%ld,%ld", s.B, s.T, s.H, s.K,
                s.V);
  const std::string name = shape;
  if (!report.Wants(name)) return;
  const GpuMemory saved = AllocateGpu(ChunkGlaSavedBytes(s) + 1);
  const GpuMemory workspace = AllocateGpu(
      std::max(ChunkGlaFwdWorkspaceBytes(s), ChunkGlaBwdWorkspaceBytes(s)) + 1);
  const std::vector<__nv_bfloat16> normals = Normals(), gates = LogGates();
  std::vector<ChunkCall> calls;
  for (int i = Variants(ChunkCall::Bytes(s)); i > 0; --i) {
    calls.emplace_back(s, normals, gates, saved.get(), workspace.get());
  }
  const int variants = calls.size();
  const auto forward = [&](int i) { calls[i].Forward(false, timer.stream()); };
  const auto both = [&](int i) {
    calls[i].Forward(true, timer.stream());
    calls[i].Backward(timer.stream());
  };
  report.Row(name + " fwd", ChunkForward(s), timer.Eager(variants, forward),
             timer.Graph(variants, forward));
  report.Row(name + " fwd+bwd", ChunkForward(s) + ChunkBackward(s),
             timer.Eager(variants, both), timer.Graph(variants, both));
}

// Every other slot, from the last to the first: a server's sequences come and
// go, so their states are not neighbours.
GpuMemory ScatteredSlots(int64_t N) {
  std::vector<int32_t> slots;
  for (int64_t n = 0; n < N; ++n) slots.push_back(2 * (N - 1 - n));
  GpuMemory memory = AllocateGpu(N * sizeof(int32_t));
  FillGpu<int32_t>(memory.get(), N * sizeof(int32_t), slots);
  return memory;
}

// One token for each of N sequences, states in place. A call is a layer, with
// states of its own or of a layer long before.
void BenchmarkDecode(GpuTimer& timer, const Report& report,
                     const RecurrentGlaShape& s) {
  const std::string name = "decode " + std::to_string(s.N) + ",1," +
                           std::to_string(s.H) + "," + std::to_string(s.K) +
                           "," + std::to_string(s.V);
  if (!report.Wants(name)) return;
  const std::vector<__nv_bfloat16> normals = Normals(), gates = LogGates();
  const int64_t keys = s.N * s.H * s.K, values = s.N * s.H * s.V;
  const GpuMemory q = Tensor(keys, normals), k = Tensor(keys, normals),
                  v = Tensor(values, normals), g = Tensor(keys, gates),
                  o = Tensor(values, normals), slots = ScatteredSlots(s.N);
  const std::vector<float> numbers(normals.begin(), normals.end());
  const int64_t state_bytes = 4 * values * s.K;  // of the slots in use
  std::vector<GpuMemory> states;
  for (int i = Variants(state_bytes); i > 0; --i) {
    states.push_back(AllocateGpu(2 * state_bytes));
    FillGpu<float>(states.back().get(), 2 * state_bytes, numbers);
  }
  const auto step = [&](int i) {
    auto* const state = static_cast<float*>(states[i % states.size()].get());
    CUDA_CHECK(
        RecurrentGlaFwdCuda({.shape = s,
                             .scale = 1 / std::sqrt(float(s.K)),
                             .q = q.get(),
                             .k = k.get(),
                             .v = v.get(),
                             .g = g.get(),
                             .cu_seqlens = nullptr,
                             .slots = static_cast<const int32_t*>(slots.get()),
                             .initial_state = state,
                             .o = o.get(),
                             .final_state = state},
                            timer.stream()));
  };
  const int layers = std::max<int>(24, states.size());
  report.Row(name, Decode(s), timer.Eager(layers, step),
             timer.Graph(layers, step));
}

void Run(const char* filter) {
  GpuTimer timer;
  const Report report(MeasureGpuCeilings(timer), filter);
  const int64_t shapes[][5] = {
      {8, 2048, 4, 256, 512},  {32, 2048, 4, 128, 256}, {8, 2048, 4, 128, 256},
      {1, 32768, 4, 256, 512}, {1, 2048, 4, 256, 512},  {8, 2048, 16, 128, 128},
      {8, 2048, 16, 64, 128},
  };
  for (const auto& [B, T, H, K, V] : shapes) {
    BenchmarkChunk(timer, report,
                   {.B = B,
                    .T = T,
                    .H = H,
                    .K = K,
                    .V = V,
                    .N = B,
                    .dtype = DType::kBFloat16,
                    .gate_dtype = DType::kBFloat16});
  }
  for (const int64_t N : {1, 64, 256}) {
    BenchmarkDecode(timer, report,
                    {.B = N,
                     .T = 1,
                     .H = 4,
                     .K = 256,
                     .V = 512,
                     .N = N,
                     .dtype = DType::kBFloat16,
                     .gate_dtype = DType::kBFloat16});
  }
}

}  // namespace
}  // namespace gla

int main(int argc, char** argv) { gla::Run(argc > 1 ? argv[1] : ""); }
