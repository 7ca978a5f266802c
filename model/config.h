// Configuration of a GLA language model: fla's GLAConfig.
#ifndef GLA_MODEL_CONFIG_H_
#define GLA_MODEL_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gla/v1/model_config.pb.h"

namespace gla {

// Plain values with fla's names and defaults. Build one by hand and Validate()
// it, or parse it; parsing validates. Derived sizes live here and nowhere else.
struct GlaConfig {
  int32_t vocab_size = 32000;
  int32_t hidden_size = 2048;
  int32_t num_hidden_layers = 24;
  int32_t num_heads = 4;
  std::optional<int32_t> num_kv_heads;  // unset: num_heads
  double expand_k = 0.5;
  double expand_v = 1.0;
  int32_t hidden_ratio = 4;
  std::optional<int32_t> intermediate_size;  // unset: rule of hidden_ratio
  double norm_eps = 1e-6;
  bool tie_word_embeddings = false;
  bool use_output_gate = true;
  bool fuse_norm = true;  // only names a tensor: g_norm_swish_gate or g_norm
  double initializer_range = 0.02;
  int32_t bos_token_id = 1;     // -1 (null in config.json): none
  int32_t eos_token_id = 2;     // -1: none
  bool use_forget_gate = true;  // ours; false: every gate is one

  // Constants of fla's layer that no config key reaches.
  static constexpr int32_t kGateLowRankDim = 16;
  static constexpr float kGateLogitNormalizer = 16;

  // Derived sizes, as fla computes them.
  int64_t key_dim() const;        // int(hidden_size * expand_k), all heads
  int64_t value_dim() const;      // int(hidden_size * expand_v), all heads
  int64_t head_k_dim() const;     // K
  int64_t head_v_dim() const;     // V
  int64_t kv_heads() const;       // num_kv_heads or num_heads
  int64_t kv_groups() const;      // query heads per KV head
  int64_t mlp_dim() const;        // intermediate size
  float attention_scale() const;  // K^-0.5

  // INVALID_ARGUMENT naming the field and its value. A valid config has at most
  // 2^37 parameters, so that no derived size overflows.
  absl::Status Validate() const;

  // config.json of a Hugging Face GLA directory. Keys that are absent take
  // fla's defaults; unknown ones are ignored. Takes old keys (rms_norm_eps,
  // d_model, num_attention_heads, attn_mode fused_chunk). A key that would
  // change the maths in a way not supported here (use_short_conv, feature_map,
  // attn, clamp_min, attnres_block_size, hidden_act, use_l2warp,
  // elementwise_affine, use_gk, use_gv, model_type, ...) is refused by its name
  // and value.
  static absl::StatusOr<GlaConfig> FromJson(std::string_view json);
  // The same keys as a message; the same checks.
  static absl::StatusOr<GlaConfig> FromProto(const gla::v1::ModelConfig& proto);

  // config.json that fla and transformers open. fla has no use_forget_gate: the
  // key is written only when false.
  std::string ToJson() const;
  // Every field set; those left to a rule get what it gives.
  gla::v1::ModelConfig ToProto() const;

  friend bool operator==(const GlaConfig&, const GlaConfig&) = default;
};

}  // namespace gla

#endif  // GLA_MODEL_CONFIG_H_
