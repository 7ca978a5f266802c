#include "kernels/base/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>
#include <thread>
#include <vector>

#include "glog/logging.h"

namespace gla {
namespace {

// A wait first polls, because the loops of a step follow each other within
// microseconds and a sleeping thread takes tens of them to wake. Past
// kPoliteAfter it yields at every poll, for machines with more threads than
// cores; past kSleepAfter it sleeps in the kernel.
constexpr std::chrono::microseconds kPoliteAfter(2);
constexpr std::chrono::microseconds kSleepAfter(50);

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Returns the first value other than `value` that `word` is seen to hold.
int32_t AwaitChange(const std::atomic<int32_t>& word, int32_t value) {
  const auto start = std::chrono::steady_clock::now();
  std::chrono::steady_clock::duration waited{};
  while (waited < kSleepAfter) {
    for (int i = 0; i < 8; ++i) {
      const int32_t seen = word.load(std::memory_order_acquire);
      if (seen != value) return seen;
      Pause();
    }
    if (waited > kPoliteAfter) std::this_thread::yield();
    waited = std::chrono::steady_clock::now() - start;
  }
  word.wait(value);
  return word.load(std::memory_order_acquire);
}

constexpr int32_t kIdle = 0;
constexpr int32_t kStop = -1;

}  // namespace

// `unclaimed` is both the queue and the wake-up word: a thread owns a task once
// it has lowered the count by one. Until that task is done the caller cannot
// leave its loop, so `fn` and `num_tasks` hold still for whoever owns a task,
// and nobody else reads them.
struct ThreadPool::State {
  using Fn = absl::FunctionRef<void(int64_t, int)>;

  // Runs tasks of the current loop until none is left to claim.
  void RunTasks(int worker);
  void WorkerMain(int worker);

  alignas(64) std::atomic<int32_t> unclaimed = kIdle;
  alignas(64) std::atomic<int32_t> unfinished = 0;
  alignas(64) const Fn* fn = nullptr;
  int32_t num_tasks = 0;
  std::vector<std::thread> workers;
};

void ThreadPool::State::RunTasks(int worker) {
  int32_t left = unclaimed.load(std::memory_order_acquire);
  while (left > 0) {
    if (!unclaimed.compare_exchange_weak(left, left - 1,
                                         std::memory_order_acq_rel)) {
      continue;
    }
    (*fn)(num_tasks - left, worker);
    if (unfinished.fetch_sub(1) == 1) unfinished.notify_one();
    left = unclaimed.load(std::memory_order_acquire);
  }
}

void ThreadPool::State::WorkerMain(int worker) {
  for (int32_t seen = kIdle; seen != kStop;
       seen = AwaitChange(unclaimed, kIdle)) {
    RunTasks(worker);
  }
}

ThreadPool::ThreadPool(int num_threads)
    : num_threads_(num_threads), state_(std::make_unique<State>()) {
  CHECK_GE(num_threads, 1);
  for (int worker = 1; worker < num_threads; ++worker) {
    state_->workers.emplace_back([this, worker] {  //
      state_->WorkerMain(worker);
    });
  }
}

ThreadPool::~ThreadPool() {
  state_->unclaimed.store(kStop);
  state_->unclaimed.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
}

void ThreadPool::ParallelFor(int64_t num_tasks,
                             absl::FunctionRef<void(int64_t, int)> fn) {
  if (num_threads_ == 1 || num_tasks <= 1) {
    for (int64_t task = 0; task < num_tasks; ++task) fn(task, 0);
    return;
  }
  State& state = *state_;
  CHECK_LE(num_tasks, std::numeric_limits<int32_t>::max());
  CHECK_EQ(state.unfinished.load(std::memory_order_relaxed), 0)
      << "ParallelFor within ParallelFor";
  state.fn = &fn;
  state.num_tasks = num_tasks;
  state.unfinished.store(num_tasks, std::memory_order_relaxed);
  state.unclaimed.store(num_tasks);
  state.unclaimed.notify_all();
  state.RunTasks(/*worker=*/0);
  int32_t left = state.unfinished.load(std::memory_order_acquire);
  while (left != 0) left = AwaitChange(state.unfinished, left);
}

void ThreadPool::ParallelRanges(
    int64_t n, int64_t grain,
    absl::FunctionRef<void(int64_t begin, int64_t end)> fn) {
  CHECK_GE(grain, 1);
  const int64_t units = (n + grain - 1) / grain;
  const int64_t ranges = std::min<int64_t>(units, num_threads_);
  ParallelFor(ranges, [&](int64_t range, int) {
    const int64_t begin = units * range / ranges * grain;
    const int64_t end = units * (range + 1) / ranges * grain;
    fn(begin, std::min(end, n));
  });
}

int HardwareThreads() {
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace gla
