#include "model/config.h"

#include <fstream>
#include <functional>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace gla {
namespace {

using nlohmann::json;

std::string ReadText(const std::string& path) {
  std::ifstream file(path);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// A config.json with `value` at `key`.
std::string With(const std::string& key, const json& value) {
  return json{{key, value}}.dump();
}

void ExpectRefused(const absl::Status& status, const std::string& name,
                   const std::string& value) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
  const std::string message(status.message());
  EXPECT_NE(message.find(name), std::string::npos) << message;
  EXPECT_NE(message.find(value), std::string::npos) << message;
}

TEST(GlaConfig, TakesTheDefaultsOfFla) {
  const auto config = GlaConfig::FromJson("{}");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(*config, GlaConfig());
  EXPECT_EQ(config->head_k_dim(), 256);
  EXPECT_EQ(config->head_v_dim(), 512);
  EXPECT_EQ(config->mlp_dim(), 5632);
  EXPECT_FLOAT_EQ(config->attention_scale(), 1.0f / 16);
}

TEST(GlaConfig, DerivesTheSizesOfPublishedModels) {
  GlaConfig config;
  config.hidden_size = 1024;
  EXPECT_EQ(config.mlp_dim(), 2816);
  config.hidden_size = 2560;
  config.num_heads = 5;
  EXPECT_EQ(config.mlp_dim(), 6912);
  EXPECT_EQ(config.head_k_dim(), 256);
  config.intermediate_size = 7000;
  EXPECT_EQ(config.mlp_dim(), 7000);
}

TEST(GlaConfig, GroupsQueryHeads) {
  GlaConfig config;
  config.num_heads = 8;
  EXPECT_EQ(config.kv_groups(), 1);
  config.num_kv_heads = 2;
  EXPECT_EQ(config.kv_heads(), 2);
  EXPECT_EQ(config.kv_groups(), 4);
  EXPECT_TRUE(config.Validate().ok());
}

TEST(GlaConfig, ReadsGoldenConfigs) {
  const auto tiny =
      GlaConfig::FromJson(ReadText("tests/goldens/tiny/config.json"));
  ASSERT_TRUE(tiny.ok()) << tiny.status();
  EXPECT_EQ(tiny->hidden_size, 128);
  EXPECT_EQ(tiny->vocab_size, 512);
  EXPECT_FALSE(tiny->tie_word_embeddings);

  const auto old = GlaConfig::FromJson(
      ReadText("tests/goldens/tied_old_layout/config.json"));
  ASSERT_TRUE(old.ok()) << old.status();
  EXPECT_EQ(old->head_k_dim(), 16);
  EXPECT_EQ(old->head_v_dim(), 32);
  EXPECT_TRUE(old->tie_word_embeddings);
}

TEST(GlaConfig, TakesOldKeysUnlessTheNewOneIsThere) {
  EXPECT_EQ(GlaConfig::FromJson(With("rms_norm_eps", 1e-5))->norm_eps, 1e-5);
  EXPECT_EQ(GlaConfig::FromJson(With("d_model", 512))->hidden_size, 512);
  EXPECT_EQ(GlaConfig::FromJson(With("num_attention_heads", 8))->num_heads, 8);
  EXPECT_EQ(GlaConfig::FromJson(R"({"rms_norm_eps": 1e-5, "norm_eps": 1e-6})")
                ->norm_eps,
            1e-6);
}

TEST(GlaConfig, IgnoresWhatDoesNotChangeTheMaths) {
  const auto config = GlaConfig::FromJson(R"({
      "share_conv_kernel": true, "conv_size": 7, "use_cache": false,
      "max_position_embeddings": 9, "transformers_version": "4.1",
      "fuse_cross_entropy": false, "made_up": {"a": [1]}})");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(*config, GlaConfig());
}

TEST(GlaConfig, RefusesWhatItCannotCompute) {
  const std::pair<const char*, json> unsupported[] = {
      {"model_type", "llama"},
      {"model_type", nullptr},
      {"attn", {{"layers", {1}}, {"num_heads", 4}}},
      {"attn_mode", "parallel"},
      {"attnres_block_size", 4},
      {"clamp_min", -3.5},
      {"elementwise_affine", false},
      {"elementwise_affine", nullptr},
      {"feature_map", "relu"},
      {"hidden_act", "gelu"},
      {"use_gk", false},
      {"use_gv", true},
      {"use_l2warp", true},
      {"use_short_conv", true},
      {"conv_bias", true},
      {"gate_fn", "sigmoid"},
      {"gate_logit_normalizer", 8},
      {"gate_low_rank_dim", 32},
      {"quantization_config", {{"bits", 4}}},
  };
  for (const auto& [key, value] : unsupported) {
    ExpectRefused(GlaConfig::FromJson(With(key, value)).status(), key,
                  value.dump());
  }
}

TEST(GlaConfig, RefusesValuesOfAnotherType) {
  const std::pair<const char*, json> wrong[] = {
      {"hidden_size", "128"},      {"hidden_size", 128.5},
      {"hidden_size", 3000000000}, {"vocab_size", 1e300},
      {"num_heads", true},         {"num_kv_heads", "none"},
      {"expand_k", "half"},        {"tie_word_embeddings", 1},
      {"eos_token_id", {2, 3}},    {"norm_eps", "1e-6"},
  };
  for (const auto& [key, value] : wrong) {
    ExpectRefused(GlaConfig::FromJson(With(key, value)).status(), key,
                  value.dump());
  }
}

