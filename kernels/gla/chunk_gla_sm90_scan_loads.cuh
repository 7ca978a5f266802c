// The load warpgroup of the state pass where operands come gated
// (chunk_gla_sm90_scan.cuh): one thread loads; without output, two warps also
// multiply up the decays of the piece.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_LOADS_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_LOADS_CUH_

#include "kernels/gla/chunk_gla_sm90_scan_shared.cuh"

namespace gla::internal {

template <typename C>
class ScanLoads {
 public:
  __device__ ScanLoads(const ScanParams& params, const ScanWork& work,
                       ScanShared<C>& shared, int rank)
      : params_(params), work_(work), shared_(shared), rank_(rank) {}

  __device__ void Run() {
    const int thread = threadIdx.x % 128;
    if (threadIdx.x == C::kLoader) {
#pragma unroll 1
      for (int i = 0; i < work_.chunks; ++i) Load(i);
    }
    if (!C::kOutput && thread >= 32 && thread < 32 + C::K / 4) {
      MultiplyDecays(thread - 32);
    }
  }

 private:
  using Operands = ChunkOperands<C::K>;
  static_assert(C::K / 4 <= 64, "two warps have all channels' decays");

  // This block's share of step i's operands, for the whole cluster, and its x.
  // With output, A and the decays come as soon as those of the stage's last
  // step have been read; else the decays come with B.
  __device__ void Load(int i) {
    const int stage = i % C::kStages;
    auto& tiles = shared_.stage[stage];
    const uint32_t full = SharedAddress(&shared_.full[stage]);
    const uint32_t x_full = SharedAddress(&shared_.x_full[stage]);
    const int64_t slot = work_.chunk_slot + ChunkAt<C>(work_, i);
    const Operands& from = static_cast<const Operands*>(
        params_.args.operands)[slot * params_.args.shape.H + work_.h];
    const auto& from_a = C::kReverse ? from.k : from.q;
    const auto& from_b = C::kReverse ? from.q : from.k;
    const auto load_decay = [&](int and_bytes) {
      auto& decay = shared_.decay[stage];
      BarrierArriveExpect(full, sizeof(decay) + and_bytes);
      LoadShare(decay, from.decay, full);
    };
    const bool has_output = C::kOutput && i >= work_.silent;
    if constexpr (C::kOutput) {
      AwaitReleased(i, shared_.a_empty, shared_.other_a_empty);
      if (has_output) {
        constexpr int kRestBytes = C::kOwnRest ? sizeof(from.own_rest) : 0;
        load_decay(sizeof(tiles.a) + sizeof(from.scores) + kRestBytes);
        LoadShare(tiles.a, from_a, full);
        LoadScores(shared_.scores[stage][0], from.scores, full);
        if constexpr (C::kOwnRest) {
          LoadShare(shared_.own_rest.stage[stage], from.own_rest, full);
        }
      }
    }
    AwaitReleased(i, shared_.empty, shared_.other_empty);
    if (!has_output) load_decay(0);
    BarrierArriveExpect(x_full, sizeof(tiles.b) + sizeof(tiles.x));
    LoadShare(tiles.b, from_b, x_full);
    LoadX<C>(params_, work_, shared_, i);
  }

  // Waits until both blocks have released what was where step i's will be: once
  // its own has, a loader tells the other's, whose block so outlives the last
  // that it is told.
  __device__ void AwaitReleased(int i, uint64_t (&own)[C::kStages],
                                uint64_t (&others)[C::kStages]) {
    if (i < C::kStages) return;
    const int stage = i % C::kStages;
    const uint32_t before = Parity<C::kStages>(i) ^ 1;
    const uint32_t others_place = SharedAddress(&others[stage]);
    BarrierWait(SharedAddress(&own[stage]), before);
    ClusterBarrierArrive(ClusterAddress(others_place, rank_ ^ 1));
    BarrierWait(others_place, before);
  }

  // This block's part of an array, to the same place in all blocks.
  template <typename T, int kSize>
  __device__ void LoadShare(T (&to)[kSize], const T (&from)[kSize],
                            uint32_t full) {
    constexpr int kShare = kSize / C::kCluster;
    const int first = rank_ * kShare;
    BulkLoadMulticast(SharedAddress(&to[first]), &from[first],
                      kShare * sizeof(T), full, (1 << C::kCluster) - 1);
  }

  // The same of scores; forward they lie apart.
  __device__ void LoadScores(uint8_t (&to)[C::kScoreTileBytes],
                             const uint8_t (&from)[kScoreBytes],
                             uint32_t full) {
    if constexpr (C::kReverse) {
      LoadShare(to, from, full);
    } else {
      static_assert(C::kCluster == 2);
      const bool late = rank_ == 1;
      BulkLoadMulticast(SharedAddress(to) + (late ? kLateScores : 0),
                        from + (late ? kEarlyScoreBytes : 0),
                        late ? kLateScoreBytes : kEarlyScoreBytes, full,
                        (1 << C::kCluster) - 1);
    }
  }

  // Of four channels a thread.
  __device__ void MultiplyDecays(int thread) {
    const int slab = thread / 16, channel = thread % 16 * 4;
    float product[4] = {1, 1, 1, 1};
#pragma unroll 1
    for (int i = 0; i < work_.chunks; ++i) {
      const int stage = i % C::kStages;
      const SlabMid& decay = shared_.decay[stage][slab];
      BarrierWait(SharedAddress(&shared_.full[stage]), Parity<C::kStages>(i));
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        // FactorRow and FactorColumn, of a slab's own channel.
        const int row = (channel + c) % 8 / 2;
        const int column = (channel + c) / 8 * 2 + c % 2;
        product[c] *= decay.mid[row][column];
      }
      FenceAsyncProxy();  // They have been read.
      BarrierArrive(SharedAddress(&shared_.empty[stage]));
    }
    float* const to = PieceDecay<C>(params_.args, work_, slab) + channel;
    for (int c = 0; c < 4; ++c) to[c] = product[c];
  }

  const ScanParams& params_;
  const ScanWork& work_;
  ScanShared<C>& shared_;
  const int rank_;
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_LOADS_CUH_
