// Internal to chunk_gla: which chunks there are and where their data lies.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_PLAN_H_
#define GLA_KERNELS_GLA_CHUNK_GLA_PLAN_H_

#include <array>
#include <cstdint>

#include "absl/types/span.h"
#include "kernels/base/arena.h"
#include "kernels/gla/chunk_gla.h"
#include "kernels/gla/chunk_gla_block.h"
#include "kernels/gla/chunk_gla_scores.h"

namespace gla::internal {

inline int64_t NumChunks(int64_t tokens) {
  return (tokens + kGlaChunk - 1) / kGlaChunk;
}

// The forward pass saves of every chunk the state before it [K, V] (unused in
// the first of a sequence) and its scores [kGlaChunk, kGlaChunk].
inline int64_t SavedFloatsPerChunk(int64_t K, int64_t V) {
  return K * V + kGlaChunk * kGlaChunk;
}

struct GlaSequence {
  int64_t index;        // n: where its states are
  int64_t first_token;  // counted over all rows
  int64_t tokens;
  int64_t first_chunk;  // counted over all sequences
};

// The work of a call: one task per sequence and head, longest first.
class GlaPlan {
 public:
  // The list of sequences lives in `arena`. CHECK-fails unless cu_seqlens is
  // empty or runs from 0 to T without going back, with B = 1.
  GlaPlan(const std::array<int64_t, 4>& k_shape,
          const std::array<int64_t, 4>& v_shape,
          absl::Span<const int32_t> cu_seqlens, Arena* arena);

  int64_t num_sequences() const { return num_sequences_; }
  int64_t num_tasks() const { return num_sequences_ * H_; }
  const GlaSequence& sequence(int64_t task) const {
    return sequences_[task / H_];
  }
  int64_t head(int64_t task) const { return task % H_; }

  int64_t chunks(int64_t task) const {
    return NumChunks(sequence(task).tokens);
  }

  // Chunk `c` of a task's sequence.
  GlaBlock Chunk(int64_t task, int64_t c, const float* q, const float* k,
                 const float* v, const float* g, float scale) const;

  // Offsets, in floats, of a task's data: its row at token `t` of the sequence
  // in tensors of [B, T, H, K] and [B, T, H, V], its state in [N, H, K, V].
  int64_t KeyOffset(int64_t task, int64_t t) const { return Row(task, t) * K_; }
  int64_t ValueOffset(int64_t task, int64_t t) const {
    return Row(task, t) * V_;
  }
  int64_t StateOffset(int64_t task) const {
    return (sequence(task).index * H_ + head(task)) * K_ * V_;
  }

  // Offsets of what is saved of chunk `c`, in `saved`.
  int64_t SavedStateOffset(int64_t task, int64_t c) const {
    return ((sequence(task).first_chunk + c) * H_ + head(task)) *
           SavedFloatsPerChunk(K_, V_);
  }
  int64_t SavedScoresOffset(int64_t task, int64_t c) const {
    return SavedStateOffset(task, c) + K_ * V_;
  }

 private:
  int64_t Row(int64_t task, int64_t t) const {
    return (sequence(task).first_token + t) * H_ + head(task);
  }

  int64_t H_, K_, V_;
  int64_t num_sequences_;
  GlaSequence* sequences_;
};

// Space for a chunk's gated operands, for heads of K channels.
ChunkOperands AllocateOperands(int64_t K, Arena* arena);

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_PLAN_H_
