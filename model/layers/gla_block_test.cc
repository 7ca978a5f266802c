#include "model/layers/gla_block.h"

#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/relative_rms.h"
#include "kernels/testing/test_context.h"
#include "model/testing/tiny_model.h"

namespace gla {
namespace {

constexpr int64_t kT = 7;

class GlaBlockTest : public testing::Test {
 protected:
  static Pass MakePass(bool keep) {
    Pass pass;
    pass.B = 1;
    pass.T = kT;
    pass.keep = keep;
    return pass;
  }

  // h + delta of the stream after the block.
  std::vector<double> Run(bool keep, ResidualStream x) {
    GlaBlock::Saved saved;
    const ResidualStream y =
        block_.Forward(test_.ctx(), MakePass(keep), x, &saved);
    std::vector<double> sum(y.h.size());
    for (size_t i = 0; i < sum.size(); ++i) {
      sum[i] = double{y.h.data()[i]} + y.delta.data()[i];
    }
    return sum;
  }

  TestContext test_;
  LoadedModel model_ = MakeTinyModel();
  const GlaBlock block_{model_.config, *model_.parameters, /*layer=*/0};
  const int64_t D_ = model_.config.hidden_size;
};

TEST_F(GlaBlockTest, KeepingActivationsDoesNotChangeTheResult) {
  auto h = RandomNormal<2>({kT, D_}, /*seed=*/1);
  auto delta = RandomNormal<2>({kT, D_}, /*seed=*/2);
  auto h2 = h, delta2 = delta;
  EXPECT_EQ(Run(/*keep=*/true, {h, delta}), Run(/*keep=*/false, {h2, delta2}));
}

TEST_F(GlaBlockTest, OnlyTheSumOfTheStreamMatters) {
  auto h = RandomNormal<2>({kT, D_}, /*seed=*/1);
  auto delta = RandomNormal<2>({kT, D_}, /*seed=*/2);
  auto sum = h;
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += delta[i];
  const std::vector<double> parts = Run(/*keep=*/false, {h, delta});
  const std::vector<double> whole = Run(/*keep=*/false, {{}, sum});
  EXPECT_EQ(parts, whole);
}

TEST_F(GlaBlockTest, APassThatKeepsNothingGivesItsMemoryBack) {
  auto h = RandomNormal<2>({kT, D_}, /*seed=*/1);
  auto delta = RandomNormal<2>({kT, D_}, /*seed=*/2);
  const Arena::Mark before = test_.scratch().mark();
  Run(/*keep=*/false, {h, delta});
  EXPECT_EQ(test_.scratch().mark().block, before.block);
  EXPECT_EQ(test_.scratch().mark().offset, before.offset);
}

// With the sublayers' output matrices at zero, the block is the identity.
TEST_F(GlaBlockTest, ZeroSublayersLeaveStreamAndGradientAlone) {
  for (const char* name : {"model.layers.0.attn.o_proj.weight",
                           "model.layers.0.mlp.down_proj.weight"}) {
    const auto w = model_.parameters->matrix(name);
    std::fill_n(w.data(), w.size(), 0.0f);
  }
  auto x = RandomNormal<2>({kT, D_}, /*seed=*/1);
  const std::vector<double> want = x.AsDouble();
  GlaBlock::Saved saved;
  const Pass pass = MakePass(/*keep=*/true);
  const ResidualStream y = block_.Forward(test_.ctx(), pass, {{}, x}, &saved);
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_EQ(y.h.data()[i] + y.delta.data()[i], want[i]);
  }
  auto dx = RandomNormal<2>({kT, D_}, /*seed=*/2);
  const auto dy = dx;
  Parameters gradients(model_.table.get());
  block_.Backward(test_.ctx(), pass, saved, &gradients, dx);
  EXPECT_EQ(dx, dy);
}

}  // namespace
}  // namespace gla
