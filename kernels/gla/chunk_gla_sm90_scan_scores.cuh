// A chunk's scores in the state warpgroups of the state pass
// (chunk_gla_sm90_scan.cuh): formed here, or as the forward pass left them.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_SCORES_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_SCORES_CUH_

#include "kernels/gla/chunk_gla_sm90_state_tile.cuh"

namespace gla::internal {

template <typename C>
class ScanScores : protected StateTile<C> {
 protected:
  __device__ ScanScores(const ScanParams& params, const ScanWork& work,
                        ScanShared<C>& shared, int group)
      : StateTile<C>(params.args, work, group), shared_(shared) {}

  using Tile = StateTile<C>;
  using Tile::args_, Tile::work_, Tile::group_, Tile::warp_, Tile::lane_;
  using Tile::Row;

  // The groups of products that StartScores starts.
  static constexpr int kScoreGroups = C::kFormsScores ? 1 : 0;

  // Starts this warpgroup's half of the scores A B^T of a stage, if they are
  // formed here: rows are A's tokens, columns 32 of B's.
  __device__ void StartScores(int stage, float (&p)[16]) {
    if constexpr (C::kFormsScores) {
      const auto& tiles = shared_.stage[stage];
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
              StepDescriptor<Contract::kAlongColumns>(b, step), s + step > 0);
        }
      }
      WgmmaCommit();
    }
  }

  // The scores of this thread's two rows' tokens with themselves, which need no
  // gate.
  __device__ void LoadOwnScores(const StageDecay<C> (&decay)[C::kSlabs],
                                float (&own)[2]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      own[i] = 0;
#pragma unroll
      for (int s = 0; s < C::kSlabs; ++s) {
        own[i] += decay[s].own_score[Row() + 8 * i];
      }
      own[i] *= args_.scale;
    }
  }

  // Masks and stores them once they are there, in step i.
  __device__ void StoreScores(int i, int chunk, const float (&own)[2],
                              float (&p)[16]) {
    WaitScoresEmpty(i);
    const auto& decay = shared_.decay[i % C::kStages];
    if (HasSteep<C>(decay)) {
      const auto is_steep = [&decay](int channel) {
        return decay[channel / 64]
                   .mid[FactorRow(channel)][FactorColumn(channel)] != 1;
      };
      Tile::AddSteepScores(chunk, is_steep, shared_.steep, shared_.meetings, p);
    }
    // In the place of products of rounded operands.
    float* const kept = args_.own_scores == nullptr
                            ? nullptr
                            : OwnScores(args_.own_scores, args_.shape,
                                        work_.chunk_slot + chunk, work_.h);
    Tile::ForOwnScores(p, [&](int i, float& score) {
      score = own[i];
      if (kept != nullptr) kept[Row() + 8 * i] = own[i];
    });
    const auto has_rest = [this](int j) {
      return C::kScoreRests == kChunk || C::kKeeps ||
             (C::kScoreRests > 0 && 32 * group_ + 8 * j < C::kScoreRests);
    };
    const uint32_t element = SharedAddress(shared_.scores[0][0]) +
                             group_ * kHalfSlabBytes +
                             HalfSlabOffset(Row(), 0) + lane_ % 4 * 4;
    Tile::template StoreScores<512, C::kScoreTileBytes>(element, IsCausal<C>,
                                                        has_rest, p);
    FenceAsyncProxy();
    BarrierArrive(SharedAddress(&shared_.scored));
  }

  // y += x^T scores^T. Rows of scores are queries, in the reverse pass too.
  __device__ void ScoresOutput(int i, const uint32_t (&x)[4][4],
                               float (&y)[32]) {
    if constexpr (C::kGates) {
      BarrierWait(SharedAddress(&shared_.scored), (i - work_.silent) & 1);
    }
    const auto& scores = shared_.scores[C::kGates ? 0 : i % C::kStages];
    WgmmaFence();
    if constexpr (C::kReverse) {
      AddQueries<3>(x, scores, y);
    } else {
      AddKeys<kChunk>(x, scores[0], y);
      if constexpr (C::kScoreRests > 0) {
        AddKeys<C::kScoreRests>(x, scores[1], y);
      }
    }
    WgmmaCommit();
  }

  using ScoreTile = uint8_t[C::kScoreTileBytes];

  // Forward: y += x^T of scores, or of their rests, of the first kKeys keys. 16
  // keys meet all queries, of which earlier ones have zeros. (Products for only
  // the last columns of y would wait for each other.)
  template <int kKeys>
  static __device__ void AddKeys(const uint32_t (&x)[4][4],
                                 const ScoreTile& scores, float (&y)[32]) {
    constexpr auto kAlong = Contract::kAlongColumns;
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      const uint64_t half =
          HalfSlabDescriptor(SharedAddress(scores) + step / 2 * kHalfSlabBytes);
      Wgmma<kAlong>(y, x[step], StepDescriptor<kAlong>(half, step % 2), true);
    }
  }

  // Back: y += x^T of scores and of their rests, of the first 16 (kStep + 1)
  // queries, 16 at a time, the last first. They meet only keys up to theirs.
  template <int kStep>
  static __device__ void AddQueries(const uint32_t (&x)[4][4],
                                    const ScoreTile (&scores)[C::kScoreParts],
                                    float (&y)[32]) {
    constexpr int kLeading = kHalfSlabBytes - 32 * 64;  // to the same row
    auto& met = reinterpret_cast<float(&)[8 * (kStep + 1)]>(y);
#pragma unroll
    for (int part = 0; part < C::kScoreParts; ++part) {
      const uint32_t rows = SharedAddress(scores[part]) + kStep * 16 * 64;
      Wgmma<Contract::kAlongRows>(met, x[kStep],
                                  HalfSlabDescriptor<kLeading>(rows), true);
    }
    if constexpr (kStep > 0) {
      WgmmaFence();  // between products of different shapes
      AddQueries<kStep - 1>(x, scores, y);
    }
  }

  // Starts the store of a chunk's scores for the reverse pass, each block of
  // the cluster of one part.
  __device__ void KeepScores(int chunk) {
    if (IsStorer()) {
      const int part = work_.first_value / 128;
      uint8_t* const to =
          Scores(args_, work_.chunk_slot + chunk, work_.h)[part];
      const uint32_t from = SharedAddress(shared_.scores[0][part]);
      BulkStore(to, from, kEarlyScoreBytes);
      BulkStore(to + kEarlyScoreBytes, from + kLateScores, kLateScoreBytes);
      TensorStoreCommit();
    }
    __syncwarp();
  }

  // Starts the load of what that left of step i's chunk, once the scores before
  // have been read.
  __device__ void LoadScores(int i) {
    if (IsStorer()) {
      WaitScoresEmpty(i);
      auto& scores = shared_.scores[0];
      const uint32_t full = SharedAddress(&shared_.scored);
      BarrierArriveExpect(full, sizeof(scores));
      BulkLoad(SharedAddress(scores),
               Scores(args_, work_.chunk_slot + ChunkAt<C>(work_, i), work_.h),
               sizeof(scores), full);
    }
    __syncwarp();
  }

  // One of the threads that store y.
  __device__ bool IsStorer() const {
    return group_ == 0 && warp_ == 0 && lane_ == 0;
  }

  __device__ void WaitScoresEmpty(int i) {
    BarrierWait(SharedAddress(&shared_.scores_empty),
                ((i - work_.silent) & 1) ^ 1);
  }
  // As a warp, which is done with them.
  __device__ void FreeScores() {
    if (lane_ == 0) BarrierArrive(SharedAddress(&shared_.scores_empty));
  }

  ScanShared<C>& shared_;
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_SCORES_CUH_
