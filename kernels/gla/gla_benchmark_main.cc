// Prints the speed of chunk_gla, one row per shape:
//
//   bazel run //kernels/gla:gla_benchmark -- [threads]
#include <cstdio>
#include <cstdlib>

#include "kernels/base/arena.h"
#include "kernels/base/thread_pool.h"
#include "kernels/gla/gla_benchmark.h"

int main(int argc, char** argv) {
  gla::ThreadPool threads(argc > 1 ? std::atoi(argv[1])
                                   : gla::HardwareThreads());
  gla::Arena scratch;
  gla::ExecutionContext ctx;
  ctx.threads = &threads;
  ctx.scratch = &scratch;
  std::printf("%d threads\n%-24s %8s %10s %8s %8s %10s %10s\n",
              threads.num_threads(), "B,T,H,K,V,normalizer", "fwd ms",
              "fwd+bwd ms", "GFLOP/s", "sgemm", "fwd share", "step share");
  const gla::ChunkGlaBenchmarkShape shapes[] = {
      {2, 2048, 4, 128, 256},
      {2, 2048, 4, 128, 256, /*normalizer=*/1},
      {2, 2048, 4, 128, 256, /*normalizer=*/0.1},
      {8, 512, 4, 64, 128},
      {8, 512, 4, 128, 128},
      {1, 2048, 4, 256, 512},
      {2, 2048, 16, 64, 64},
  };
  for (const auto& s : shapes) {
    const gla::ChunkGlaTiming t = gla::MeasureChunkGla(ctx, s, /*rounds=*/9);
    char name[64];
    std::snprintf(name, sizeof(name), "%ld,%ld,%ld,%ld,%ld,%g", s.B, s.T, s.H,
                  s.K, s.V, s.normalizer);
    const double step_seconds = t.fwd_seconds + t.bwd_seconds;
    std::printf("%-24s %8.1f %10.1f %8.1f %8.1f %10.2f %10.2f\n", name,
                1e3 * t.fwd_seconds, 1e3 * step_seconds,
                1e-9 * (t.fwd_flops + t.bwd_flops) / step_seconds,
                1e-9 * t.sgemm_flops_per_second, t.fwd_share, t.step_share);
  }
}
