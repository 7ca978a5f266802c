#include "kernels/matmul/matmul.h"

#include <array>
#include <limits>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/relative_rms.h"
#include "kernels/testing/test_context.h"

namespace gla {
namespace {

constexpr double kLimit = 2e-6;

// Which operands are stored transposed.
enum class Form { kNT, kNN, kTN };

struct Problem {
  OwnedTensor<float, 2> a, b;
  std::vector<double> product;
};

Problem MakeProblem(Form form, int64_t M, int64_t N, int64_t K) {
  const bool a_is_kxm = form == Form::kTN, b_is_nxk = form == Form::kNT;
  using Shape = std::array<int64_t, 2>;
  Problem p = {
      RandomNormal<2>(a_is_kxm ? Shape{K, M} : Shape{M, K}, /*seed=*/1),
      RandomNormal<2>(b_is_nxk ? Shape{N, K} : Shape{K, N}, /*seed=*/2),
      std::vector<double>(M * N)};
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t k = 0; k < K; ++k) {
        p.product[m * N + n] += double{p.a[a_is_kxm ? k * M + m : m * K + k]} *
                                p.b[b_is_nxk ? n * K + k : k * N + n];
      }
    }
  }
  return p;
}

void Multiply(const ExecutionContext& ctx, Form form, const Problem& p,
              OwnedTensor<float, 2>* c,
              Accumulate accumulate = Accumulate::kNo) {
  switch (form) {
    case Form::kNT:
      return MatmulNT(ctx, p.a, p.b, *c, accumulate);
    case Form::kNN:
      return MatmulNN(ctx, p.a, p.b, *c, accumulate);
    case Form::kTN:
      return MatmulTN(ctx, p.a, p.b, *c, accumulate);
  }
}

using Shape3 = std::array<int64_t, 3>;  // M, N, K

class MatmulTest : public testing::TestWithParam<std::tuple<Form, Shape3>> {};
INSTANTIATE_TEST_SUITE_P(
    Shapes, MatmulTest,
    testing::Combine(testing::Values(Form::kNT, Form::kNN, Form::kTN),
                     testing::Values(Shape3{1, 1, 1}, Shape3{1, 33, 17},
                                     Shape3{33, 1, 5}, Shape3{7, 13, 129},
                                     Shape3{64, 64, 64}, Shape3{257, 66, 65},
                                     Shape3{31, 301, 97})));

TEST_P(MatmulTest, MatchesFloat64) {
  const auto [form, shape] = GetParam();
  const auto [M, N, K] = shape;
  const Problem p = MakeProblem(form, M, N, K);
  for (int threads : {1, 2, 5}) {
    TestContext test(threads);
    auto c = PoisonedTensor<2>({M, N});
    Multiply(test.ctx(), form, p, &c);
    EXPECT_TRUE(RelativeRmsAtMost(kLimit, c.values(), p.product));
  }
}

TEST_P(MatmulTest, AddsToWhatIsThereWhenAskedTo) {
  const auto [form, shape] = GetParam();
  const auto [M, N, K] = shape;
  Problem p = MakeProblem(form, M, N, K);
  auto c = RandomNormal<2>({M, N}, /*seed=*/3);
  for (int64_t i = 0; i < M * N; ++i) p.product[i] += c[i];
  TestContext test;
  Multiply(test.ctx(), form, p, &c, Accumulate::kYes);
  EXPECT_TRUE(RelativeRmsAtMost(kLimit, c.values(), p.product));
}

TEST_P(MatmulTest, RepeatsBitForBit) {
  const auto [form, shape] = GetParam();
  const auto [M, N, K] = shape;
  const Problem p = MakeProblem(form, M, N, K);
  TestContext test;
  auto first = PoisonedTensor<2>({M, N}), again = PoisonedTensor<2>({M, N});
  Multiply(test.ctx(), form, p, &first);
  Multiply(test.ctx(), form, p, &again);
  EXPECT_EQ(first, again);
}

TEST(Matmul, HandlesEmptyDimensions) {
  TestContext test;
  for (Form form : {Form::kNT, Form::kNN, Form::kTN}) {
    auto zeros = PoisonedTensor<2>({3, 4});
    Multiply(test.ctx(), form, MakeProblem(form, 3, 4, 0), &zeros);
    EXPECT_EQ(zeros.values(), std::vector<float>(12));
    auto kept = RandomNormal<2>({3, 4}, 1);
    Multiply(test.ctx(), form, MakeProblem(form, 3, 4, 0), &kept,
             Accumulate::kYes);
    EXPECT_EQ(kept, RandomNormal<2>({3, 4}, 1));
    OwnedTensor<float, 2> no_rows({0, 4}), no_columns({3, 0});
    Multiply(test.ctx(), form, MakeProblem(form, 0, 4, 5), &no_rows);
    Multiply(test.ctx(), form, MakeProblem(form, 3, 0, 5), &no_columns);
  }
}

