#include "model/parameters.h"

#include <cmath>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace gla {
namespace {

GlaConfig SmallConfig() {
  GlaConfig config;
  config.vocab_size = 50;
  config.hidden_size = 24;
  config.num_hidden_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.intermediate_size = 33;
  return config;
}

std::vector<std::string> Names(const GlaConfig& config) {
  std::vector<std::string> names;
  const ParameterTable table(config);
  for (const ParameterSpec& spec : table.specs()) {
    names.push_back(spec.name);
  }
  return names;
}

TEST(ParameterTable, ListsTensorsInTheOrderOfFla) {
  GlaConfig config = SmallConfig();
  config.num_hidden_layers = 1;
  EXPECT_EQ(Names(config), (std::vector<std::string>{
                               "model.embeddings.weight",
                               "model.layers.0.attn_norm.weight",
                               "model.layers.0.attn.q_proj.weight",
                               "model.layers.0.attn.k_proj.weight",
                               "model.layers.0.attn.v_proj.weight",
                               "model.layers.0.attn.g_proj.weight",
                               "model.layers.0.attn.gk_proj.0.weight",
                               "model.layers.0.attn.gk_proj.1.weight",
                               "model.layers.0.attn.gk_proj.1.bias",
                               "model.layers.0.attn.o_proj.weight",
                               "model.layers.0.attn.g_norm_swish_gate.weight",
                               "model.layers.0.mlp_norm.weight",
                               "model.layers.0.mlp.gate_proj.weight",
                               "model.layers.0.mlp.up_proj.weight",
                               "model.layers.0.mlp.down_proj.weight",
                               "model.norm.weight",
                               "lm_head.weight",
                           }));
}

TEST(ParameterTable, HasTheShapesOfGroupedHeads) {
  const ParameterTable table(SmallConfig());
  const auto shape = [&](const char* name) {
    return table.Find(std::string("model.layers.1.attn.") + name)->shape;
  };
  using Shape = std::vector<int64_t>;
  EXPECT_EQ(shape("q_proj.weight"), (Shape{12, 24}));
  EXPECT_EQ(shape("k_proj.weight"), (Shape{6, 24}));
  EXPECT_EQ(shape("v_proj.weight"), (Shape{12, 24}));
  EXPECT_EQ(shape("g_proj.weight"), (Shape{24, 24}));
  EXPECT_EQ(shape("gk_proj.0.weight"), (Shape{16, 24}));
  EXPECT_EQ(shape("gk_proj.1.weight"), (Shape{6, 16}));
  EXPECT_EQ(shape("gk_proj.1.bias"), (Shape{6}));
  EXPECT_EQ(shape("o_proj.weight"), (Shape{24, 24}));
  EXPECT_EQ(shape("g_norm_swish_gate.weight"), (Shape{6}));
}

TEST(ParameterTable, LeavesOutWhatTheConfigSwitchesOff) {
  GlaConfig config = SmallConfig();
  config.tie_word_embeddings = true;
  config.use_forget_gate = false;
  config.use_output_gate = false;
  bool has_norm = false;
  for (const std::string& name : Names(config)) {
    EXPECT_NE(name, "lm_head.weight");
    EXPECT_FALSE(absl::StrContains(name, "gk_proj")) << name;
    EXPECT_FALSE(absl::StrContains(name, "g_proj.weight")) << name;
    EXPECT_FALSE(absl::StrContains(name, "g_norm_swish_gate")) << name;
    has_norm |= name == "model.layers.0.attn.g_norm.weight";
  }
  EXPECT_TRUE(has_norm);
  config = SmallConfig();
  config.fuse_norm = false;
  EXPECT_NE(ParameterTable(config).Find("model.layers.0.attn.g_norm.weight"),
            nullptr);
}

// fla-hub's 1.3B, 340M (untied, tied) and 2.7B, whose index file says
// 5,407,167,488 bytes in bfloat16.
TEST(ParameterTable, CountsThePublishedModels) {
  GlaConfig config;
  EXPECT_EQ(ParameterTable(config).num_parameters(), 1365514240);
  config.hidden_size = 1024;
  EXPECT_EQ(ParameterTable(config).num_parameters(), 374475776);
  config.tie_word_embeddings = true;
  EXPECT_EQ(ParameterTable(config).num_parameters(), 341707776);
  config = GlaConfig();
  config.hidden_size = 2560;
  config.num_hidden_layers = 32;
  config.num_heads = 5;
  EXPECT_EQ(ParameterTable(config).num_parameters(), 2703583744);
}

TEST(ParameterTable, PlacesTensorsApartAndAligned) {
  const ParameterTable table(SmallConfig());
  int64_t end = 0, sum = 0;
  for (const ParameterSpec& spec : table.specs()) {
    EXPECT_EQ(spec.offset % 16, 0) << spec.name;
    EXPECT_GE(spec.offset, end) << spec.name;
    EXPECT_LT(spec.offset, end + 16) << spec.name;
    end = spec.offset + spec.size;
    sum += spec.size;
    EXPECT_EQ(table.Find(spec.name), &spec);
  }
  EXPECT_EQ(table.num_parameters(), sum);
  EXPECT_GE(table.flat_size(), end);
  EXPECT_EQ(table.Find("model.layers.9.attn_norm.weight"), nullptr);
}

TEST(ParameterTable, DecaysMatricesAlone) {
  const ParameterTable table(SmallConfig());
  for (const ParameterSpec& spec : table.specs()) {
    EXPECT_EQ(spec.decays, spec.shape.size() == 2) << spec.name;
  }
}

TEST(Parameters, AreZeroAtFirst) {
  const ParameterTable table(SmallConfig());
  Parameters parameters(&table);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(parameters.flat().data()) % 64, 0u);
  for (int64_t i = 0; i < table.flat_size(); ++i) {
    ASSERT_EQ(parameters.flat()[i], 0);
  }
}

