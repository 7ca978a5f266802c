#include "kernels/base/row_blocks.h"

#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/random_tensor.h"
#include "kernels/testing/relative_rms.h"
#include "kernels/testing/test_context.h"

namespace gla {
namespace {

// sum += the column sums of x.
void AddColumnSums(const ExecutionContext& ctx, const OwnedTensor<float, 2>& x,
                   OwnedTensor<float, 1>* sum) {
  AccumulateOverRows(ctx, x.dim(0), *sum,
                     [&](int64_t begin, int64_t end, float* partial) {
                       for (int64_t m = begin; m < end; ++m) {
                         for (int64_t d = 0; d < x.dim(1); ++d) {
                           partial[d] += x[m * x.dim(1) + d];
                         }
                       }
                     });
}

TEST(AccumulateOverRows, AddsEveryRowOnceToWhatWasThere) {
  TestContext test;
  for (const int64_t M : {0, 1, 2, 63, 64, 65, 127, 130, 1000}) {
    SCOPED_TRACE(M);
    const int64_t D = 13;
    const auto x = RandomUniform<2>({M, D}, 1, 1, 2);
    OwnedTensor<float, 1> sum = RandomNormal<1>({D}, 2);
    std::vector<double> want = sum.AsDouble();
    for (int64_t i = 0; i < M * D; ++i) want[i % D] += x[i];
    AddColumnSums(test.ctx(), x, &sum);
    EXPECT_TRUE(RelativeRmsAtMost(1e-6, sum.values(), want));
  }
}

TEST(AccumulateOverRows, HasTheSameBitsForAnyThreadCount) {
  const auto x = RandomNormal<2>({777, 21}, 3);
  OwnedTensor<float, 1> want({21});
  TestContext one(1);
  AddColumnSums(one.ctx(), x, &want);
  for (const int num_threads : {2, 3, 7}) {
    TestContext test(num_threads);
    OwnedTensor<float, 1> sum({21});
    AddColumnSums(test.ctx(), x, &sum);
    EXPECT_EQ(sum, want);
  }
}

TEST(RowGrain, IsAtLeastOneRow) {
  EXPECT_GE(RowGrain(1), 1);
  EXPECT_EQ(RowGrain(1 << 20), 1);
  EXPECT_GE(RowGrain(0), 1);
}

}  // namespace
}  // namespace gla
