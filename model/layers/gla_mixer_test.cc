#include "model/layers/gla_mixer.h"

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/finite_difference.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/relative_rms.h"
#include "kernels/testing/test_context.h"
#include "model/decode_states.h"
#include "model/testing/tiny_model.h"

namespace gla {
namespace {

using Row = std::vector<double>;

constexpr int kLayer = 1;
constexpr int64_t kB = 2;
constexpr int64_t kT = 5;

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// The mixer in float64, one token after the other, straight from the formulas.
class Reference {
 public:
  Reference(const GlaConfig& config, const Parameters& parameters)
      : config_(config), parameters_(parameters) {}

  // One token of a sequence whose heads have the states S [H, K, V].
  Row Step(const Row& x, Row* S) const {
    const int64_t H = config_.num_heads, K = config_.head_k_dim(),
                  V = config_.head_v_dim();
    const Row q = Project("q_proj", x), k = Project("k_proj", x),
              v = Project("v_proj", x), g = LogGate(x);
    Row o(H * V);
    for (int64_t h = 0; h < H; ++h) {
      const int64_t kv = h / config_.kv_groups();
      for (int64_t i = 0; i < K; ++i) {
        for (int64_t j = 0; j < V; ++j) {
          double& s = (*S)[(h * K + i) * V + j];
          s = std::exp(g[kv * K + i]) * s + k[kv * K + i] * v[kv * V + j];
          o[h * V + j] += q[h * K + i] * s / std::sqrt(K);
        }
      }
    }
    return Project("o_proj", GatedNorm(o, x));
  }

 private:
  TensorView<const float, 2> Matrix(const std::string& name) const {
    return parameters_.matrix("model.layers.1.attn." + name + ".weight");
  }

  Row Project(const std::string& name, const Row& x) const {
    const auto w = Matrix(name);
    Row y(w.dim(0));
    for (size_t i = 0; i < y.size(); ++i) {
      for (size_t j = 0; j < x.size(); ++j) y[i] += w[i][j] * x[j];
    }
    return y;
  }

  Row LogGate(const Row& x) const {
    const int64_t size = config_.kv_heads() * config_.head_k_dim();
    if (!config_.use_forget_gate) return Row(size);
    const auto bias = parameters_.vector("model.layers.1.attn.gk_proj.1.bias");
    Row g = Project("gk_proj.1", Project("gk_proj.0", x));
    for (int64_t i = 0; i < size; ++i) {
      g[i] = std::log(Sigmoid(g[i] + bias[i])) / 16;
    }
    return g;
  }

  Row GatedNorm(const Row& o, const Row& x) const {
    const size_t V = config_.head_v_dim();
    const bool fused = config_.use_output_gate && config_.fuse_norm;
    const auto weight = parameters_.vector(
        fused ? "model.layers.1.attn.g_norm_swish_gate.weight"
              : "model.layers.1.attn.g_norm.weight");
    const Row gate = config_.use_output_gate ? Project("g_proj", x) : Row();
    Row y(o.size());
    for (size_t i = 0; i < o.size(); ++i) {
      double squares = 0;
      for (size_t j = 0; j < V; ++j) squares += std::pow(o[i / V * V + j], 2);
      y[i] = o[i] / std::sqrt(squares / V + config_.norm_eps) * weight[i % V];
      if (!gate.empty()) y[i] *= gate[i] * Sigmoid(gate[i]);
    }
    return y;
  }

  const GlaConfig config_;
  const Parameters& parameters_;
};

class GlaMixerTest : public testing::TestWithParam<ConfigVariant> {
 protected:
  GlaMixerTest()
      : model_(MakeTinyModel(/*seed=*/5, GetParam().config)),
        mixer_(model_.config, *model_.parameters, kLayer),
        states_(model_.config, kB) {
    const TensorView<float, 4> state = states_.layer(kLayer);
    for (int64_t i = 0; i < state.size(); ++i) {
      state.data()[i] = PhiloxNormal(/*seed=*/6, 0, i);
    }
    initial_.assign(state.data(), state.data() + state.size());
  }

