#include "model/decode_states.h"

#include <algorithm>

#include "gtest/gtest.h"

namespace gla {
namespace {

// H 4, K 3, V 6.
GlaConfig SmallConfig() {
  GlaConfig config;
  config.hidden_size = 24;
  config.num_hidden_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  return config;
}

TEST(DecodeStates, HoldsEveryHeadOfEveryLayer) {
  DecodeStates states(SmallConfig(), /*num_slots=*/5);
  EXPECT_EQ(states.num_slots(), 5);
  EXPECT_EQ(states.bytes_per_slot(), 2 * 4 * 3 * 6 * 4);
  EXPECT_EQ(states.layer(1).ShapeString(), "[5, 4, 3, 6]");
  EXPECT_EQ(states.slot(1, 4).ShapeString(), "[1, 4, 3, 6]");
}

TEST(DecodeStates, StartsAsZero) {
  DecodeStates states(SmallConfig(), 3);
  for (int layer = 0; layer < 2; ++layer) {
    const auto view = states.layer(layer);
    for (int64_t i = 0; i < view.size(); ++i) ASSERT_EQ(view.data()[i], 0);
  }
}

TEST(DecodeStates, ZeroesOneSlotAlone) {
  DecodeStates states(SmallConfig(), 3);
  for (int layer = 0; layer < 2; ++layer) {
    const auto view = states.layer(layer);
    std::fill_n(view.data(), view.size(), 1.0f);
  }
  states.SetZero(1);
  for (int layer = 0; layer < 2; ++layer) {
    for (int slot = 0; slot < 3; ++slot) {
      const auto view = states.slot(layer, slot);
      EXPECT_EQ(view.data(), states.layer(layer)[slot].data());
      for (int64_t i = 0; i < view.size(); ++i) {
        ASSERT_EQ(view.data()[i], slot == 1 ? 0 : 1) << layer << " " << slot;
      }
    }
  }
}

TEST(DecodeStatesDeathTest, ChecksPlaces) {
  DecodeStates states(SmallConfig(), 3);
  EXPECT_DEATH(states.slot(0, 3), "");
  EXPECT_DEATH(states.layer(2), "");
  EXPECT_DEATH(states.SetZero(-1), "");
}

}  // namespace
}  // namespace gla
