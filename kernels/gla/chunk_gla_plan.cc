#include "kernels/gla/chunk_gla_plan.h"

#include <algorithm>

#include "glog/logging.h"
#include "kernels/gla/chunk_gla_cpu.h"

namespace gla {
namespace internal {

GlaPlan::GlaPlan(const std::array<int64_t, 4>& k_shape,
                 const std::array<int64_t, 4>& v_shape,
                 absl::Span<const int32_t> cu_seqlens, Arena* arena)
    : H_(k_shape[2]),
      K_(k_shape[3]),
      V_(v_shape[3]),
      num_sequences_(cu_seqlens.empty() ? k_shape[0] : cu_seqlens.size() - 1),
      sequences_(arena->Allocate<GlaSequence>(num_sequences_)) {
  const int64_t T = k_shape[1];
  if (!cu_seqlens.empty()) {
    CHECK_EQ(k_shape[0], 1) << "cu_seqlens needs B = 1";
    CHECK_EQ(cu_seqlens.front(), 0) << "cu_seqlens[0]";
    CHECK_EQ(cu_seqlens.back(), T) << "cu_seqlens[N]";
  }
  int64_t num_chunks = 0;
  for (int64_t n = 0; n < num_sequences_; ++n) {
    const int64_t begin = cu_seqlens.empty() ? n * T : cu_seqlens[n];
    const int64_t end = cu_seqlens.empty() ? begin + T : cu_seqlens[n + 1];
    CHECK_LE(begin, end) << "cu_seqlens[" << n + 1 << "]";
    sequences_[n] = {n, begin, end - begin, num_chunks};
    num_chunks += NumChunks(end - begin);
  }
  std::sort(sequences_, sequences_ + num_sequences_,
            [](const GlaSequence& a, const GlaSequence& b) {
              return a.tokens != b.tokens ? a.tokens > b.tokens
                                          : a.index < b.index;
            });
}

GlaBlock GlaPlan::Chunk(int64_t task, int64_t c, const float* q, const float* k,
                        const float* v, const float* g, float scale) const {
  const int64_t t = c * kGlaChunk;
  GlaBlock chunk;
  chunk.tokens = std::min<int64_t>(kGlaChunk, sequence(task).tokens - t);
  chunk.K = K_;
  chunk.V = V_;
  chunk.qk_stride = H_ * K_;
  chunk.v_stride = H_ * V_;
  chunk.q = q + KeyOffset(task, t);
  chunk.k = k + KeyOffset(task, t);
  chunk.v = v + ValueOffset(task, t);
  chunk.g = g + KeyOffset(task, t);
  chunk.scale = scale;
  return chunk;
}

ChunkOperands AllocateOperands(int64_t K, Arena* arena) {
  auto tile = [&] { return arena->Allocate<float>(kGlaChunk * K); };
  auto gated_tile = [&]() -> GatedTile {
    float* decay = tile();
    return {decay, tile()};
  };
  ChunkOperands operands;
  operands.one_frame = false;
  operands.queries = gated_tile();
  operands.keys = gated_tile();
  operands.frame_keys = gated_tile();
  operands.half_queries = gated_tile();
  operands.d_queries = tile();
  operands.d_keys = tile();
  return operands;
}

int64_t ChunkGlaSavedFloatsCpu(const std::array<int64_t, 4>& k_shape,
                               const std::array<int64_t, 4>& v_shape,
                               absl::Span<const int32_t> cu_seqlens) {
  const auto [B, T, H, K] = k_shape;
  int64_t chunks = cu_seqlens.empty() ? B * NumChunks(T) : 0;
  for (size_t n = 1; n < cu_seqlens.size(); ++n) {
    chunks += NumChunks(cu_seqlens[n] - cu_seqlens[n - 1]);
  }
  return chunks * H * SavedFloatsPerChunk(K, v_shape[3]);
}

}  // namespace internal
}  // namespace gla
