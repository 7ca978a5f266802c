#include "model/layers/make_token_mixer.h"

#include <array>
#include <cstdint>

#include "gtest/gtest.h"
#include "model/testing/tiny_model.h"

namespace gla {
namespace {

TEST(MakeTokenMixer, StateShapeIsThatOfTheConfig) {
  GlaConfig config = TinyConfig();
  config.num_heads = 4;
  config.num_kv_heads = 2;
  const LoadedModel model = MakeTinyModel(/*seed=*/1, config);
  const auto mixer = MakeTokenMixer(config, *model.parameters, /*layer=*/0);
  // One state for each query head, also where heads share keys and values.
  EXPECT_EQ(
      mixer->state_shape(),
      (std::array<int64_t, 3>{4, config.head_k_dim(), config.head_v_dim()}));
}

}  // namespace
}  // namespace gla
