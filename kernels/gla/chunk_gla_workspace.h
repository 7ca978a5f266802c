// Internal to chunk_gla_cuda: lays out the workspace of a call.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_WORKSPACE_H_
#define GLA_KERNELS_GLA_CHUNK_GLA_WORKSPACE_H_

#include <cstdint>

#include "kernels/base/ceil_div.h"

namespace gla::internal {

// Arrays in a workspace, taken in order, each at a multiple of 256 bytes, null
// if empty; null base: only adds up sizes.
class WorkspaceLayout {
 public:
  explicit WorkspaceLayout(void* base)
      : base_(reinterpret_cast<uintptr_t>(base)) {}

  template <typename T>
  T* Take(int64_t elements) {
    if (elements == 0) return nullptr;
    T* const array = reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += CeilDiv(elements * sizeof(T), 256) * 256;
    return array;
  }
  int64_t bytes() const { return bytes_; }

 private:
  uintptr_t base_;
  int64_t bytes_ = 0;
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_WORKSPACE_H_
