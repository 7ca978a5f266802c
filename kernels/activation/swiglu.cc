#include "kernels/activation/swiglu.h"

#include "glog/logging.h"
#include "kernels/base/row_blocks.h"
#include "kernels/base/vector_math.h"

namespace gla {
namespace {

// Row by row, so that a value does not depend on the rows around it.
void BackwardRow(const SwigluBwdArgs& args, int64_t row) {
  const float* const dy = args.dy[row].data();
  const float* const gate = args.gate[row].data();
  const float* const up = args.up[row].data();
  float* const dgate = args.dgate[row].data();
  float* const dup = args.dup[row].data();
  float* const y = args.y.empty() ? nullptr : args.y[row].data();
  ForEachVector(args.dy.dim(1), [&](int64_t i, auto lanes) {
    const __m256 z = lanes.Load(gate + i);
    const __m256 u = lanes.Load(up + i);
    const __m256 dyi = lanes.Load(dy + i);
    const __m256 sigmoid = Sigmoid8(z);
    const __m256 silu = z * sigmoid;
    const __m256 dsilu = sigmoid * (1 + z * (1 - sigmoid));
    lanes.Store(dgate + i, dyi * u * dsilu);
    lanes.Store(dup + i, dyi * silu);
    if (y != nullptr) lanes.Store(y + i, silu * u);
  });
}

}  // namespace

void SwigluFwd(const ExecutionContext& ctx, TensorView<const float, 2> gate,
               TensorView<const float, 2> up, TensorView<float, 2> y) {
  CHECK(ctx.device == Device::kCpu) << "SwigluFwd: CPU only so far";
  const auto [M, I] = gate.shape();
  CheckShape("up", up, gate.shape());
  CheckShape("y", y, gate.shape());

  ctx.threads->ParallelRanges(M, RowGrain(I), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* const z = gate[row].data();
      const float* const u = up[row].data();
      float* const out = y[row].data();
      ForEachVector(gate.dim(1), [&](int64_t i, auto lanes) {
        lanes.Store(out + i, Silu8(lanes.Load(z + i)) * lanes.Load(u + i));
      });
    }
  });
}

void SwigluBwd(const ExecutionContext& ctx, const SwigluBwdArgs& args) {
  CHECK(ctx.device == Device::kCpu) << "SwigluBwd: CPU only so far";
  const auto [M, I] = args.dy.shape();
  CheckShape("gate", args.gate, args.dy.shape());
  CheckShape("up", args.up, args.dy.shape());
  CheckShape("dgate", args.dgate, args.dy.shape());
  CheckShape("dup", args.dup, args.dy.shape());
  if (!args.y.empty()) CheckShape("y", args.y, args.dy.shape());

  ctx.threads->ParallelRanges(M, RowGrain(I), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) BackwardRow(args, row);
  });
}

}  // namespace gla
