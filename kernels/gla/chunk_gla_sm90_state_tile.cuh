// The state of one pass over a sequence, in the registers of a warpgroup
// (chunk_gla_sm90_scan.cuh, chunk_gla_sm90_backward.cuh).
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_STATE_TILE_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_STATE_TILE_CUH_

#include "kernels/gla/chunk_gla_sm90_scan_shared.cuh"

namespace gla::internal {

// 64 values of a state, all channels, transposed: accumulator rows are values,
// columns channels. Of warpgroup `group` of the block.
template <typename C>
class StateTile {
 protected:
  __device__ StateTile(const ScanArgs& args, const ScanWork& work, int group)
      : args_(args),
        work_(work),
        group_(group),
        warp_(__shfl_sync(0xffffffff, threadIdx.x / 32 % 4, 0)),
        lane_(threadIdx.x % 32),
        column_(work.first_value + group * 64),
        fragment_(SlabOffset((lane_ & 7) + ((lane_ >> 4) << 3),
                             2 * warp_ + ((lane_ >> 3) & 1))) {}

  __device__ int Thread() const { return warp_ * 32 + lane_; }

  // d += x^T B: a chunk's tokens are rows of the slab B, or columns.
  template <Contract kAlong>
  static __device__ void AddTokens(const uint32_t (&x)[4][4],
                                   const uint8_t (&b)[kSlabBytes],
                                   float (&d)[32]) {
    const uint64_t slab = SlabDescriptor(SharedAddress(b));
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      Wgmma<kAlong>(d, x[step], StepDescriptor<kAlong>(slab, step), true);
    }
  }

  // --- Scores: 32 columns of a chunk's, in two warpgroups.

  // The first of this thread's elements.
  __device__ int Row() const { return warp_ * 16 + lane_ / 4; }
  __device__ int Column() const { return 32 * group_ + lane_ % 4 * 2; }

