#include <cmath>

#include "glog/logging.h"
#include "kernels/base/vector_math.h"
#include "kernels/optimizer/adamw.h"

namespace gla {
namespace {

// The coefficients of one step, rounded to float32 once.
struct Coefficients {
  explicit Coefficients(const AdamWArgs& a)
      : m_decay(a.beta1),
        m_gain((1 - double{a.beta1}) * a.grad_scale),
        v_decay(a.beta2),
        v_root_gain(std::sqrt(1 - double{a.beta2}) * a.grad_scale),
        v_unbias(1 / (1 - std::pow(double{a.beta2}, a.step))),
        eps(a.eps),
        step_size(a.learning_rate / (1 - std::pow(double{a.beta1}, a.step))),
        param_decay(1 - double{a.learning_rate} * a.weight_decay) {}

  float m_decay, m_gain;       // m = m_decay m + m_gain grad
  float v_decay, v_root_gain;  // v = v_decay v + (v_root_gain grad)^2
  float v_unbias, eps, step_size, param_decay;
};

void Update(const Coefficients& c, int64_t n, const float* grad, float* param,
            float* m, float* v) {
  ForEachVector(n, [&](int64_t i, auto lanes) {
    const __m256 g = lanes.Load(grad + i);
    const __m256 g_root = g * c.v_root_gain;
    const __m256 new_m = c.m_decay * lanes.Load(m + i) + c.m_gain * g;
    const __m256 new_v = c.v_decay * lanes.Load(v + i) + g_root * g_root;
    const __m256 scale = _mm256_sqrt_ps(new_v * c.v_unbias) + c.eps;
    const __m256 old = lanes.Load(param + i);
    lanes.Store(m + i, new_m);
    lanes.Store(v + i, new_v);
    lanes.Store(param + i, c.param_decay * old - c.step_size * new_m / scale);
  });
}

}  // namespace

void AdamW(const ExecutionContext& ctx, const AdamWArgs& args) {
  CHECK(ctx.device == Device::kCpu) << "adamw: built for the CPU only";
  CHECK_GE(args.step, 1);
  const int64_t n = args.grad.dim(0);
  CheckShape("param", args.param, {n});
  CheckShape("m", args.m, {n});
  CheckShape("v", args.v, {n});
  constexpr int64_t kMinElements = 4096;
  const Coefficients coefficients(args);
  ctx.threads->ParallelRanges(n, kMinElements, [&](int64_t begin, int64_t end) {
    Update(coefficients, end - begin, args.grad.data() + begin,
           args.param.data() + begin, args.m.data() + begin,
           args.v.data() + begin);
  });
}

}  // namespace gla
