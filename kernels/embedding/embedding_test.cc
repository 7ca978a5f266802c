#include "kernels/embedding/embedding.h"

#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/relative_rms.h"
#include "kernels/testing/test_context.h"

namespace gla {
namespace {

// M token ids in [0, vocab_size), many of them repeated.
OwnedTensor<int32_t, 1> Tokens(int64_t M, int32_t vocab_size) {
  OwnedTensor<int32_t, 1> tokens({M});
  for (int64_t m = 0; m < M; ++m) tokens[m] = (m * m + 3) % vocab_size;
  return tokens;
}

TEST(EmbeddingFwd, CopiesTheRowOfEachToken) {
  for (int64_t M : {0, 1, 3, 100}) {
    for (int64_t D : {1, 7, 64, 130}) {
      const auto tokens = Tokens(M, 11);
      const auto table = RandomNormal<2>({11, D}, 1);
      auto y = PoisonedTensor<2>({M, D});
      TestContext test;
      EmbeddingFwd(test.ctx(), tokens, table, y);
      for (int64_t m = 0; m < M; ++m) {
        for (int64_t d = 0; d < D; ++d) {
          ASSERT_EQ(y[m * D + d], table[tokens[m] * D + d]);
        }
      }
    }
  }
}

TEST(EmbeddingBwd, AddsToTheRowOfEachTokenInFloat64Agreement) {
  for (int64_t M : {0, 1, 3, 100}) {
    for (int64_t D : {1, 7, 64, 130}) {
      const auto tokens = Tokens(M, 11);
      const auto dy = RandomNormal<2>({M, D}, 1);
      auto dtable = RandomNormal<2>({11, D}, 2);
      std::vector<double> want = dtable.AsDouble();
      for (int64_t i = 0; i < M * D; ++i) {
        want[tokens[i / D] * D + i % D] += dy[i];
      }
      TestContext test;
      EmbeddingBwd(test.ctx(), tokens, dy, dtable);
      EXPECT_TRUE(RelativeRmsAtMost(1e-6, dtable.values(), want));
    }
  }
}

// The gradient is the transpose of the lookup: <dy, Fwd(table)> must equal
// <Bwd(dy), table>, since the lookup is linear in the table.
TEST(EmbeddingBwd, IsTheTransposeOfTheForward) {
  constexpr int64_t M = 37, D = 19, vocab_size = 11;
  const auto tokens = Tokens(M, vocab_size);
  const auto table = RandomNormal<2>({vocab_size, D}, 1);
  const auto dy = RandomNormal<2>({M, D}, 2);
  OwnedTensor<float, 2> y({M, D}), dtable({vocab_size, D});
  TestContext test;
  EmbeddingFwd(test.ctx(), tokens, table, y);
  EmbeddingBwd(test.ctx(), tokens, dy, dtable);
  double forward = 0, backward = 0;
  for (size_t i = 0; i < y.size(); ++i) forward += double{y[i]} * dy[i];
  for (size_t i = 0; i < table.size(); ++i) {
    backward += double{dtable[i]} * table[i];
  }
  EXPECT_NEAR(forward, backward, 1e-4);
}

TEST(EmbeddingBwd, HasTheSameBitsForAnyThreadCount) {
  const auto tokens = Tokens(1000, 7);
  const auto dy = RandomNormal<2>({1000, 200}, 1);
  OwnedTensor<float, 2> one({7, 200}), three({7, 200});
  TestContext test1(1), test3(3);
  EmbeddingBwd(test1.ctx(), tokens, dy, one);
  EmbeddingBwd(test3.ctx(), tokens, dy, three);
  EXPECT_EQ(one, three);
}

TEST(Embedding, DiesOnTokensOutOfRange) {
  TestContext test;
  OwnedTensor<float, 2> table({4, 2}), y({3, 2});
  OwnedTensor<int32_t, 1> tokens({3});
  tokens[2] = 4;
  EXPECT_DEATH(EmbeddingFwd(test.ctx(), tokens, table, y),
               "token 4 at 2, vocab_size 4");
  tokens[2] = -1;
  EXPECT_DEATH(EmbeddingBwd(test.ctx(), tokens, y, table), "token -1 at 2");
}

}  // namespace
}  // namespace gla