TEST(Parameters, ViewsAreTheFlatBuffer) {
  const ParameterTable table(SmallConfig());
  Parameters parameters(&table);
  const ParameterSpec& spec = *table.Find("model.layers.1.mlp.up_proj.weight");
  const auto view = parameters.matrix(spec.name);
  view[32][23] = 5;
  EXPECT_EQ(parameters.flat()[spec.offset + spec.size - 1], 5);
  EXPECT_EQ(std::as_const(parameters).matrix(spec.name)[32][23], 5);
  parameters.vector("model.norm.weight")[3] = 7;
  EXPECT_EQ(parameters.data(*table.Find("model.norm.weight"))[3], 7);
  parameters.SetZero();
  EXPECT_EQ(view[32][23], 0);
}

TEST(ParametersDeathTest, ChecksNameAndRank) {
  const ParameterTable table(SmallConfig());
  Parameters parameters(&table);
  EXPECT_DEATH(parameters.matrix("nothing.weight"), "nothing.weight");
  EXPECT_DEATH(parameters.matrix("model.norm.weight"), "model.norm.weight");
  EXPECT_DEATH(parameters.vector("lm_head.weight"), "lm_head.weight");
}

TEST(InitializeParameters, FollowsEachTensorsRule) {
  GlaConfig config = SmallConfig();
  config.vocab_size = 2000;
  config.initializer_range = 0.05;
  const ParameterTable table(config);
  Parameters parameters(&table);
  InitializeParameters(/*seed=*/3, config, &parameters);
  const auto embedding = parameters.matrix("model.embeddings.weight");
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < embedding.size(); ++i) {
    sum += embedding.data()[i];
    squares += embedding.data()[i] * embedding.data()[i];
  }
  const double n = static_cast<double>(embedding.size());  // 48000
  EXPECT_NEAR(sum / n, 0, 4 * 0.05 / std::sqrt(n));
  EXPECT_NEAR(std::sqrt(squares / n), 0.05, 4 * 0.05 / std::sqrt(2 * n));
  EXPECT_EQ(parameters.vector("model.norm.weight")[7], 1);
  EXPECT_EQ(parameters.vector("model.layers.0.attn.gk_proj.1.bias")[5], 0);
}

TEST(InitializeParameters, DependsOnTheSeedAndThePlaceAlone) {
  const GlaConfig config = SmallConfig();
  const ParameterTable table(config);
  Parameters a(&table), b(&table), other(&table);
  InitializeParameters(/*seed=*/3, config, &a);
  InitializeParameters(/*seed=*/3, config, &b);
  InitializeParameters(/*seed=*/4, config, &other);
  for (int64_t i = 0; i < table.flat_size(); ++i) {
    ASSERT_EQ(a.flat()[i], b.flat()[i]);
  }
  std::set<float> first;
  for (const ParameterSpec& spec : table.specs()) {
    if (spec.shape.size() != 2) continue;
    EXPECT_NE(a.data(spec)[0], other.data(spec)[0]) << spec.name;
    EXPECT_TRUE(first.insert(a.data(spec)[0]).second) << spec.name;
  }
}

}  // namespace
}  // namespace gla
