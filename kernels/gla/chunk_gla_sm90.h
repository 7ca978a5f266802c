// Internal to chunk_gla_cuda: the tuned kernels for bf16 and the head shapes
// that HasTunedShape names, as host functions. They queue one kernel each.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_H_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_H_

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/gla/chunk_gla_cuda.h"

namespace gla::internal {

inline constexpr int kChunk = 64;     // tokens
inline constexpr int kSegment = 192;  // tokens that SegmentGradients works on
inline constexpr int kSegmentChunks = kSegment / kChunk;
inline constexpr int kPieceChunks = 2;  // ScanArgs::pieces

// Blocks that a Hopper GPU runs at once, one a multiprocessor. A constant, so
// that sizes and bits are pure functions of the shape.
inline constexpr int64_t kMultiprocessors = 132;

// (K, V) one of (256, 512), (128, 256), (128, 128), (64, 128), in bf16.
bool HasTunedShape(const ChunkGlaShape& shape);

// Slots for all sequences' parts of `tokens` tokens, with gaps (FirstSlot).
int64_t Slots(const ChunkGlaShape& shape, int tokens);
inline int64_t ChunkSlots(const ChunkGlaShape& shape) {
  return Slots(shape, kChunk);
}
inline int64_t SegmentSlots(const ChunkGlaShape& shape) {
  return Slots(shape, kSegment);
}

// Whether ScanBackward is the whole backward pass.
constexpr bool HasScanBackward(int64_t V) { return V == 128; }

// Chunks from one stored state to the next, and slots for these.
constexpr int StateChunks(int64_t V) {
  return HasScanBackward(V) ? 1 : kSegmentChunks;
}
inline int64_t StateSlots(const ChunkGlaShape& shape) {
  return Slots(shape, StateChunks(shape.V) * kChunk);
}

// A stored state is bf16, [slot][H][K / 64][V / 64] slabs (wgmma_sm90.cuh, as
// they lie in shared memory) whose rows are 64 values and columns 64 channels.

// Parts of a chunk, for what is not in range over the whole of it.
inline constexpr int kPartTokens = 16;
inline constexpr int kChunkParts = kChunk / kPartTokens;

// Masked scores of a chunk in two bf16 parts, each without the quarter of later
// keys and earlier queries (kEarlyScoreBytes).
inline constexpr int kScoreBytes = kChunk * kChunk * 2 * 3 / 4;
using ChunkScores = uint8_t[2][kScoreBytes];

// What the passes below need of every chunk: gated operands and scores,
// [ChunkSlots][H] of ChunkOperands (chunk_gla_sm90.cuh). For K = 256.
struct OperandArgs {
  ChunkGlaShape shape;
  float scale;
  const __nv_bfloat16 *q, *k;  // [B, T, H, K]
  const void* g;               // [B, T, H, K]
  const int32_t* cu_seqlens;
  void* operands;     // overwritten; at a multiple of 128 bytes
  float* log_decays;  // as in ScanArgs
};
cudaError_t GateChunks(const OperandArgs& args, cudaStream_t stream);

// Whether operands come from GateChunks; else the passes gate by themselves.
constexpr bool HasOperands(int64_t K) { return K == 256; }

// Bytes of `operands`; 0 unless HasOperands.
int64_t OperandBytes(const ChunkGlaShape& shape);

// One pass of the state over each sequence, forward or backward in time.
//   forward: y = o,  from x = v;    state = S
//   reverse: y = dv, from x = d_o;  state = dS (where not HasScanBackward)
// A sequence is cut into `pieces` of consecutive chunks. Of two, the one that
// comes later in the pass catches up by itself: it runs over the chunks of the
// other, which are more than its own, only for the state. More than two start
// from piece_states, and all but the last are a multiple of kPieceChunks
// chunks.
struct ScanArgs {
  ChunkGlaShape shape;
  float scale;
  const __nv_bfloat16 *q, *k;  // [B, T, H, K]
  const void* g;               // [B, T, H, K]
  const void* operands;        // from GateChunks; null unless HasOperands
  const __nv_bfloat16* x;      // [B, T, H, V]
  __nv_bfloat16* y;            // [B, T, H, V]; null: only the states
  const int32_t* cu_seqlens;
  // State at the start of the first piece and at the end of the last, in the
  // direction of the pass; null: zero, not wanted.
  const float* initial_state;  // [N, H, K, V]
  float* final_state;          // [N, H, K, V]
  // Stored states, one every StateChunks; null: not wanted. Forward: S before
  // the chunks. Reverse: dS after them, times `edge` (chunk_gla_sm90.cuh) of
  // the last of them unless HasOperands: as that chunk's dv is formed from it.
  // What is zero for want of an initial_state is not stored.
  __nv_bfloat16* states;
  // The gates of every chunk added up to the end of each of its parts, in
  // powers of two, [ChunkSlots][H][K / 64][kChunkParts][64]; forward null: not
  // wanted. Where the passes gate the forward one writes them, with y, and the
  // reverse one starts from them.
  float* log_decays;
  // q k^T of each token with itself, times scale, [ChunkSlots][H][kChunk];
  // null: not wanted. Written by the forward pass where it forms scores, with
  // y.
  float* own_scores;
  // [ChunkSlots][H]; forward null: not wanted. As log_decays, but only where
  // not HasScanBackward.
  ChunkScores* scores;
  int32_t* taken = nullptr;  // reverse, with y: becomes 0 (GradArgs)
  // Whether the kernel before in the stream is one of this call, whose first
  // has waited for all before: the pass may get ready while that kernel ends
  // (dependent_launch_sm90.cuh).
  bool follows = false;
  int pieces = 1;
  // With pieces > 2: [N, H, pieces, V / 64, K / 64, 8, 128, 4], in the order in
  // which a state warpgroup's threads hold it (wgmma_sm90.cuh; rows are values,
  // columns channels), and [N, H, pieces, K]. When y is null the pass starts
  // every piece but its last from zero and writes its end state and decay;
  // otherwise it reads the state before each piece but its first. Where
  // HasOperands, end states are without chunks behind which the decays of every
  // channel multiply to 0 in float32.
  float* piece_states = nullptr;
  float* piece_decays = nullptr;
};
cudaError_t ScanForward(const ScanArgs& args, cudaStream_t stream);
cudaError_t ScanReverse(const ScanArgs& args, cudaStream_t stream);

// Turns the pieces' own end states into the states before them, in place, in
// the order of the pass: before[p+1] = decay[p] before[p] + end[p]. The first
// piece's, before[0], is initial_state and is not written.
cudaError_t ChainPieces(const ScanArgs& args, bool reverse,
                        cudaStream_t stream);

// dq, dk and dg from the states stored by both passes.
struct GradArgs {
  ChunkGlaShape shape;
  float scale;
  const __nv_bfloat16 *q, *k, *v;
  const void* g;
  const __nv_bfloat16* d_o;
  const int32_t* cu_seqlens;
  // As the forward pass left them: which channels are steep must be the same in
  // all passes, and sums in another order could differ.
  const float* log_decays;
  const float* own_scores;  // as the forward pass left them
  // As the two passes stored them, and whether these had an initial_state.
  const __nv_bfloat16 *states, *d_states;
  bool has_initial_state, has_d_final_state;
  // ScanBackward may keep rests of a chunk's q~ in its rows of dq until that is
  // formed: dq may not overlap anything else.
  __nv_bfloat16 *dq, *dk;
  void* dg;
  int32_t* taken;  // counts items as clusters take them; ScanReverse makes it 0
  int64_t reverse_blocks;  // of ScanReverse, one a multiprocessor
};
// Directly behind ScanReverse in the stream, which lets it start.
cudaError_t SegmentGradients(const GradArgs& args, cudaStream_t stream);

// The reverse pass and the gradients at once, where HasScanBackward: `scan` as
// for ScanReverse, without stored states and not in two pieces; `grad` without
// `d_states` and `taken`.
cudaError_t ScanBackward(const ScanArgs& scan, const GradArgs& grad,
                         cudaStream_t stream);

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_H_
