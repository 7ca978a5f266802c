#include "model/config.h"

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "google/protobuf/util/json_util.h"
#include "kernels/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace gla {
namespace {

using Json = nlohmann::ordered_json;

// Upper bounds that no real model comes near; a typo stays a clear error
// instead of an allocation of petabytes.
constexpr int32_t kMaxDim = 1 << 20;
constexpr int32_t kMaxVocab = 1 << 24;
constexpr int32_t kMaxLayers = 1 << 12;

absl::Status BadField(const char* name, const std::string& want,
                      const std::string& got) {
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": want ", want, ", got ", got));
}

absl::Status CheckRange(const char* name, int64_t value, int64_t low,
                        int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return BadField(name, absl::StrCat(low, " to ", high), absl::StrCat(value));
}

absl::Status CheckDivides(const char* what, int64_t total, int64_t parts) {
  if (total > 0 && total % parts == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      what, ": ", total, " does not divide into ", parts, " heads"));
}

// Readers of one key; a null or missing key leaves the value as it is.
absl::Status Read(const Json& json, const char* key, int32_t* value) {
  if (!json.contains(key) || json[key].is_null()) return absl::OkStatus();
  const Json& field = json[key];
  const bool whole = field.is_number_integer() ||
                     (field.is_number_float() &&
                      field.get<double>() == std::floor(field.get<double>()));
  if (!whole) return BadField(key, "a whole number", field.dump());
  const double number = field.get<double>();
  if (std::abs(number) > std::numeric_limits<int32_t>::max()) {
    return BadField(key, "a 32-bit number", field.dump());
  }
  *value = static_cast<int32_t>(number);
  return absl::OkStatus();
}
absl::Status Read(const Json& json, const char* key,
                  std::optional<int32_t>* value) {
  if (!json.contains(key) || json[key].is_null()) return absl::OkStatus();
  return Read(json, key, &value->emplace(0));
}
absl::Status Read(const Json& json, const char* key, double* value) {
  if (!json.contains(key) || json[key].is_null()) return absl::OkStatus();
  if (!json[key].is_number()) {
    return BadField(key, "a number", json[key].dump());
  }
  *value = json[key].get<double>();
  return absl::OkStatus();
}
absl::Status Read(const Json& json, const char* key, bool* value) {
  if (!json.contains(key) || json[key].is_null()) return absl::OkStatus();
  if (!json[key].is_boolean()) {
    return BadField(key, "true or false", json[key].dump());
  }
  *value = json[key].get<bool>();
  return absl::OkStatus();
}

