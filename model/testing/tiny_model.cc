#include "model/testing/tiny_model.h"

#include <cmath>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "kernels/base/philox.h"

namespace gla {
namespace {

struct Distribution {
  float mean;
  float deviation;
};

Distribution DistributionOf(const ParameterSpec& spec) {
  if (absl::EndsWith(spec.name, "bias")) return {1.5f, 1.0f};
  if (spec.shape.size() == 1) return {1.0f, 0.2f};
  if (absl::EndsWith(spec.name, "embeddings.weight")) return {0.0f, 1.0f};
  return {0.0f, 1.0f / std::sqrt(static_cast<float>(spec.shape[1]))};
}

}  // namespace

GlaConfig TinyConfig() {
  GlaConfig config;
  config.vocab_size = 256;
  config.hidden_size = 64;
  config.num_hidden_layers = 2;
  config.num_heads = 2;
  config.intermediate_size = 96;
  return config;
}

std::vector<ConfigVariant> TinyVariants() {
  std::vector<ConfigVariant> variants;
  const auto add = [&](const std::string& name) -> GlaConfig& {
    variants.push_back({name, TinyConfig()});
    return variants.back().config;
  };
  add("Plain");
  add("Tied").tie_word_embeddings = true;
  add("NoForgetGate").use_forget_gate = false;
  add("NoOutputGate").use_output_gate = false;
  add("UnfusedNorm").fuse_norm = false;
  add("MlpByRatio").intermediate_size.reset();
  // The scale of o reaches the result of its norm through eps alone.
  add("LargeEps").norm_eps = 0.1;
  GlaConfig& wide = add("WideHeads");
  wide.expand_k = 1;
  wide.expand_v = 2;
  GlaConfig& grouped = add("GroupedHeads");
  grouped.num_heads = 4;
  grouped.num_kv_heads = 2;
  GlaConfig& odd = add("OddSizes");
  odd.vocab_size = 101;
  odd.hidden_size = 42;
  odd.num_heads = 3;
  odd.intermediate_size = 53;
  return variants;
}

void PrintTo(const ConfigVariant& variant, std::ostream* os) {
  *os << variant.name;
}

void RandomizeParameters(uint64_t seed, Parameters* parameters) {
  uint64_t stream = 0;
  for (const ParameterSpec& spec : parameters->table().specs()) {
    const Distribution d = DistributionOf(spec);
    float* values = parameters->data(spec);
    for (int64_t i = 0; i < spec.size; ++i) {
      values[i] = d.mean + d.deviation * PhiloxNormal(seed, stream, i);
    }
    ++stream;
  }
}

LoadedModel MakeTinyModel(uint64_t seed, const GlaConfig& config) {
  LoadedModel model;
  model.config = config;
  model.table = std::make_unique<ParameterTable>(config);
  model.parameters = std::make_unique<Parameters>(model.table.get());
  RandomizeParameters(seed, model.parameters.get());
  return model;
}

}  // namespace gla
