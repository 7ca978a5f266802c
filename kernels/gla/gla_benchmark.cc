#include "kernels/gla/gla_benchmark.h"

#include <cblas.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

#include "absl/functional/function_ref.h"
#include "kernels/base/philox.h"
#include "kernels/gla/chunk_gla.h"

namespace gla {
namespace {

double SecondsOf(absl::FunctionRef<void()> fn) {
  const auto start = std::chrono::steady_clock::now();
  fn();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start)
      .count();
}

double Median(std::vector<double> x) {
  std::nth_element(x.begin(), x.begin() + x.size() / 2, x.end());
  return x[x.size() / 2];
}

// Owns inputs and outputs of one shape.
class ChunkGlaCall {
 public:
  explicit ChunkGlaCall(const ChunkGlaBenchmarkShape& s)
      : keys_{s.B, s.T, s.H, s.K}, values_{s.B, s.T, s.H, s.V} {
    const float scale = 1 / std::sqrt(static_cast<float>(s.K));
    fwd_.q = bwd_.q = Normal(keys_);
    fwd_.k = bwd_.k = Normal(keys_);
    fwd_.v = bwd_.v = Normal(values_);
    fwd_.g = bwd_.g = Gates(keys_, s.normalizer);
    fwd_.scale = bwd_.scale = scale;
    fwd_.o = Zeros(values_);
    const int64_t saved = ChunkGlaSavedFloats(keys_, values_, {});
    fwd_.saved = {Buffer(saved), {saved}};
    bwd_.saved = fwd_.saved;
    bwd_.d_o = Normal(values_);
    bwd_.dq = Zeros(keys_);
    bwd_.dk = Zeros(keys_);
    bwd_.dv = Zeros(values_);
    bwd_.dg = Zeros(keys_);
  }

  void Forward(const ExecutionContext& ctx) { ChunkGlaFwd(ctx, fwd_); }
  void Backward(const ExecutionContext& ctx) { ChunkGlaBwd(ctx, bwd_); }

 private:
  using Shape = std::array<int64_t, 4>;

  float* Buffer(int64_t n) {
    buffers_.emplace_back(n);
    return buffers_.back().data();
  }
  TensorView<float, 4> Zeros(const Shape& shape) {
    return {Buffer(TensorView<float, 4>(nullptr, shape).size()), shape};
  }
  TensorView<float, 4> Normal(const Shape& shape) {
    TensorView<float, 4> x = Zeros(shape);
    const uint64_t stream = buffers_.size();
    for (int64_t i = 0; i < x.size(); ++i) {
      x.data()[i] = PhiloxNormal(/*seed=*/1, stream, i);
    }
    return x;
  }
  TensorView<float, 4> Gates(const Shape& shape, double normalizer) {
    TensorView<float, 4> x = Normal(shape);
    for (int64_t i = 0; i < x.size(); ++i) {
      x.data()[i] = -std::log1p(std::exp(-x.data()[i])) / normalizer;
    }
    return x;
  }

  Shape keys_, values_;
  std::vector<std::vector<float>> buffers_;
  ChunkGlaFwdArgs fwd_;
  ChunkGlaBwdArgs bwd_;
};

// C = A B with matrices of kSize, rows shared out over the threads.
class Sgemm {
 public:
  static constexpr int64_t kSize = 2048;

  Sgemm() : a_(kSize * kSize, 1.0f), b_(a_), c_(a_) {}

  void Run(const ExecutionContext& ctx) {
    const int64_t n = kSize, threads = ctx.threads->num_threads();
    openblas_set_num_threads(1);
    ctx.threads->ParallelRanges(
        n, (n + threads - 1) / threads, [&](int64_t begin, int64_t end) {
          cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, end - begin, n,
                      n, 1, a_.data() + begin * n, n, b_.data(), n, 0,
                      c_.data() + begin * n, n);
        });
  }

  static constexpr double kFlops = 2.0 * kSize * kSize * kSize;

 private:
  std::vector<float> a_, b_, c_;
};

}  // namespace

ChunkGlaTiming MeasureChunkGla(const ExecutionContext& ctx,
                               const ChunkGlaBenchmarkShape& shape,
                               int rounds) {
  ChunkGlaCall call(shape);
  Sgemm sgemm;
  const double token_heads = shape.B * shape.T * shape.H;
  const double K = shape.K, V = shape.V, C = kGlaChunk;
  ChunkGlaTiming timing;
  timing.fwd_flops = token_heads * (4 * K * V + 2 * C * (K + V));
  timing.bwd_flops = token_heads * (10 * K * V + 2 * C * (3 * K + 2 * V));

  std::vector<double> fwd, bwd, rate, fwd_share, step_share;
  for (int round = 0; round <= rounds; ++round) {
    const double sgemm_seconds = SecondsOf([&] { sgemm.Run(ctx); });
    const double fwd_seconds = SecondsOf([&] { call.Forward(ctx); });
    const double bwd_seconds = SecondsOf([&] { call.Backward(ctx); });
    if (round == 0) continue;
    const double sgemm_rate = Sgemm::kFlops / sgemm_seconds;
    fwd.push_back(fwd_seconds);
    bwd.push_back(bwd_seconds);
    rate.push_back(sgemm_rate);
    fwd_share.push_back(timing.fwd_flops / fwd_seconds / sgemm_rate);
    step_share.push_back((timing.fwd_flops + timing.bwd_flops) /
                         (fwd_seconds + bwd_seconds) / sgemm_rate);
  }
  timing.fwd_seconds = Median(fwd);
  timing.bwd_seconds = Median(bwd);
  timing.sgemm_flops_per_second = Median(rate);
  timing.fwd_share = Median(fwd_share);
  timing.step_share = Median(step_share);
  return timing;
}

}  // namespace gla
