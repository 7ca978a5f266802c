// A bump allocator: memory for one step, taken in order and given back at once.
#ifndef GLA_KERNELS_BASE_ARENA_H_
#define GLA_KERNELS_BASE_ARENA_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "kernels/base/tensor_view.h"

namespace gla {

// Owns its memory, host memory aligned to 64 bytes. It grows by adding blocks
// when a step needs more than any step before; blocks are kept, so a repeated
// step allocates nothing (reserved_bytes() stays put, which tests assert).
// Contents of new memory are undefined. Not thread-safe: an op takes what all
// its tasks need before it starts them.
class Arena {
 public:
  Arena() = default;
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // An uninitialised array of `n` elements, valid until the arena is rewound
  // past it. n = 0 gives a valid, empty array.
  template <typename T>
  T* Allocate(int64_t n) {
    static_assert(std::is_trivially_destructible_v<T>);
    return static_cast<T*>(AllocateBytes(n * sizeof(T)));
  }
  template <typename T, size_t Rank>
  TensorView<T, static_cast<int>(Rank)> Tensor(
      const std::array<int64_t, Rank>& shape) {
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    return {Allocate<T>(n), shape};
  }

  // Bytes obtained from the system so far.
  int64_t reserved_bytes() const { return reserved_bytes_; }

  // A position to rewind to; everything allocated after it is given back.
  struct Mark {
    size_t block = 0;
    size_t offset = 0;
  };
  Mark mark() const { return position_; }
  void Rewind(Mark mark) { position_ = mark; }
  void Reset() { position_ = Mark{}; }

 private:
  struct Block {
    std::byte* data;
    size_t size;
  };
  void* AllocateBytes(int64_t bytes);
  void AddBlock(size_t at_least);

  std::vector<Block> blocks_;
  Mark position_;
  int64_t reserved_bytes_ = 0;
};

// Gives back on destruction what was allocated since construction.
class ArenaScope {
 public:
  explicit ArenaScope(Arena* arena) : arena_(arena), mark_(arena->mark()) {}
  ~ArenaScope() { arena_->Rewind(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena* arena_;
  Arena::Mark mark_;
};

}  // namespace gla

#endif  // GLA_KERNELS_BASE_ARENA_H_
