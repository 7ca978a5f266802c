// An execution context for tests of ops: it owns its threads and its scratch.
#ifndef GLA_KERNELS_TESTING_TEST_CONTEXT_H_
#define GLA_KERNELS_TESTING_TEST_CONTEXT_H_

#include <algorithm>
#include <limits>

#include "kernels/base/arena.h"
#include "kernels/base/execution_context.h"
#include "kernels/base/thread_pool.h"

namespace gla {

// Example:
//   TestContext test;                        // two threads
//   MatmulNT(test.ctx(), a, b, c);
//   const int64_t reserved = test.scratch().reserved_bytes();
class TestContext {
 public:
  explicit TestContext(int num_threads = 2) : threads_(num_threads) {
    PoisonScratch();
    ctx_.threads = &threads_;
    ctx_.scratch = &scratch_;
  }
  TestContext(const TestContext&) = delete;
  TestContext& operator=(const TestContext&) = delete;

  const ExecutionContext& ctx() const { return ctx_; }
  Arena& scratch() { return scratch_; }

 private:
  // Fills the first megabyte with NaN, so that an op that relies on what its
  // scratch memory holds shows it.
  void PoisonScratch() {
    constexpr int64_t kFloats = (int64_t{1} << 20) / sizeof(float);
    ArenaScope scope(&scratch_);
    std::fill_n(scratch_.Allocate<float>(kFloats), kFloats,
                std::numeric_limits<float>::quiet_NaN());
  }

  ThreadPool threads_;
  Arena scratch_;
  ExecutionContext ctx_;
};

}  // namespace gla

#endif  // GLA_KERNELS_TESTING_TEST_CONTEXT_H_
