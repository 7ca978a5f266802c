#include "kernels/base/thread_pool.h"

#include <atomic>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

namespace gla {
namespace {

class ThreadPoolTest : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, testing::Values(1, 2, 3, 8));

TEST_P(ThreadPoolTest, RunsEveryTaskOnceWithAValidWorker) {
  ThreadPool pool(GetParam());
  for (int64_t num_tasks : {0, 1, 2, 7, 1000}) {
    std::vector<int> runs(num_tasks);  // plain ints: a race shows under TSan
    std::vector<std::atomic<int>> per_worker(pool.num_threads());
    pool.ParallelFor(num_tasks, [&](int64_t task, int worker) {
      ++runs[task];
      ++per_worker.at(worker);
    });
    EXPECT_EQ(runs, std::vector<int>(num_tasks, 1));
    int64_t total = 0;
    for (const auto& n : per_worker) total += n;
    EXPECT_EQ(total, num_tasks);
  }
}

// Loops in quick succession, so that late workers of one meet the next.
TEST_P(ThreadPoolTest, ConsecutiveLoopsDoNotMix) {
  ThreadPool pool(GetParam());
  std::vector<int64_t> sums(5);
  for (int64_t loop = 0; loop < 3000; ++loop) {
    const int64_t num_tasks = 2 + loop % 4;
    pool.ParallelFor(num_tasks, [&](int64_t task, int) { sums[task] += loop; });
    for (int64_t task = 0; task < num_tasks; ++task) {
      ASSERT_GE(sums[task], loop);  // visible to the caller at once
    }
  }
  EXPECT_EQ(sums[0], 3000 * 2999 / 2);
  EXPECT_EQ(sums[1], 3000 * 2999 / 2);
}

// Workers that have gone to sleep must wake for the next loop: every task here
// waits until all have started, which needs all threads.
TEST_P(ThreadPoolTest, SleepingWorkersWake) {
  ThreadPool pool(GetParam());
  for (int loop = 0; loop < 5; ++loop) {
    std::atomic<int> started = 0;
    pool.ParallelFor(pool.num_threads(), [&](int64_t, int) {
      started.fetch_add(1);
      started.notify_all();
      for (int n = started; n < pool.num_threads(); n = started) {
        started.wait(n);
      }
    });
    EXPECT_EQ(started, pool.num_threads());
    volatile double busy = 0;  // long enough for the workers to fall asleep
    for (int i = 0; i < 2000000; ++i) busy = busy + i;
  }
}

TEST_P(ThreadPoolTest, RangesCoverOnceAndStartAtMultiplesOfTheGrain) {
  ThreadPool pool(GetParam());
  for (int64_t n : {0, 1, 15, 16, 17, 100, 1003}) {
    std::vector<int> covered(n);
    std::atomic<int> ranges = 0;
    pool.ParallelRanges(n, /*grain=*/16, [&](int64_t begin, int64_t end) {
      ++ranges;
      EXPECT_EQ(begin % 16, 0);
      EXPECT_TRUE(end % 16 == 0 || end == n);
      EXPECT_TRUE(end - begin >= 16 || end == n);
      for (int64_t i = begin; i < end; ++i) ++covered[i];
    });
    EXPECT_EQ(covered, std::vector<int>(n, 1));
    EXPECT_LE(ranges, pool.num_threads());
    if (n >= 16 * pool.num_threads()) {
      EXPECT_EQ(ranges, pool.num_threads());
    }
  }
}

TEST(ThreadPool, DiesOnAnImpossibleSize) {
  EXPECT_DEATH(ThreadPool(0), "num_threads >= 1");
}

TEST(ThreadPool, DiesOnNestedLoops) {
  EXPECT_DEATH(
      {
        ThreadPool pool(2);
        pool.ParallelFor(
            2, [&](int64_t, int) { pool.ParallelFor(2, [](int64_t, int) {}); });
      },
      "ParallelFor within ParallelFor");
}

TEST(HardwareThreads, IsAtLeastOne) { EXPECT_GE(HardwareThreads(), 1); }

}  // namespace
}  // namespace gla