TEST(Matmul, DiesOnShapesThatDoNotFit) {
  TestContext test;
  OwnedTensor<float, 2> a({2, 3}), b({4, 5}), c({2, 4});
  EXPECT_DEATH(MatmulNT(test.ctx(), a, b, c),
               "b: want \\[4, 3\\], got \\[4, 5\\]");
  EXPECT_DEATH(MatmulNN(test.ctx(), a, b, c), "b: want");
  EXPECT_DEATH(MatmulTN(test.ctx(), a, b, c), "b: want");
  EXPECT_DEATH(RowInvariantMatmulNT(test.ctx(), a, b, c), "b: want");
}

class RowInvariantMatmulTest : public testing::TestWithParam<Shape3> {};
INSTANTIATE_TEST_SUITE_P(Shapes, RowInvariantMatmulTest,
                         testing::Values(Shape3{1, 1, 1}, Shape3{1, 100, 24},
                                         Shape3{2, 7, 7}, Shape3{3, 50, 8},
                                         Shape3{4, 31, 9}, Shape3{5, 97, 63},
                                         Shape3{16, 333, 130},
                                         Shape3{67, 20, 33}));

TEST_P(RowInvariantMatmulTest, MatchesFloat64) {
  const auto [M, N, K] = GetParam();
  const Problem p = MakeProblem(Form::kNT, M, N, K);
  TestContext test;
  auto c = PoisonedTensor<2>({M, N});
  RowInvariantMatmulNT(test.ctx(), p.a, p.b, c);
  EXPECT_TRUE(RelativeRmsAtMost(kLimit, c.values(), p.product));
}

// A batch of any size and any number of threads must give a row the bits that
// it has alone. (OpenBLAS does not: the test fails with MatmulNT.)
TEST(RowInvariantMatmul, RowBitsDependOnThatRowAlone) {
  constexpr int64_t kMaxRows = 21, N = 401, K = 203;
  const auto a = RandomNormal<2>({kMaxRows, K}, 1);
  const auto b = RandomNormal<2>({N, K}, 2);
  OwnedTensor<float, 2> alone({kMaxRows, N});
  TestContext one_thread(1);
  for (int64_t m = 0; m < kMaxRows; ++m) {
    RowInvariantMatmulNT(one_thread.ctx(), {a.view()[m].data(), {1, K}}, b,
                         {alone.view()[m].data(), {1, N}});
  }
  for (int threads : {1, 2, 3}) {
    TestContext test(threads);
    for (int64_t M = 1; M <= kMaxRows; ++M) {
      auto c = PoisonedTensor<2>({M, N});
      RowInvariantMatmulNT(test.ctx(), {a.data(), {M, K}}, b, c);
      for (int64_t i = 0; i < M * N; ++i) {
        ASSERT_EQ(c[i], alone[i]) << "M " << M << ", threads " << threads
                                  << ", row " << i / N << ", column " << i % N;
      }
    }
  }
}

TEST(RowInvariantMatmul, ANeighbourWithNanLeavesOtherRowsAlone) {
  TestContext test;
  auto a = RandomNormal<2>({2, 19}, 1);
  const auto b = RandomNormal<2>({9, 19}, 2);
  OwnedTensor<float, 2> before({2, 9}), after({2, 9});
  RowInvariantMatmulNT(test.ctx(), a, b, before);
  for (int64_t k = 0; k < 19; ++k) {
    a[19 + k] = std::numeric_limits<float>::quiet_NaN();
  }
  RowInvariantMatmulNT(test.ctx(), a, b, after);
  for (int64_t n = 0; n < 9; ++n) EXPECT_EQ(before[n], after[n]);
}

TEST(RowInvariantMatmul, HandlesEmptyDimensions) {
  TestContext test;
  OwnedTensor<float, 2> none({0, 5}), b({4, 5}), no_rows({0, 4});
  RowInvariantMatmulNT(test.ctx(), none, b, no_rows);
  OwnedTensor<float, 2> a_k0({2, 0}), b_k0({4, 0});
  auto zeros = PoisonedTensor<2>({2, 4});
  RowInvariantMatmulNT(test.ctx(), a_k0, b_k0, zeros);
  EXPECT_EQ(zeros.values(), std::vector<float>(8));
}

}  // namespace
}  // namespace gla
