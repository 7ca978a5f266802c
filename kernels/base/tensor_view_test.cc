#include "kernels/base/tensor_view.h"

#include <array>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"

namespace gla {
namespace {

TEST(TensorView, IndexesRowMajor) {
  std::vector<float> data(24);
  std::iota(data.begin(), data.end(), 0.0f);
  const TensorView<float, 3> x(data.data(), {2, 3, 4});
  EXPECT_EQ(x[1][2][3], 23);
  EXPECT_EQ(x[1].data(), data.data() + 12);
  EXPECT_EQ(x[1].shape(), (std::array<int64_t, 2>{3, 4}));
  EXPECT_EQ(x.size(), 24);
}

TEST(TensorView, DefaultIsEmptyWithNoElements) {
  const TensorView<float, 2> x;
  EXPECT_TRUE(x.empty());
  EXPECT_EQ(x.size(), 0);
}

TEST(TensorView, ConvertsToReadOnly) {
  float data[2] = {1, 2};
  const TensorView<float, 1> x(data, {2});
  const TensorView<const float, 1> y = x;
  EXPECT_EQ(y[1], 2);
  static_assert(
      !std::is_convertible_v<TensorView<const float, 1>, TensorView<float, 1>>);
}

TEST(TensorView, ReshapesToTheSameSizeOnly) {
  float data[6] = {0, 1, 2, 3, 4, 5};
  const TensorView<float, 1> x(data, {6});
  EXPECT_EQ(x.Reshape(std::array<int64_t, 2>{2, 3})[1][0], 3);
  EXPECT_DEATH(x.Reshape(std::array<int64_t, 2>{2, 2}), "reshape of \\[6\\]");
}

TEST(CheckShape, DiesWithNameAndBothShapes) {
  float data[6];
  const TensorView<float, 2> x(data, {2, 3});
  CheckShape("x", x, {2, 3});
  EXPECT_DEATH(CheckShape("x", x, {3, 2}),
               "x: want \\[3, 2\\], got \\[2, 3\\]");
}

}  // namespace
}  // namespace gla
