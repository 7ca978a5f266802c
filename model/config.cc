#include "model/config.h"

#include <cmath>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "google/protobuf/util/json_util.h"
#include "kernels/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace gla {
namespace {

using Json = nlohmann::json;

// Upper bounds that no real model comes near; a typo stays a clear error
// instead of an allocation of petabytes.
constexpr int64_t kMaxVocab = 1 << 24;
constexpr int64_t kMaxDim = 1 << 20;
constexpr int64_t kMaxLayers = 1 << 12;
constexpr int64_t kMaxParameters = int64_t{1} << 37;

// The one list of keys whose values a config holds.
template <typename Config, typename Visitor>
void ForEachKey(Config& config, Visitor&& visit) {
  visit("vocab_size", config.vocab_size);
  visit("hidden_size", config.hidden_size);
  visit("num_hidden_layers", config.num_hidden_layers);
  visit("num_heads", config.num_heads);
  visit("num_kv_heads", config.num_kv_heads);
  visit("expand_k", config.expand_k);
  visit("expand_v", config.expand_v);
  visit("hidden_ratio", config.hidden_ratio);
  visit("intermediate_size", config.intermediate_size);
  visit("norm_eps", config.norm_eps);
  visit("tie_word_embeddings", config.tie_word_embeddings);
  visit("use_output_gate", config.use_output_gate);
  visit("fuse_norm", config.fuse_norm);
  visit("initializer_range", config.initializer_range);
  visit("bos_token_id", config.bos_token_id);
  visit("eos_token_id", config.eos_token_id);
  visit("use_forget_gate", config.use_forget_gate);
}

// Names of before May 2024, and what they are called now. The new name wins.
struct OldKey {
  const char* old_name;
  const char* name;
};
constexpr OldKey kOldKeys[] = {
    {"rms_norm_eps", "norm_eps"},
    {"d_model", "hidden_size"},
    {"num_attention_heads", "num_heads"},
};

// Keys that would change the maths, with a JSON array of the values that leave
// it as it is. ToJson writes the first one, unless `written` is false. (fla
// ignores use_gk, use_gv and the keys that are not written, but nobody who sets
// them otherwise expects that.)
struct NeutralKey {
  const char* key;
  const char* values;
  bool written = true;
};
constexpr NeutralKey kNeutralKeys[] = {
    {"model_type", R"(["gla"])"},
    {"attn", "[null]"},
    {"attn_mode", R"(["chunk", "fused_chunk", "fused_recurrent"])"},
    {"attnres_block_size", "[null]"},
    {"clamp_min", "[null]"},
    {"elementwise_affine", "[true]"},
    {"feature_map", "[null]"},
    {"hidden_act", R"(["swish", "silu"])"},
    {"use_gk", "[true]"},
    {"use_gv", "[false]"},
    {"use_l2warp", "[false]"},
    {"use_short_conv", "[false]"},
    {"conv_bias", "[false, null]", /*written=*/false},
    {"gate_fn", R"(["swish", "silu"])", /*written=*/false},
    {"gate_logit_normalizer", "[16]", /*written=*/false},
    {"gate_low_rank_dim", "[16]", /*written=*/false},
    {"quantization_config", "[null]", /*written=*/false},
};

absl::Status BadValue(const std::string& key, const std::string& want,
                      const std::string& got) {
  return absl::InvalidArgumentError(
      absl::StrCat(key, ": want ", want, ", got ", got));
}

// `value` in an error message: its JSON, cut short.
std::string Printed(const Json& value) {
  const std::string text =
      value.dump(-1, ' ', false, Json::error_handler_t::replace);
  return text.size() <= 80 ? text : text.substr(0, 77) + "...";
}

absl::Status Read(const std::string& key, const Json& value, int32_t* field) {
  constexpr double kMax = std::numeric_limits<int32_t>::max();
  const double number = value.is_number() ? value.get<double>() : NAN;
  if (!(std::abs(number) <= kMax) || number != std::floor(number)) {
    return BadValue(key, "a 32-bit integer", Printed(value));
  }
  *field = static_cast<int32_t>(number);
  return absl::OkStatus();
}

absl::Status Read(const std::string& key, const Json& value,
                  std::optional<int32_t>* field) {
  return Read(key, value, &field->emplace());
}

absl::Status Read(const std::string& key, const Json& value, double* field) {
  if (!value.is_number()) return BadValue(key, "a number", Printed(value));
  *field = value.get<double>();
  return absl::OkStatus();
}

absl::Status Read(const std::string& key, const Json& value, bool* field) {
  if (!value.is_boolean()) {
    return BadValue(key, "true or false", Printed(value));
  }
  *field = value.get<bool>();
  return absl::OkStatus();
}

// Null leaves the default, except that a null token id says that there is no
// such token.
template <typename T>
absl::Status ReadOrNull(const std::string& key, const Json& value, T* field) {
  if (!value.is_null()) return Read(key, value, field);
  if constexpr (std::is_same_v<T, int32_t>) {
    if (key == "bos_token_id" || key == "eos_token_id") *field = -1;
  }
  return absl::OkStatus();
}

absl::Status RefuseUnsupported(const Json& keys) {
  for (const NeutralKey& neutral : kNeutralKeys) {
    const auto found = keys.find(neutral.key);
    if (found == keys.end()) continue;
    bool supported = false;
    for (const Json& value : Json::parse(neutral.values)) {
      supported |= *found == value;
    }
    if (!supported) {
      return absl::InvalidArgumentError(absl::StrCat(
          neutral.key, " = ", Printed(*found), " is not supported"));
    }
  }
  return absl::OkStatus();
}

void RenameOldKeys(Json* keys) {
  for (const OldKey& old : kOldKeys) {
    if (!keys->contains(old.old_name) || keys->contains(old.name)) continue;
    Json value = (*keys)[old.old_name];
    (*keys)[old.name] = std::move(value);
  }
}

absl::Status CheckRange(const char* key, int64_t value, int64_t low,
                        int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return BadValue(key, absl::StrCat(low, " to ", high), absl::StrCat(value));
}

absl::Status CheckBetween(const char* key, double value, double low,
                          double high) {
  if (value > low && value < high) return absl::OkStatus();  // NaN: false
  return BadValue(key, absl::StrCat("a number between ", low, " and ", high),
                  absl::StrCat(value));
}

absl::Status CheckDivides(const char* what, int64_t total, int64_t parts) {
  if (total > 0 && total % parts == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      what, ": ", total, " does not divide into ", parts, " heads"));
}

