// Scores, dA, dS and dv in the one-kernel backward pass
// (chunk_gla_sm90_backward.cuh).
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_VALUES_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_VALUES_CUH_

#include "kernels/gla/chunk_gla_sm90_backward_shared.cuh"
#include "kernels/gla/chunk_gla_sm90_state_tile.cuh"

namespace gla::internal {

// Main warpgroup `group` of two: 64 values of dS and dv, and 32 columns of a
// chunk's scores and dA. BackwardMain says in what order.
template <typename C>
class BackwardValues : protected StateTile<C> {
 protected:
  __device__ BackwardValues(const BackwardParams& params,
                            BackwardShared<C>& shared, int group)
      : StateTile<C>(params.scan, shared.work, group),
        params_(params),
        shared_(shared) {}

  using Tile = StateTile<C>;
  using Tile::args_, Tile::work_, Tile::group_, Tile::warp_, Tile::lane_;
  using Tile::column_, Tile::fragment_, Tile::state_;
  using Keys = typename BackwardShared<C>::Keys;
  using Rows = uint8_t[2][kSlabBytes];
  using Slab = uint8_t[kSlabBytes];

  static constexpr Contract kRows = Contract::kAlongRows;
  static constexpr Contract kColumns = Contract::kAlongColumns;

  // The thread that stores this warpgroup's dv.
  __device__ bool IsStorer() const { return warp_ == 0 && lane_ == 0; }

  // Zeros in the rows past the sequence, whatever lies there. By a warpgroup.
  __device__ void MaskRows(int rows, Slab& slab) {
    const int piece = lane_ % 8, first = Tile::Thread() / 8;
    for (int row = rows + first; row < kChunk; row += 16) {
      *reinterpret_cast<uint4*>(slab + SlabOffset(row, piece)) = {};
    }
    FenceAsyncProxy();
  }

  // --- Scores and dA: this warpgroup's 32 columns of both.

  // Scores, masked, to shared memory, steep channels' terms and own scores with
  // them.
  __device__ void StoreScores(int stage, int chunk, bool any_steep,
                              float (&p)[16]) {
    if (any_steep) {
      const auto is_steep = [this, stage](int channel) {
        return IsSteepDecay(shared_.decay[stage][channel]);
      };
      Tile::AddSteepScores(chunk, is_steep, shared_.SteepOfScores(),
                           shared_.meetings, p);
    }
    Tile::ForOwnScores(p, [this, stage](int i, float& score) {
      score = shared_.own_scores[stage][Tile::Row() + 8 * i];
    });
    Tile::StoreScores(
        shared_.scores[0], IsCausal<C>, [](int) { return true; }, p);
  }

  // p = k^ q~^T. Of rests those of k^ are enough: own scores are apart.
  __device__ void StartScores(int stage, float (&p)[16]) {
    const Keys& keys = shared_.keys[stage];
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
      AddProduct(keys.k[s], keys.q[s], s > 0, p);
      AddProduct(shared_.KeyRest(stage, s), keys.q[s], true, p);
    }
  }

  // d_a = d_o v^T.
  __device__ void StartScoreGradients(const Rows& v, const Rows& d_o,
                                      float (&d_a)[16]) {
#pragma unroll
    for (int s = 0; s < 2; ++s) AddProduct(d_o[s], v[s], s > 0, d_a);
  }

