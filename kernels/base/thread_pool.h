// A fixed set of threads that run the tasks of one parallel loop at a time.
//
// Work is handed out task by task, so tasks may differ in length. Which worker
// runs a task is not deterministic; results are, as long as every task writes
// its own outputs (that is the rule for all ops).
#ifndef GLA_KERNELS_BASE_THREAD_POOL_H_
#define GLA_KERNELS_BASE_THREAD_POOL_H_

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"

namespace gla {

class ThreadPool {
 public:
  // `num_threads` >= 1 counts the calling thread, which takes part in loops.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Runs fn(task, worker) for every task in [0, num_tasks), worker in
  // [0, num_threads), and returns when all are done. Tasks start in order.
  // Allocates nothing. Not reentrant: `fn` must not call ParallelFor, and one
  // thread at a time may. REQUIRES: num_tasks < 2^31.
  void ParallelFor(int64_t num_tasks,
                   absl::FunctionRef<void(int64_t task, int worker)> fn);

  // Splits [0, n) into at most `num_threads` ranges of at least `grain`
  // elements (but for the last), and runs fn(begin, end) on each. Range
  // borders are multiples of `grain`.
  void ParallelRanges(int64_t n, int64_t grain,
                      absl::FunctionRef<void(int64_t begin, int64_t end)> fn);

 private:
  struct State;
  const int num_threads_;
  std::unique_ptr<State> state_;
};

// Threads that this machine offers (at least 1).
int HardwareThreads();

}  // namespace gla

#endif  // GLA_KERNELS_BASE_THREAD_POOL_H_
