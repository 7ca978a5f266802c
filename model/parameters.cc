#include "model/parameters.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "glog/logging.h"
#include "kernels/base/philox.h"

namespace gla {
namespace {

constexpr int64_t kAlignElements = 16;  // 64 bytes

using Init = ParameterSpec::Init;
using Shape = std::vector<int64_t>;

// Collects the list, in the order of fla's state dict.
class ListBuilder {
 public:
  void Matrix(std::string name, int64_t out, int64_t in) {
    Add(std::move(name), {out, in}, Init::kNormal, /*decays=*/true);
  }
  void Norm(std::string name, int64_t size) {
    Add(std::move(name), {size}, Init::kOnes, /*decays=*/false);
  }
  void Bias(std::string name, int64_t size) {
    Add(std::move(name), {size}, Init::kZeros, /*decays=*/false);
  }

  std::vector<ParameterSpec> specs;
  int64_t flat_size = 0;
  int64_t num_parameters = 0;

 private:
  void Add(std::string name, Shape shape, Init init, bool decays) {
    int64_t size = 1;
    for (int64_t d : shape) size *= d;
    specs.push_back({.name = std::move(name),
                     .shape = std::move(shape),
                     .offset = flat_size,
                     .size = size,
                     .init = init,
                     .decays = decays});
    num_parameters += size;
    flat_size += (size + kAlignElements - 1) / kAlignElements * kAlignElements;
  }
};

void AddMixer(const GlaConfig& config, const std::string& prefix,
              ListBuilder& list) {
  const int64_t d = config.hidden_size;
  const int64_t groups = config.kv_groups();
  const int64_t rank = GlaConfig::kGateLowRankDim;
  list.Matrix(prefix + "q_proj.weight", config.key_dim(), d);
  list.Matrix(prefix + "k_proj.weight", config.key_dim() / groups, d);
  list.Matrix(prefix + "v_proj.weight", config.value_dim() / groups, d);
  if (config.use_output_gate) {
    list.Matrix(prefix + "g_proj.weight", config.value_dim(), d);
  }
  if (config.use_forget_gate) {
    list.Matrix(prefix + "gk_proj.0.weight", rank, d);
    list.Matrix(prefix + "gk_proj.1.weight", config.key_dim() / groups, rank);
    list.Bias(prefix + "gk_proj.1.bias", config.key_dim() / groups);
  }
  list.Matrix(prefix + "o_proj.weight", d, config.value_dim());
  const bool fused = config.use_output_gate && config.fuse_norm;
  list.Norm(prefix + (fused ? "g_norm_swish_gate.weight" : "g_norm.weight"),
            config.head_v_dim());
}

void AddBlock(const GlaConfig& config, const std::string& prefix,
              ListBuilder& list) {
  const int64_t d = config.hidden_size;
  list.Norm(prefix + "attn_norm.weight", d);
  AddMixer(config, prefix + "attn.", list);
  list.Norm(prefix + "mlp_norm.weight", d);
  list.Matrix(prefix + "mlp.gate_proj.weight", config.mlp_dim(), d);
  list.Matrix(prefix + "mlp.up_proj.weight", config.mlp_dim(), d);
  list.Matrix(prefix + "mlp.down_proj.weight", d, config.mlp_dim());
}

const ParameterSpec& SpecOf(const ParameterTable& table, std::string_view name,
                            size_t rank) {
  const ParameterSpec* spec = table.Find(name);
  CHECK(spec != nullptr) << "no parameter " << name;
  CHECK_EQ(spec->shape.size(), rank) << name;
  return *spec;
}

}  // namespace

ParameterTable::ParameterTable(const GlaConfig& config) {
  ListBuilder list;
  list.Matrix("model.embeddings.weight", config.vocab_size, config.hidden_size);
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    AddBlock(config, absl::StrCat("model.layers.", layer, "."), list);
  }
  list.Norm("model.norm.weight", config.hidden_size);
  if (!config.tie_word_embeddings) {
    list.Matrix("lm_head.weight", config.vocab_size, config.hidden_size);
  }
  specs_ = std::move(list.specs);
  flat_size_ = list.flat_size;
  num_parameters_ = list.num_parameters;
  for (size_t i = 0; i < specs_.size(); ++i) index_[specs_[i].name] = i;
}

const ParameterSpec* ParameterTable::Find(std::string_view name) const {
  const auto it = index_.find(absl::string_view(name.data(), name.size()));
  return it == index_.end() ? nullptr : &specs_[it->second];
}

void Parameters::Free::operator()(float* p) const { free(p); }

Parameters::Parameters(const ParameterTable* table) : table_(table) {
  const size_t bytes = table->flat_size() * sizeof(float);
  data_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
  CHECK(data_ != nullptr) << "no memory for " << bytes
                          << " bytes of parameters";
  SetZero();
}

void Parameters::SetZero() {
  std::fill_n(data_.get(), table_->flat_size(), 0.0f);
}

TensorView<float, 1> Parameters::vector(std::string_view name) {
  const ParameterSpec& spec = SpecOf(*table_, name, 1);
  return {data(spec), {spec.shape[0]}};
}
TensorView<float, 2> Parameters::matrix(std::string_view name) {
  const ParameterSpec& spec = SpecOf(*table_, name, 2);
  return {data(spec), {spec.shape[0], spec.shape[1]}};
}
TensorView<const float, 1> Parameters::vector(std::string_view name) const {
  const ParameterSpec& spec = SpecOf(*table_, name, 1);
  return {data(spec), {spec.shape[0]}};
}
TensorView<const float, 2> Parameters::matrix(std::string_view name) const {
  const ParameterSpec& spec = SpecOf(*table_, name, 2);
  return {data(spec), {spec.shape[0], spec.shape[1]}};
}

void InitializeParameters(uint64_t seed, const GlaConfig& config,
                          Parameters* parameters) {
  const auto& specs = parameters->table().specs();
  const auto range = static_cast<float>(config.initializer_range);
  for (size_t i = 0; i < specs.size(); ++i) {
    float* data = parameters->data(specs[i]);
    switch (specs[i].init) {
      case Init::kNormal:
        for (int64_t e = 0; e < specs[i].size; ++e) {
          data[e] = range * PhiloxNormal(seed, /*stream=*/i, e);
        }
        break;
      case Init::kOnes:
        std::fill_n(data, specs[i].size, 1.0f);
        break;
      case Init::kZeros:
        std::fill_n(data, specs[i].size, 0.0f);
        break;
    }
  }
}

}  // namespace gla