// Elements of all matrices; in double, which cannot overflow.
double CountWeights(const GlaConfig& c) {
  const double groups = static_cast<double>(c.kv_groups());
  const double keys = static_cast<double>(c.key_dim()) * (1 + 1 / groups);
  const double values = static_cast<double>(c.value_dim()) * (2 + 1 / groups);
  const double mlp = 3.0 * static_cast<double>(c.mlp_dim());
  return c.hidden_size *
         (2.0 * c.vocab_size + c.num_hidden_layers * (keys + values + mlp));
}

absl::Status CheckSize(const GlaConfig& c) {
  const double weights = CountWeights(c);
  if (weights <= kMaxParameters) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("hidden_size ", c.hidden_size, " and num_hidden_layers ",
                   c.num_hidden_layers, ": about ", weights,
                   " parameters, want at most ", kMaxParameters));
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
  const int64_t exact = int64_t{hidden_size} * hidden_ratio * 2 / 3;
  return (exact + 255) / 256 * 256;
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
    return BadValue("num_kv_heads",
                    absl::StrCat("a divisor of num_heads ", num_heads),
                    absl::StrCat(kv_heads()));
  }
  RETURN_IF_ERROR(CheckBetween("expand_k", expand_k, 0, 64));
  RETURN_IF_ERROR(CheckBetween("expand_v", expand_v, 0, 64));
  RETURN_IF_ERROR(CheckDivides("hidden_size * expand_k", key_dim(), num_heads));
  RETURN_IF_ERROR(
      CheckDivides("hidden_size * expand_v", value_dim(), num_heads));
  RETURN_IF_ERROR(CheckRange("hidden_ratio", hidden_ratio, 1, 1024));
  RETURN_IF_ERROR(CheckRange("intermediate_size", mlp_dim(), 1, kMaxDim));
  RETURN_IF_ERROR(CheckBetween("norm_eps", norm_eps, 0, 1));
  RETURN_IF_ERROR(CheckBetween("initializer_range", initializer_range, 0, 10));
  RETURN_IF_ERROR(CheckRange("bos_token_id", bos_token_id, -1, vocab_size - 1));
  RETURN_IF_ERROR(CheckRange("eos_token_id", eos_token_id, -1, vocab_size - 1));
  return CheckSize(*this);
}

absl::StatusOr<GlaConfig> GlaConfig::FromJson(std::string_view text) {
  Json keys = Json::parse(text, /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (!keys.is_object()) {
    return absl::InvalidArgumentError("config: not a JSON object");
  }
  RETURN_IF_ERROR(RefuseUnsupported(keys));
  RenameOldKeys(&keys);
  GlaConfig config;
  absl::Status status;
  ForEachKey(config, [&](const char* key, auto& field) {
    const auto found = keys.find(key);
    if (found != keys.end()) status.Update(ReadOrNull(key, *found, &field));
  });
  RETURN_IF_ERROR(status);
  RETURN_IF_ERROR(config.Validate());
  return config;
}

absl::StatusOr<GlaConfig> GlaConfig::FromProto(
    const gla::v1::ModelConfig& proto) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string text;
  const auto status =
      google::protobuf::util::MessageToJsonString(proto, &text, options);
  if (!status.ok()) return absl::InternalError(std::string(status.message()));
  return FromJson(text);
}

std::string GlaConfig::ToJson() const {
  Json keys = {
      {"architectures", {"GLAForCausalLM"}},
      {"conv_size", 4},
      {"fuse_cross_entropy", true},
      {"fuse_linear_cross_entropy", false},
      {"fuse_swiglu", true},
      {"max_position_embeddings", 2048},
      {"pad_token_id", nullptr},
      {"torch_dtype", "float32"},
      {"use_cache", true},
  };
  for (const NeutralKey& neutral : kNeutralKeys) {
    if (neutral.written) keys[neutral.key] = Json::parse(neutral.values)[0];
  }
  ForEachKey(*this, [&](const char* key, const auto& field) {
    using Field = std::remove_cvref_t<decltype(field)>;
    if constexpr (std::is_same_v<Field, std::optional<int32_t>>) {
      keys[key] = field.has_value() ? Json(*field) : Json(nullptr);
    } else {
      keys[key] = field;
    }
  });
  if (bos_token_id == -1) keys["bos_token_id"] = nullptr;
  if (eos_token_id == -1) keys["eos_token_id"] = nullptr;
  if (use_forget_gate) keys.erase("use_forget_gate");
  return keys.dump(2) + "\n";
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
