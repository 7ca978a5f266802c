// The one list of a model's tensors. Initialisation, loading, saving, the
// optimizer and gradients all walk it, so they cannot disagree.
#ifndef GLA_MODEL_PARAMETERS_H_
#define GLA_MODEL_PARAMETERS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kernels/base/tensor_view.h"
#include "model/config.h"

namespace gla {

struct ParameterSpec {
  enum class Init { kNormal, kOnes, kZeros };  // N(0, initializer_range)

  std::string name;  // fla's, e.g. "model.layers.0.attn.q_proj.weight"
  std::vector<int64_t> shape;  // linear weights are [out, in]
  int64_t offset = 0;          // elements from the start of the flat buffer; a
                               // multiple of 16 (64 bytes)
  int64_t size = 0;            // elements
  Init init = Init::kNormal;
  bool decays = true;  // weight decay: matrices yes, norms and biases no
};

// Names, shapes and places; a pure function of the config. Immutable.
class ParameterTable {
 public:
  explicit ParameterTable(const GlaConfig& config);  // a valid config

  const std::vector<ParameterSpec>& specs() const { return specs_; }
  const ParameterSpec* Find(std::string_view name) const;  // nullptr: none
  int64_t flat_size() const { return flat_size_; }         // padding included
  int64_t num_parameters() const { return num_parameters_; }  // without padding

 private:
  std::vector<ParameterSpec> specs_;
  absl::flat_hash_map<std::string, int64_t> index_;
  int64_t flat_size_ = 0;
  int64_t num_parameters_ = 0;
};

// One float32 buffer with a value for every tensor of a table: weights,
// gradients or optimizer moments. Starts as zeros; padding stays zero.
// Thread-compatible.
class Parameters {
 public:
  // `table` must outlive this.
  explicit Parameters(const ParameterTable* table);
  Parameters(Parameters&&) = default;

  const ParameterTable& table() const { return *table_; }
  TensorView<float, 1> flat() { return {data_.get(), {table_->flat_size()}}; }
  TensorView<const float, 1> flat() const {
    return {data_.get(), {table_->flat_size()}};
  }
  float* data(const ParameterSpec& spec) { return data_.get() + spec.offset; }
  const float* data(const ParameterSpec& spec) const {
    return data_.get() + spec.offset;
  }

  // Views by name; CHECK-fail when the name or rank is wrong.
  TensorView<float, 1> vector(std::string_view name);
  TensorView<float, 2> matrix(std::string_view name);
  TensorView<const float, 1> vector(std::string_view name) const;
  TensorView<const float, 2> matrix(std::string_view name) const;

  void SetZero();

 private:
  struct Free {
    void operator()(float* p) const;
  };
  const ParameterTable* table_;
  std::unique_ptr<float[], Free> data_;  // 64-byte aligned
};

// Initial weights by each tensor's Init. A value depends on (seed, tensor's
// place in the list, element) alone.
void InitializeParameters(uint64_t seed, const GlaConfig& config,
                          Parameters* parameters);

}  // namespace gla

#endif  // GLA_MODEL_PARAMETERS_H_