  // dA, masked, to shared memory, its diagonal apart; its rest where query and
  // key are of the same 16 tokens.
  __device__ void StoreScoreGradients(float (&d_a)[16]) {
    Tile::ForOwnScores(d_a, [this](int i, float& own) {
      shared_.own_d_a[Tile::Row() + 8 * i] = own;
    });
    const auto has_key = [](int query, int key) { return key < query; };
    const auto has_rest = [this](int j) {
      return warp_ / 2 == group_ && j / 2 == warp_ % 2;
    };
    Tile::StoreScores(shared_.ScoreGradients(0), has_key, has_rest, d_a);
  }
  __device__ void AddProduct(const uint8_t (&a)[kSlabBytes],
                             const uint8_t (&b)[kSlabBytes], bool accumulate,
                             float (&d)[16]) {
    const uint64_t from_a = SlabDescriptor(SharedAddress(a));
    const uint64_t from_b =
        SlabDescriptor(SharedAddress(b) + group_ * 32 * 128);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      Wgmma<kColumns, kColumns>(d, StepDescriptor<kColumns>(from_a, step),
                                StepDescriptor<kColumns>(from_b, step),
                                accumulate || step > 0);
    }
  }

  __device__ bool HasSteep(int stage) const {
    bool any = false;
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) any |= shared_.any_steep[stage][s] != 0;
    return any;
  }

  // --- The state.

  // fn(e^B, negative if steep, and whether it is) gives a channel's factor.
  template <typename Fn>
  __device__ void Scale(const float (&decay)[C::K], Fn fn) {
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float2 pair = *reinterpret_cast<const float2*>(
            &decay[64 * s + 8 * j + lane_ % 4 * 2]);
        const float factor[2] = {fn(pair.x, IsSteepDecay(pair.x)),
                                 fn(pair.y, IsSteepDecay(pair.y))};
#pragma unroll
        for (int e = 0; e < 4; ++e) state_[s][4 * j + e] *= factor[e % 2];
      }
    }
  }
  __device__ void ScaleByEdge(const float (&decay)[C::K], bool any_steep) {
    if (any_steep) {
      Scale(decay, [](float all, bool steep) { return steep ? 1 : all; });
    } else {
      Scale(decay, [](float all, bool) { return all; });
    }
  }
  __device__ void ScaleByMid(const float (&decay)[C::K]) {
    Scale(decay, [](float all, bool steep) { return steep ? -all : 1; });
  }

  // D: the state, rounded, as A operands.
  using PackedD = uint32_t[C::kSlabs][4][4];
  __device__ void PackD(PackedD& d) {
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        PackOperand(state_[s], step, d[s][step]);
      }
    }
  }
  // And to shared memory.
  __device__ void StoreD(int stage, const PackedD& d) {
    const int row = warp_ * 16 + lane_ % 16, half = lane_ / 16;
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
      const uint32_t slab =
          SharedAddress(shared_.StateGradient(stage, s)[group_]);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        StoreMatrix(slab + SlabOffset(row, 2 * step + half), d[s][step]);
      }
    }
  }

  // y = D^T k^^T + d_o^T scores^T, but for the rests of the last 16 keys, which
  // are in `late` unless kRoomy. Returns with at most one group of products
  // under way.
  __device__ void ValueProducts(int stage, const uint32_t (&x)[4][4],
                                float (&y)[32], float (&late)[8]) {
#pragma unroll
    for (int half = 0; half < 2 * C::kSlabs; ++half) {
      const int s = half / 2, first = half % 2 * 2;
      const uint64_t slab =
          SlabDescriptor(SharedAddress(shared_.keys[stage].k[s]));
      uint32_t a[2][4];
      PackOperand(state_[s], first, a[0]);
      PackOperand(state_[s], first + 1, a[1]);
      WgmmaFence();
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        Wgmma<kColumns>(y, a[i], StepDescriptor<kColumns>(slab, first + i),
                        half + i > 0);
        const uint32_t rest = SharedAddress(shared_.KeyRest(stage, s));
        if constexpr (C::kRoomy) {
          Wgmma<kColumns>(
              y, a[i],
              StepDescriptor<kColumns>(SlabDescriptor(rest), first + i), true);
        } else {
          Wgmma<kColumns>(late, a[i],
                          StepDescriptor<kColumns>(
                              SlabDescriptor(rest + 48 * 128), first + i),
                          half + i > 0);
        }
      }
      WgmmaCommit();
      WgmmaWait<1>();  // Frees the registers of earlier groups.
    }
    WgmmaFence();
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      Tile::template AddTokens<kColumns>(x, shared_.scores[part], y);
    }
    WgmmaCommit();
  }

  // state += x^T q~.
  __device__ void UpdateState(const Keys& keys, const uint32_t (&x)[4][4]) {
    WgmmaFence();
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
      Tile::template AddTokens<kRows>(x, keys.q[s], state_[s]);
    }
    WgmmaCommit();
  }

  // dv to a slab.
  __device__ void PutValues(uint32_t slab, const uint32_t (&y)[4][4]) {
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      StoreMatrixTransposed(slab + fragment_ + 2048 * pair, y[pair]);
    }
    FenceAsyncProxy();
  }
  // And from there, once the warpgroup has met.
  __device__ void StoreValues(int chunk, int rows, uint32_t slab) {
    if (rows < kChunk) {
      Tile::StoreRows(chunk, slab, rows);
    } else if (IsStorer()) {
      TensorStore(&params_.dv, work_.h * C::V + column_,
                  work_.rows.first + chunk * kChunk, slab);
      TensorStoreCommit();
    }
  }

  const BackwardParams& params_;
  BackwardShared<C>& shared_;
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_VALUES_CUH_
