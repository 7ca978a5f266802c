#include "model/flops.h"

#include "gtest/gtest.h"
#include "model/config.h"
#include "model/parameters.h"

namespace gla {
namespace {

GlaConfig SmallConfig(bool tied) {
  GlaConfig config;
  config.vocab_size = 256;
  config.hidden_size = 64;
  config.num_hidden_layers = 2;
  config.num_heads = 2;
  config.tie_word_embeddings = tied;
  return config;
}

TEST(TrainingFlopsPerToken, CountsATiedEmbeddingOnce) {
  const ParameterTable table(SmallConfig(/*tied=*/true));
  EXPECT_EQ(TrainingFlopsPerToken(table), 6.0 * table.num_parameters());
}

TEST(TrainingFlopsPerToken, LeavesOutTheLookupOfAnUntiedModel) {
  const ParameterTable tied(SmallConfig(/*tied=*/true));
  const ParameterTable untied(SmallConfig(/*tied=*/false));
  EXPECT_GT(untied.num_parameters(), tied.num_parameters());
  EXPECT_EQ(TrainingFlopsPerToken(untied), TrainingFlopsPerToken(tied));
}

// The paper's 1.3B model: 1,365,514,240 parameters, 32000 x 2048 of them in the
// input embedding.
TEST(TrainingFlopsPerToken, MatchesThePublishedModel) {
  EXPECT_EQ(TrainingFlopsPerToken(ParameterTable(GlaConfig{})),
            6.0 * (1'365'514'240 - 32'000 * 2'048));
}

}  // namespace
}  // namespace gla