TEST(GlaConfig, RefusesWhatIsNotAnObject) {
  for (const char* text : {"", "{", "[]", "null", "{\"a\":1}x", "\xff"}) {
    EXPECT_EQ(GlaConfig::FromJson(text).status().code(),
              absl::StatusCode::kInvalidArgument)
        << text;
  }
  EXPECT_FALSE(GlaConfig::FromJson(std::string(1 << 20, '[')).ok());
}

TEST(GlaConfig, RefusesImpossibleSizes) {
  const auto refused = [](const std::string& name, const std::string& value,
                          const std::function<void(GlaConfig&)>& change) {
    GlaConfig config;
    change(config);
    ExpectRefused(config.Validate(), name, value);
  };
  refused("vocab_size", "0", [](auto& c) { c.vocab_size = 0; });
  refused("vocab_size", "-5", [](auto& c) { c.vocab_size = -5; });
  refused("hidden_size", "0", [](auto& c) { c.hidden_size = 0; });
  refused("num_hidden_layers", "0", [](auto& c) { c.num_hidden_layers = 0; });
  refused("num_heads", "0", [](auto& c) { c.num_heads = 0; });
  refused("num_kv_heads", "0", [](auto& c) { c.num_kv_heads = 0; });
  refused("num_kv_heads", "3", [](auto& c) { c.num_kv_heads = 3; });
  refused("num_kv_heads", "8", [](auto& c) { c.num_kv_heads = 8; });
  refused("expand_k", "-1", [](auto& c) { c.expand_k = -1; });
  refused("expand_k", "nan", [](auto& c) { c.expand_k = NAN; });
  refused("expand_v", "inf", [](auto& c) { c.expand_v = INFINITY; });
  refused("hidden_size * expand_k", "1023",
          [](auto& c) { c.hidden_size = 2046; });
  refused("hidden_size * expand_v", "2050",
          [](auto& c) { c.expand_v = 2050.0 / 2048; });
  refused("hidden_ratio", "0", [](auto& c) { c.hidden_ratio = 0; });
  refused("intermediate_size", "0", [](auto& c) { c.intermediate_size = 0; });
  refused("norm_eps", "0", [](auto& c) { c.norm_eps = 0; });
  refused("initializer_range", "-1", [](auto& c) { c.initializer_range = -1; });
  refused("bos_token_id", "32000", [](auto& c) { c.bos_token_id = 32000; });
  refused("eos_token_id", "-2", [](auto& c) { c.eos_token_id = -2; });
  refused("num_hidden_layers", "4096", [](auto& c) {
    c.hidden_size = 1 << 18;
    c.num_hidden_layers = 4096;
  });
}

TEST(GlaConfig, SurvivesExtremeValues) {
  constexpr int32_t kMax = std::numeric_limits<int32_t>::max();
  for (const int32_t extreme : {kMax, -kMax}) {
    GlaConfig config;
    config.vocab_size = config.hidden_size = config.num_hidden_layers =
        config.num_heads = config.hidden_ratio = extreme;
    config.num_kv_heads = config.intermediate_size = extreme;
    EXPECT_FALSE(config.Validate().ok());
  }
}

TEST(GlaConfig, ComesBackFromItsJson) {
  GlaConfig config;
  config.vocab_size = 300;
  config.hidden_size = 96;
  config.num_heads = 6;
  config.num_kv_heads = 3;
  config.expand_k = 0.375;
  config.expand_v = 1.25;
  config.intermediate_size = 111;
  config.norm_eps = 1.1e-5;
  config.tie_word_embeddings = true;
  config.use_output_gate = false;
  config.fuse_norm = false;
  config.use_forget_gate = false;
  config.bos_token_id = -1;
  config.eos_token_id = 7;
  const auto back = GlaConfig::FromJson(config.ToJson());
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(*back, config);
}

// Every key of fla's own config.json, so that nothing takes another default.
TEST(GlaConfig, WritesAllKeysOfFla) {
  const json written = json::parse(GlaConfig().ToJson());
  const json fla = json::parse(ReadText("tests/goldens/tiny/config.json"));
  for (const auto& [key, value] : fla.items()) {
    if (key == "transformers_version") continue;
    EXPECT_TRUE(written.contains(key)) << key;
  }
  EXPECT_EQ(written["architectures"], json({"GLAForCausalLM"}));
  EXPECT_EQ(written["model_type"], "gla");
  EXPECT_FALSE(written.contains("use_forget_gate"));
}

TEST(GlaConfig, ChecksAProtoLikeJson) {
  gla::v1::ModelConfig proto;
  EXPECT_EQ(*GlaConfig::FromProto(proto), GlaConfig());
  proto.set_hidden_size(0);
  ExpectRefused(GlaConfig::FromProto(proto).status(), "hidden_size", "0");
  proto.set_hidden_size(512);
  proto.set_expand_k(NAN);
  ExpectRefused(GlaConfig::FromProto(proto).status(), "expand_k", "NaN");
}

TEST(GlaConfig, WritesEveryFieldOfTheProto) {
  GlaConfig config;
  config.norm_eps = 1.23456789012345e-6;
  config.use_forget_gate = false;
  const gla::v1::ModelConfig proto = config.ToProto();
  const auto* descriptor = proto.GetDescriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    EXPECT_TRUE(proto.GetReflection()->HasField(proto, descriptor->field(i)))
        << descriptor->field(i)->name();
  }
  config.num_kv_heads = 4;  // what the rules gave
  config.intermediate_size = 5632;
  EXPECT_EQ(*GlaConfig::FromProto(proto), config);
}

}  // namespace
}  // namespace gla