  // Outputs [B, T, D] and final states for inputs [B, T, D].
  std::vector<double> Want(const std::vector<double>& x,
                           std::vector<double>* final_states) const {
    const Reference reference(model_.config, *model_.parameters);
    std::vector<double> out;
    final_states->clear();
    const size_t size = initial_.size() / kB;
    for (int64_t b = 0; b < kB; ++b) {
      Row S(initial_.begin() + b * size, initial_.begin() + (b + 1) * size);
      for (int64_t t = 0; t < kT; ++t) {
        const double* row = &x[(b * kT + t) * D_];
        for (double y : reference.Step(Row(row, row + D_), &S)) {
          out.push_back(y);
        }
      }
      final_states->insert(final_states->end(), S.begin(), S.end());
    }
    return out;
  }

  void ExpectStates(const std::vector<double>& want) {
    EXPECT_TRUE(RelativeRmsAtMost(
        1e-5, {states_.layer(kLayer).data(), want.size()}, want));
  }

  TestContext test_;
  LoadedModel model_;
  GlaMixer mixer_;
  DecodeStates states_;
  std::vector<double> initial_;
  const int64_t D_ = model_.config.hidden_size;
};

TEST_P(GlaMixerTest, ChunkFormMatchesReference) {
  const auto x = RandomNormal<2>({kB * kT, D_}, /*seed=*/1);
  std::vector<double> final_states;
  const std::vector<double> want = Want(x.AsDouble(), &final_states);
  Pass pass;
  pass.B = kB;
  pass.T = kT;
  pass.states = &states_;
  auto y = PoisonedTensor<2>({kB * kT, D_});
  mixer_.Forward(test_.ctx(), pass, x, y);
  EXPECT_TRUE(RelativeRmsAtMost(1e-5, y.values(), want));
  ExpectStates(final_states);
}

TEST_P(GlaMixerTest, StepFormMatchesReference) {
  const auto x = RandomNormal<2>({kB * kT, D_}, /*seed=*/1);
  std::vector<double> final_states;
  const std::vector<double> want = Want(x.AsDouble(), &final_states);
  Pass pass;
  pass.form = Pass::Form::kStep;
  pass.B = kB;
  pass.states = &states_;
  const std::vector<int32_t> slots = {0, 1};
  pass.slots = slots;
  auto y = PoisonedTensor<2>({kB * kT, D_});
  for (int64_t t = 0; t < kT; ++t) {
    OwnedTensor<float, 2> x_t({kB, D_}), y_t({kB, D_});
    for (int64_t i = 0; i < kB * D_; ++i) {
      x_t[i] = x[(i / D_ * kT + t) * D_ + i % D_];
    }
    mixer_.Forward(test_.ctx(), pass, x_t, y_t);
    for (int64_t i = 0; i < kB * D_; ++i) {
      y[(i / D_ * kT + t) * D_ + i % D_] = y_t[i];
    }
  }
  EXPECT_TRUE(RelativeRmsAtMost(1e-5, y.values(), want));
  ExpectStates(final_states);
}

// Even though the forward pass has replaced the states that it started from.
TEST_P(GlaMixerTest, InputGradientMatchesFiniteDifferences) {
  const auto x = RandomNormal<2>({kB * kT, D_}, /*seed=*/1);
  const auto dy = RandomNormal<2>({kB * kT, D_}, /*seed=*/2);
  Pass pass;
  pass.B = kB;
  pass.T = kT;
  pass.states = &states_;
  pass.keep = true;
  auto y = PoisonedTensor<2>({kB * kT, D_});
  auto dx = PoisonedTensor<2>({kB * kT, D_});
  Parameters gradients(model_.table.get());
  const auto* saved = mixer_.Forward(test_.ctx(), pass, x, y);
  mixer_.Backward(test_.ctx(), pass, saved, dy, &gradients, dx);

  std::vector<double> at = x.AsDouble(), unused;
  const auto direction = RandomNormal<2>({kB * kT, D_}, /*seed=*/3);
  const std::vector<double> along = direction.AsDouble();
  const double want =
      DirectionalDerivative<double>(absl::MakeSpan(at), along, 1e-5, [&] {
        const std::vector<double> value = Want(at, &unused);
        double objective = 0;
        for (size_t i = 0; i < value.size(); ++i) objective += value[i] * dy[i];
        return objective;
      });
  double got = 0, size = 0;
  for (size_t i = 0; i < dx.size(); ++i) {
    got += double{dx[i]} * along[i];
    size += double{dx[i]} * dx[i];
  }
  EXPECT_NEAR(got, want, 1e-5 * std::sqrt(size));
}

INSTANTIATE_TEST_SUITE_P(Variants, GlaMixerTest,
                         testing::ValuesIn(TinyVariants()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace gla
