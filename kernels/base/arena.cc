#include "kernels/base/arena.h"

#include <algorithm>
#include <new>

#include "glog/logging.h"

namespace gla {
namespace {

constexpr size_t kAlignment = 64;  // a cache line, and the widest SIMD register
constexpr int64_t kSmallestBlock = int64_t{1} << 20;
constexpr int64_t kLargestStep = int64_t{64} << 20;

}  // namespace

Arena::~Arena() {
  for (const Block& block : blocks_) {
    ::operator delete (block.data, std::align_val_t{kAlignment});
  }
}

// Takes the first block with room, from the current one on. Blocks are only
// ever added at the end, so a repeated sequence of calls finds the same places.
void* Arena::AllocateBytes(int64_t bytes) {
  CHECK_GE(bytes, 0);
  const size_t want =
      (std::max<size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
  for (; position_.block < blocks_.size(); position_ = {position_.block + 1}) {
    const Block& block = blocks_[position_.block];
    if (position_.offset + want <= block.size) {
      std::byte* result = block.data + position_.offset;
      position_.offset += want;
      return result;
    }
  }
  AddBlock(want);
  position_.offset = want;
  return blocks_.back().data;
}

void Arena::AddBlock(size_t at_least) {
  const size_t size = std::max<size_t>(
      at_least, std::clamp(reserved_bytes_ / 2, kSmallestBlock, kLargestStep));
  void* data = ::operator new (size, std::align_val_t{kAlignment});
  blocks_.push_back({static_cast<std::byte*>(data), size});
  reserved_bytes_ += size;
}

}  // namespace gla
