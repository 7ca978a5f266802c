// The state warpgroups of the state pass (chunk_gla_sm90_scan.cuh).
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_STATE_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_STATE_CUH_

#include "kernels/gla/chunk_gla_sm90_scan_shared.cuh"

namespace gla::internal {

// Warpgroup `group` of the block.
template <typename C>
class ScanState {
 public:
  __device__ ScanState(const ScanParams& params, const ScanWork& work,
                       ScanShared<C>& shared, int group)
      : params_(params),
        args_(params.args),
        work_(work),
        shared_(shared),
        group_(group),
        warp_(__shfl_sync(0xffffffff, threadIdx.x / 32 % 4, 0)),
        lane_(threadIdx.x % 32),
        column_(work.first_value + group * 64),
        fragment_(SlabOffset((lane_ & 7) + ((lane_ >> 4) << 3),
                             2 * warp_ + ((lane_ >> 3) & 1))) {}

  __device__ void Run() {
    LoadState();
#pragma unroll 1
    for (int i = 0; i < work_.chunks; ++i) Step(i);
    StoreState();
    if (C::kOutput && warp_ == 0 && lane_ == 0) TensorStoreWait();
  }

 private:
  using Stage = typename ScanShared<C>::Stage;

  __device__ void Step(int i) {
    const int stage = i % C::kStages;
    const int chunk = ChunkAt<C>(work_, i);
    const Stage& tiles = shared_.stage[stage];
    const auto& decay = shared_.decay[stage];
    BarrierWait(SharedAddress(&shared_.full[stage]), Parity<C::kStages>(i));

    if (C::kReverse) {
#pragma unroll
      for (int s = 0; s < C::kSlabs; ++s) Scale(s, decay[s].edge);
    }
    float y[32];
    if constexpr (C::kOutput) {
      Scores(i, chunk);
      StateOutput(tiles, chunk, y);
    }

    BarrierWait(SharedAddress(&shared_.x_full[stage]), Parity<C::kStages>(i));
    const uint32_t x_slab = SharedAddress(tiles.x[group_]);
    uint32_t x[4][4];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      LoadMatrixTransposed(x_slab + fragment_ + 2048 * step, x[step]);
    }
    const int rows = work_.rows.length - chunk * kChunk;
    if (rows < kChunk) MaskX(rows, x);
    if constexpr (C::kOutput) {
      BarrierWait(SharedAddress(&shared_.scored), i & 1);
      WgmmaFence();
      const uint64_t scores = SlabDescriptor(SharedAddress(shared_.scores));
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        Wgmma<Contract::kAlongColumns>(
            y, x[step], StepDescriptor<Contract::kAlongColumns>(scores, step),
            true);
      }
      WgmmaCommit();
    }
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
      if (decay[s].any_steep) Scale(s, decay[s].mid);
    }
    UpdateState(tiles, x);
    if constexpr (C::kOutput) {
      WgmmaWait<C::kSlabs>();
      Touch(y);
      __syncwarp();
      if (lane_ == 0) BarrierArrive(SharedAddress(&shared_.scores_empty));
      StoreY(chunk, x_slab, y);
    }
    FinishSlabs<0>(decay);
    Release(stage);
  }

  // This warpgroup's half of the masked scores A B^T: rows are A's tokens,
  // columns 32 of B's. `use` counts the steps of the pass.
  __device__ void Scores(int use, int chunk) {
    const int stage = use % C::kStages;
    const Stage& tiles = shared_.stage[stage];
    float p[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) p[i] = 0;
    WgmmaFence();
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
      const uint64_t a = SlabDescriptor(SharedAddress(tiles.a[s]));
      const uint64_t b =
          SlabDescriptor(SharedAddress(tiles.b[s]) + group_ * 32 * 128);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        Wgmma<Contract::kAlongColumns, Contract::kAlongColumns>(
            p, StepDescriptor<Contract::kAlongColumns>(a, step),
            StepDescriptor<Contract::kAlongColumns>(b, step), true);
      }
    }
    WgmmaCommit();
    WgmmaWait<0>();
    Touch(p);
    if (HasSteep<C>(shared_.decay[stage])) AddSteep(stage, chunk, p);
    BarrierWait(SharedAddress(&shared_.scores_empty), (use & 1) ^ 1);
    const uint32_t element =
        SharedAddress(shared_.scores) + SlabElement(Row(), Column());
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        // Eight columns on, eight rows on.
        const uint32_t address = (element ^ (j << 4)) + i * 1024;
        const int row = Row() + 8 * i, column = Column() + 8 * j;
        const float low = IsCausal<C>(row, column) ? p[4 * j + 2 * i] : 0;
        const float high =
            IsCausal<C>(row, column + 1) ? p[4 * j + 2 * i + 1] : 0;
        StoreShared32(address, PackBf16(low, high));
      }
    }
    FenceAsyncProxy();
    BarrierArrive(SharedAddress(&shared_.scored));
  }

  __device__ int Thread() const { return warp_ * 32 + lane_; }
  // The first of this thread's elements of the scores.
  __device__ int Row() const { return warp_ * 16 + lane_ / 4; }
  __device__ int Column() const { return 32 * group_ + lane_ % 4 * 2; }

  // Adds the terms q k e^(b_t - b_u) of a chunk's steep channels. (What their
  // gated operands add to the products is below 2^-kMaxLog2Decay of that.)
  // Works from global memory, eight channels at a time, both warpgroups
  // together: any block needs any slab.
  __device__ void AddSteep(int stage, int chunk, float (&p)[16]) {
#pragma unroll 1
    for (int group = 0; group < C::K / 8; ++group) {
      const auto& mid = shared_.decay[stage][group / 8].mid;
      const int j = group % 8 * 2;  // channel c: mid[c / 2][j + c % 2]
      bool any = false;
#pragma unroll 1
      for (int c = 0; c < 8; ++c) any |= mid[c / 2][j + c % 2] != 1;
      if (!any) continue;
      NamedBarrier(kSteepBarrier, 256);
      if (group_ == 0) {
        LoadChannels(chunk, group * 8);
        NamedBarrier(kSteepLoadBarrier, 128);
        AccumulateGates(Thread(), shared_.steep);
      }
      NamedBarrier(kSteepBarrier, 256);
#pragma unroll 1
      for (int c = 0; c < 8; ++c) {
        if (mid[c / 2][j + c % 2] != 1) AddChannel(c, p);
      }
    }
  }

  __device__ void LoadChannels(int chunk, int first) {
    const int row = chunk * kChunk + Thread() / 2;
    const bool valid = row < work_.rows.length;
    const int64_t offset =
        ((work_.rows.first + (valid ? row : 0)) * args_.shape.H + work_.h) *
            C::K +
        first;
    LoadSteepChannels<typename C::Gate>(args_, Thread(), valid, offset,
                                        shared_.steep);
  }

  __device__ void AddChannel(int c, float (&p)[16]) {
    const SteepChannels& channels = shared_.steep;
    const float* const b = channels.b[c];
    const __nv_bfloat16* const row_value =
        C::kReverse ? channels.k[c] : channels.q[c];
    const __nv_bfloat16* const column_value =
        C::kReverse ? channels.q[c] : channels.k[c];
#pragma unroll
    for (int e = 0; e < 16; ++e) {
      const int row = Row() + e / 2 % 2 * 8,
                column = Column() + e / 4 * 8 + e % 2;
      if (IsCausal<C>(row, column)) {
        const float difference =
            C::kReverse ? b[column] - b[row] : b[row] - b[column];
        p[e] += args_.scale * __bfloat162float(row_value[row]) *
                __bfloat162float(column_value[column]) * Exp2(difference);
      }
    }
  }

  // y = state^T A^T. Where segments meet, also stores the state as it was
  // rounded for that.
  __device__ void StateOutput(const Stage& tiles, int chunk, float (&y)[32]) {
    uint8_t* const segment = SegmentState(chunk);
#pragma unroll
    for (int i = 0; i < 32; ++i) y[i] = 0;
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
      const uint64_t slab = SlabDescriptor(SharedAddress(tiles.a[s]));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t a[2][4];
        PackOperand(state_[s], 2 * half, a[0]);
        PackOperand(state_[s], 2 * half + 1, a[1]);
        WgmmaFence();
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          Wgmma<Contract::kAlongColumns>(
              y, a[i],
              StepDescriptor<Contract::kAlongColumns>(slab, 2 * half + i),
              true);
        }
        WgmmaCommit();
        if (segment != nullptr) {
          StoreHalfSlab(segment + s * (C::V / 64) * kSlabBytes, half, a);
        }
        WgmmaWait<1>();  // Frees the registers of earlier groups.
      }
    }
  }

  // state += x^T B, a group of products a slab.
  __device__ void UpdateState(const Stage& tiles, const uint32_t (&x)[4][4]) {
    WgmmaFence();
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
      const uint64_t slab = SlabDescriptor(SharedAddress(tiles.b[s]));
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        Wgmma<Contract::kAlongRows>(
            state_[s], x[step],
            StepDescriptor<Contract::kAlongRows>(slab, step), true);
      }
      WgmmaCommit();
    }
  }

  // Waits for slab after slab of the update and decays it.
  template <int kSlab>
  __device__ void FinishSlabs(const SlabDecay (&decay)[C::kSlabs]) {
    if constexpr (kSlab < C::kSlabs) {
      WgmmaWait<C::kSlabs - 1 - kSlab>();
      Touch(state_[kSlab]);
      if (!C::kReverse) Scale(kSlab, decay[kSlab].edge);
      FinishSlabs<kSlab + 1>(decay);
    }
  }

  // Multiplies the channels of a slab by `factor`.
  __device__ void Scale(int s, const float (&factor)[4][20]) {
    const float4* const own =
        reinterpret_cast<const float4*>(factor[lane_ % 4]);
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      const float4 f = own[j / 2];
      state_[s][4 * j] *= f.x;
      state_[s][4 * j + 1] *= f.y;
      state_[s][4 * j + 2] *= f.x;
      state_[s][4 * j + 3] *= f.y;
      state_[s][4 * j + 4] *= f.z;
      state_[s][4 * j + 5] *= f.w;
      state_[s][4 * j + 6] *= f.z;
      state_[s][4 * j + 7] *= f.w;
    }
  }

  // The state warps of all blocks of the cluster tell all gate warps.
  __device__ void Release(int stage) {
    if (C::kOutput && warp_ == 0 && lane_ == 0) TensorStoreWaitRead();
    __syncwarp();
    const uint32_t empty = SharedAddress(&shared_.empty[stage]);
    if constexpr (C::kCluster == 1) {
      if (lane_ == 0) BarrierArrive(empty);
    } else if (lane_ < C::kCluster) {
      ClusterBarrierArrive(ClusterAddress(empty, lane_));
    }
  }

  // Starts the store of a chunk's y, from the slab of its x.
  __device__ void StoreY(int chunk, uint32_t slab, const float (&y)[32]) {
    __syncwarp();  // Each warp read and writes its own 16 columns.
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      uint32_t a[4];
      PackOperand(y, pair, a);
      StoreMatrixTransposed(slab + fragment_ + 2048 * pair, a);
    }
    FenceAsyncProxy();
    const int rows = work_.rows.length - chunk * kChunk;
    if (rows < kChunk) {
      NamedBarrier(kStoreBarrier + group_, 128);
      StoreRows(chunk, slab, rows);
    } else if (warp_ != 0) {
      NamedBarrierArrive(kStoreBarrier + group_, 128);
    } else {
      NamedBarrier(kStoreBarrier + group_, 128);
      if (lane_ == 0) {
        TensorStore(&params_.y, work_.h * C::V + column_,
                    work_.rows.first + chunk * kChunk, slab);
        TensorStoreCommit();
      }
    }
  }

  // Of a sequence's last chunk, only its own rows.
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

  // Zeros in the x of rows past the sequence, whatever lies there.
  __device__ void MaskX(int rows, uint32_t (&x)[4][4]) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = 16 * step + i / 2 * 8 + lane_ % 4 * 2;
        if (row >= rows) x[step][i] = 0;
        if (row + 1 == rows) x[step][i] &= 0xffff;
      }
    }
  }

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

  __device__ void LoadState() {
    constexpr int64_t kState = C::K * C::V;
    const int64_t head = work_.n * args_.shape.H + work_.h;
    const float* from = nullptr;
    if (args_.pieces > 1) {
      if constexpr (C::kOutput) {
        from =
            args_.piece_states + (head * args_.pieces + work_.piece) * kState;
      }
    } else if (args_.initial_state != nullptr) {
      from = args_.initial_state + head * kState;
    }
    if (from == nullptr) {
      ForEachStateElement([](float& element, int) { element = 0; });
    } else {
      ForEachStateElement(
          [from](float& element, int offset) { element = from[offset]; });
    }
  }

  __device__ void StoreState() {
    constexpr int64_t kState = C::K * C::V;
    const int64_t head = work_.n * args_.shape.H + work_.h;
    float* to = nullptr;
    if constexpr (!C::kOutput) {
      to = args_.piece_states + (head * args_.pieces + work_.piece) * kState;
    } else if (args_.final_state != nullptr &&
               work_.piece == (C::kReverse ? 0 : args_.pieces - 1)) {
      to = args_.final_state + head * kState;
    }
    if (to == nullptr) return;
    ForEachStateElement(
        [to](float& element, int offset) { to[offset] = element; });
  }

  // Where the state that this chunk's y is formed from is to be stored; null if
  // it is not the first of a segment in the direction of the pass.
  __device__ uint8_t* SegmentState(int chunk) const {
    if (args_.segment_states == nullptr) return nullptr;
    const bool is_first = C::kReverse
                              ? chunk % kSegmentChunks == kSegmentChunks - 1 ||
                                    chunk == work_.rows.chunks() - 1
                              : chunk % kSegmentChunks == 0;
    if (!is_first) return nullptr;
    const int64_t slot = work_.first_segment + chunk / kSegmentChunks;
    return reinterpret_cast<uint8_t*>(args_.segment_states) +
           (slot * args_.shape.H + work_.h) * (C::K * C::V * 2) +
           column_ / 64 * kSlabBytes;
  }

  // Half of a slab's channels, as operands, to a slab as chunk_gla_sm90.h has
  // it: 16 bytes of a row a lane.
  __device__ void StoreHalfSlab(uint8_t* slab, int half,
                                const uint32_t (&a)[2][4]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t piece[4] = {a[0][i], a[0][2 + i], a[1][i], a[1][2 + i]};
      TransposeQuad(piece);
      *reinterpret_cast<uint4*>(
          slab + SlabOffset(Row() + 8 * i, 4 * half + lane_ % 4)) =
          make_uint4(piece[0], piece[1], piece[2], piece[3]);
    }
  }

  const ScanParams& params_;
  const ScanArgs& args_;
  const ScanWork& work_;
  ScanShared<C>& shared_;
  const int group_, warp_, lane_;
  const int column_;         // this warpgroup's first value
  const uint32_t fragment_;  // this lane's place in 16 rows of a slab, as
                             // ldmatrix and stmatrix want it
  float state_[C::kSlabs][32];
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_STATE_CUH_
