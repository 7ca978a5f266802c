#include "kernels/base/arena.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/tensor_view.h"

namespace gla {
namespace {

TEST(Arena, AlignsToCacheLinesAndKeepsArraysApart) {
  Arena arena;
  std::vector<std::pair<uintptr_t, int64_t>> taken;
  for (int64_t n : {1, 63, 64, 65, 0, 1000, 3 << 20, 7}) {
    char* p = arena.Allocate<char>(n);
    ASSERT_NE(p, nullptr);
    const auto begin = reinterpret_cast<uintptr_t>(p);
    EXPECT_EQ(begin % 64, 0u);
    for (const auto& [other, size] : taken) {
      EXPECT_TRUE(begin + n <= other || other + size <= begin);
    }
    taken.push_back({begin, n});
    std::fill_n(p, n, 'x');
  }
}

TEST(Arena, RepeatedStepsAllocateNothing) {
  Arena arena;
  int64_t reserved = 0;
  for (int step = 0; step < 3; ++step) {
    arena.Reset();
    arena.Allocate<float>(100);
    for (int64_t n : {1 << 10, 1 << 22, 1 << 18, 1 << 23, 1 << 18}) {
      ArenaScope scope(&arena);
      arena.Allocate<float>(n);
      arena.Allocate<float>(n / 2);
    }
    arena.Allocate<float>(1 << 20);
    if (step > 0) {
      EXPECT_EQ(arena.reserved_bytes(), reserved);
    }
    reserved = arena.reserved_bytes();
  }
  EXPECT_GT(reserved, 0);
}

TEST(Arena, RewindGivesTheSameMemoryAgain) {
  Arena arena;
  arena.Allocate<float>(10);
  const Arena::Mark mark = arena.mark();
  float* first = arena.Allocate<float>(10);
  arena.Rewind(mark);
  EXPECT_EQ(arena.Allocate<float>(10), first);
}

TEST(ArenaScope, Nests) {
  Arena arena;
  ArenaScope outer(&arena);
  float* kept = arena.Allocate<float>(8);
  float* inner_memory;
  {
    ArenaScope inner(&arena);
    inner_memory = arena.Allocate<float>(1 << 20);
  }
  EXPECT_NE(arena.Allocate<float>(1 << 20), kept);
  arena.Reset();
  EXPECT_EQ(arena.Allocate<float>(8), kept);
  EXPECT_EQ(arena.Allocate<float>(1 << 20), inner_memory);
}

TEST(Arena, TensorHasTheShape) {
  Arena arena;
  const auto x = arena.Tensor<float, 2>({3, 5});
  EXPECT_EQ(x.size(), 15);
  EXPECT_EQ(x.dim(1), 5);
}

}  // namespace
}  // namespace gla