// Keys that change the maths in ways we do not compute, with the values that
// leave it as it is. fla ignores use_gk and use_gv, but nobody who sets them
// otherwise expects that.
absl::Status RefuseUnsupported(const Json& json) {
  const std::vector<std::pair<const char*, std::vector<Json>>> neutral = {
      {"model_type", {"gla"}},
      {"attn_mode", {"chunk", "fused_chunk", "fused_recurrent"}},
      {"hidden_act", {"swish", "silu"}},
      {"use_short_conv", {false}},
      {"feature_map", {}},
      {"attn", {}},
      {"clamp_min", {}},
      {"attnres_block_size", {}},
      {"elementwise_affine", {true}},
      {"use_gk", {true}},
      {"use_gv", {false}},
      {"use_l2warp", {false}},
      {"quantization_config", {}},
  };
  for (const auto& [key, values] : neutral) {
    if (!json.contains(key) || json[key].is_null()) continue;
    bool supported = false;
    for (const Json& value : values) supported |= json[key] == value;
    if (!supported) {
      return absl::InvalidArgumentError(
          absl::StrCat(key, " = ", json[key].dump(), " is not supported"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

int64_t GlaConfig::key_dim() const {
  return static_cast<int64_t>(hidden_size * expand_k);
}
int64_t GlaConfig::value_dim() const {
  return static_cast<int64_t>(hidden_size * expand_v);
}
int64_t GlaConfig::head_k_dim() const { return key_dim() / num_heads; }
int64_t GlaConfig::head_v_dim() const { return value_dim() / num_heads; }
int64_t GlaConfig::kv_heads() const { return num_kv_heads.value_or(num_heads); }
int64_t GlaConfig::kv_groups() const { return num_heads / kv_heads(); }
int64_t GlaConfig::mlp_dim() const {
  if (intermediate_size.has_value()) return *intermediate_size;
  const int64_t ruled =
      static_cast<int64_t>(hidden_size) * hidden_ratio * 2 / 3;
  return (ruled + 255) / 256 * 256;
}
float GlaConfig::attention_scale() const {
  return 1.0f / std::sqrt(static_cast<float>(head_k_dim()));
}

absl::Status GlaConfig::Validate() const {
  RETURN_IF_ERROR(CheckRange("vocab_size", vocab_size, 1, kMaxVocab));
  RETURN_IF_ERROR(CheckRange("hidden_size", hidden_size, 1, kMaxDim));
  RETURN_IF_ERROR(
      CheckRange("num_hidden_layers", num_hidden_layers, 1, kMaxLayers));
  RETURN_IF_ERROR(CheckRange("num_heads", num_heads, 1, kMaxDim));
  RETURN_IF_ERROR(CheckRange("num_kv_heads", kv_heads(), 1, num_heads));
  if (num_heads % kv_heads() != 0) {
    return BadField("num_kv_heads",
                    absl::StrCat("a divisor of num_heads ", num_heads),
                    absl::StrCat(kv_heads()));
  }
  RETURN_IF_ERROR(CheckRange("hidden_ratio", hidden_ratio, 1, 1024));
  RETURN_IF_ERROR(CheckRange("intermediate_size", mlp_dim(), 1, kMaxDim));
  for (const auto& [name, value] :
       {std::pair{"expand_k", expand_k}, std::pair{"expand_v", expand_v}}) {
    if (!(value > 0 && value <= 64)) {
      return BadField(name, "a factor in (0, 64]", absl::StrCat(value));
    }
  }
  RETURN_IF_ERROR(CheckDivides("hidden_size * expand_k", key_dim(), num_heads));
  RETURN_IF_ERROR(
      CheckDivides("hidden_size * expand_v", value_dim(), num_heads));
  if (!(norm_eps > 0 && norm_eps < 1)) {
    return BadField("norm_eps", "a number in (0, 1)", absl::StrCat(norm_eps));
  }
  if (!(initializer_range > 0 && initializer_range < 10)) {
    return BadField("initializer_range", "a number in (0, 10)",
                    absl::StrCat(initializer_range));
  }
  RETURN_IF_ERROR(CheckRange("bos_token_id", bos_token_id, -1, kMaxVocab));
  return CheckRange("eos_token_id", eos_token_id, -1, kMaxVocab);
}

absl::StatusOr<GlaConfig> GlaConfig::FromJson(std::string_view text) {
  const Json json = Json::parse(text, /*cb=*/nullptr,
                                /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object()) {
    return absl::InvalidArgumentError("config.json is not a JSON object");
  }
  RETURN_IF_ERROR(RefuseUnsupported(json));
  GlaConfig c;
  RETURN_IF_ERROR(Read(json, "vocab_size", &c.vocab_size));
  RETURN_IF_ERROR(Read(json, "hidden_size", &c.hidden_size));
  RETURN_IF_ERROR(Read(json, "num_hidden_layers", &c.num_hidden_layers));
  RETURN_IF_ERROR(Read(json, "num_heads", &c.num_heads));
  RETURN_IF_ERROR(Read(json, "num_kv_heads", &c.num_kv_heads));
  RETURN_IF_ERROR(Read(json, "expand_k", &c.expand_k));
  RETURN_IF_ERROR(Read(json, "expand_v", &c.expand_v));
  RETURN_IF_ERROR(Read(json, "hidden_ratio", &c.hidden_ratio));
  RETURN_IF_ERROR(Read(json, "intermediate_size", &c.intermediate_size));
  RETURN_IF_ERROR(Read(json, "rms_norm_eps", &c.norm_eps));  // before 2024-04
  RETURN_IF_ERROR(Read(json, "norm_eps", &c.norm_eps));
  RETURN_IF_ERROR(Read(json, "tie_word_embeddings", &c.tie_word_embeddings));
  RETURN_IF_ERROR(Read(json, "use_output_gate", &c.use_output_gate));
  RETURN_IF_ERROR(Read(json, "fuse_norm", &c.fuse_norm));
  RETURN_IF_ERROR(Read(json, "initializer_range", &c.initializer_range));
  RETURN_IF_ERROR(Read(json, "bos_token_id", &c.bos_token_id));
  RETURN_IF_ERROR(Read(json, "eos_token_id", &c.eos_token_id));
  RETURN_IF_ERROR(Read(json, "use_forget_gate", &c.use_forget_gate));
  RETURN_IF_ERROR(c.Validate());
  return c;
}

absl::StatusOr<GlaConfig> GlaConfig::FromProto(
    const gla::v1::ModelConfig& proto) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string json;
  const auto status =
      google::protobuf::util::MessageToJsonString(proto, &json, options);
  if (!status.ok()) return absl::InternalError(std::string(status.message()));
  return FromJson(json);
}

std::string GlaConfig::ToJson() const {
  const auto or_null = [](const std::optional<int32_t>& value) {
    return value.has_value() ? Json(*value) : Json();
  };
  Json json = {
      {"architectures", {"GLAForCausalLM"}},
      {"model_type", "gla"},
      {"attn", nullptr},
      {"attn_mode", "chunk"},
      {"bos_token_id", bos_token_id},
      {"clamp_min", nullptr},
      {"conv_size", 4},
      {"elementwise_affine", true},
      {"eos_token_id", eos_token_id},
      {"expand_k", expand_k},
      {"expand_v", expand_v},
      {"feature_map", nullptr},
      {"fuse_cross_entropy", true},
      {"fuse_norm", fuse_norm},
      {"fuse_swiglu", true},
      {"hidden_act", "swish"},
      {"hidden_ratio", hidden_ratio},
      {"hidden_size", hidden_size},
      {"initializer_range", initializer_range},
      {"intermediate_size", or_null(intermediate_size)},
      {"max_position_embeddings", 2048},
      {"norm_eps", norm_eps},
      {"num_heads", num_heads},
      {"num_hidden_layers", num_hidden_layers},
      {"num_kv_heads", or_null(num_kv_heads)},
      {"tie_word_embeddings", tie_word_embeddings},
      {"torch_dtype", "float32"},
      {"use_cache", true},
      {"use_gk", true},
      {"use_gv", false},
      {"use_output_gate", use_output_gate},
      {"use_short_conv", false},
      {"vocab_size", vocab_size},
  };
  if (!use_forget_gate) json["use_forget_gate"] = false;
  return json.dump(2) + "\n";
}

gla::v1::ModelConfig GlaConfig::ToProto() const {
  gla::v1::ModelConfig proto;
  proto.set_vocab_size(vocab_size);
  proto.set_hidden_size(hidden_size);
  proto.set_num_hidden_layers(num_hidden_layers);
  proto.set_num_heads(num_heads);
  proto.set_num_kv_heads(static_cast<int32_t>(kv_heads()));
  proto.set_expand_k(expand_k);
  proto.set_expand_v(expand_v);
  proto.set_hidden_ratio(hidden_ratio);
  proto.set_intermediate_size(static_cast<int32_t>(mlp_dim()));
  proto.set_norm_eps(norm_eps);
  proto.set_tie_word_embeddings(tie_word_embeddings);
  proto.set_use_output_gate(use_output_gate);
  proto.set_initializer_range(initializer_range);
  proto.set_bos_token_id(bos_token_id);
  proto.set_eos_token_id(eos_token_id);
  proto.set_use_forget_gate(use_forget_gate);
  return proto;
}

}  // namespace gla