  // fn(i, element) for those of this thread's elements that are a token's with
  // itself, of token Row() + 8 i.
  template <typename Fn>
  __device__ void ForOwnScores(float (&p)[16], Fn fn) const {
    if (warp_ / 2 != group_) return;  // not in these columns
    const int odd = lane_ / 4 - lane_ % 4 * 2;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j / 2 != warp_ % 2) continue;
      float* const pair = &p[4 * j + 2 * (j % 2)];
      if (odd == 0) fn(j % 2, pair[0]);
      if (odd == 1) fn(j % 2, pair[1]);
    }
  }

  // Stores those that is_kept(row, column), the others as zeros, in bf16, from
  // the shared address `element` of this thread's first on, in a slab or a half
  // slab whose groups of 8 rows are kGroupBytes apart; and, kRestBytes behind,
  // what rounding left out, of columns 8 j on of this warpgroup's if
  // has_rest(j).
  template <int kGroupBytes, int kRestBytes, typename Kept, typename Rest>
  __device__ void StoreScores(uint32_t element, Kept is_kept, Rest has_rest,
                              const float (&p)[16]) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        // Eight columns on, eight rows on.
        const uint32_t address = (element ^ (j << 4)) + i * kGroupBytes;
        const int row = Row() + 8 * i, column = Column() + 8 * j;
        const float low = is_kept(row, column) ? p[4 * j + 2 * i] : 0;
        const float high = is_kept(row, column + 1) ? p[4 * j + 2 * i + 1] : 0;
        const uint32_t packed = PackBf16(low, high);
        StoreShared32(address, packed);
        if (has_rest(j)) {
          StoreShared32(
              address + kRestBytes,
              PackBf16(low - LowFloat(packed), high - HighFloat(packed)));
        }
      }
    }
  }
  // The same to slabs.
  template <typename Kept, typename Rest>
  __device__ void StoreScores(uint8_t* slabs, Kept is_kept, Rest has_rest,
                              const float (&p)[16]) const {
    StoreScores<1024, kSlabBytes>(
        SharedAddress(slabs) + SlabElement(Row(), Column()), is_kept, has_rest,
        p);
  }

  // Adds the terms q k e^(b_t - b_u) of a chunk's channels that are
  // is_steep(channel). (What their gated operands add to the products is below
  // 2^-kMaxLog2Decay of that.) Works from global memory, eight channels at a
  // time, both warpgroups together: any block needs any channel.
  template <typename Fn>
  __device__ void AddSteepScores(int chunk, Fn is_steep,
                                 SteepChannels& channels,
                                 SteepMeetings& meetings,
                                 float (&p)[16]) const {
    const uint32_t all = SharedAddress(&meetings.all);
#pragma unroll 1
    for (int first = 0; first < C::K; first += 8) {
      bool any = false;
#pragma unroll 1
      for (int c = 0; c < 8; ++c) any |= is_steep(first + c);
      if (!any) continue;
      BarrierMeet(all);
      if (group_ == 0) {
        LoadChannels(chunk, first, channels);
        BarrierMeet(SharedAddress(&meetings.loaders));
        AccumulateGates(Thread(), channels);
      }
      BarrierMeet(all);
#pragma unroll 1
      for (int c = 0; c < 8; ++c) {
        if (!is_steep(first + c)) continue;
        AddSteepTerms<C::kReverse>(channels, c, args_.scale, Row(), Column(),
                                   p);
      }
    }
    BarrierMeet(all);  // Before scores replace the channels.
  }
  __device__ void LoadChannels(int chunk, int first,
                               SteepChannels& channels) const {
    const int row = chunk * kChunk + Thread() / 2;
    const bool valid = row < work_.rows.length;
    const int64_t offset =
        ((work_.rows.first + (valid ? row : 0)) * args_.shape.H + work_.h) *
            C::K +
        first;
    LoadSteepChannels<typename C::Gate>(args_, Thread(), valid, offset,
                                        channels);
  }

  // --- The state.

  // fn(element of the accumulator, offset in a [K, V] state).
  template <typename Fn>
  __device__ void ForEachStateElement(Fn fn) {
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const int k = s * 64 + i / 4 * 8 + lane_ % 4 * 2 + i % 2;
        const int v = column_ + warp_ * 16 + lane_ / 4 + i / 2 % 2 * 8;
        fn(state_[s][i], k * C::V + v);
      }
    }
  }
  // fn(four elements, their place), in the order of piece_states.
  template <typename Fn>
  __device__ void ForEachPieceQuad(Fn fn) {
    float4* const piece = reinterpret_cast<float4*>(
        args_.piece_states +
        ((work_.n * args_.shape.H + work_.h) * args_.pieces + work_.piece) *
            (C::K * C::V) +
        column_ * C::K);
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        fn(*reinterpret_cast<float4*>(&state_[s][4 * i]),
           piece[(s * 8 + i) * 128 + Thread()]);
      }
    }
  }

  __device__ int64_t StateOffset() const {
    return (work_.n * args_.shape.H + work_.h) * (C::K * C::V);
  }

  // Of the sequence, in the direction of the pass.
  __device__ bool IsFirstPiece() const {
    return work_.piece == (C::kReverse ? args_.pieces - 1 : 0);
  }

  __device__ void LoadState() {
    if (C::kOutput && args_.pieces > 2 && !IsFirstPiece()) {
      ForEachPieceQuad([](float4& quad, float4& place) { quad = place; });
    } else if (!C::kOutput || args_.initial_state == nullptr) {
      ForEachStateElement([](float& element, int) { element = 0; });
    } else {
      const float* const from = args_.initial_state + StateOffset();
      ForEachStateElement(
          [from](float& element, int offset) { element = from[offset]; });
    }
  }

  __device__ void StoreState() {
    if constexpr (!C::kOutput) {
      ForEachPieceQuad([](float4& quad, float4& place) { place = quad; });
    } else if (args_.final_state != nullptr &&
               work_.piece == (C::kReverse ? 0 : args_.pieces - 1)) {
      float* const to = args_.final_state + StateOffset();
      ForEachStateElement(
          [to](float& element, int offset) { to[offset] = element; });
    }
  }

  // Stores y of a sequence's last chunk from a slab, only its own rows.
  __device__ void StoreRows(int chunk, uint32_t slab, int rows) {
    const int64_t first = work_.rows.first + chunk * kChunk;
    // Eight threads a row, 16 rows at a time.
    for (int row = warp_ * 4 + lane_ / 8; row < rows; row += 16) {
      __nv_bfloat16* const to =
          args_.y + ((first + row) * args_.shape.H + work_.h) * C::V + column_;
      reinterpret_cast<uint4*>(to)[lane_ % 8] =
          LoadShared128(slab + SlabOffset(row, lane_ % 8));
    }
  }

  const ScanArgs& args_;
  const ScanWork& work_;
  const int group_, warp_, lane_;
  const int column_;         // this warpgroup's first value
  const uint32_t fragment_;  // this lane's place in 16 rows of a slab, as
                             // ldmatrix and stmatrix want it
  alignas(16) float state_[C::kSlabs][32];
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_STATE_TILE_CUH_
