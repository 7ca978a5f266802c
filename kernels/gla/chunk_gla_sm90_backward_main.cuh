// The main warpgroups of the one-kernel backward pass
// (chunk_gla_sm90_backward.cuh).
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_MAIN_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_MAIN_CUH_

#include "kernels/gla/chunk_gla_sm90_backward_flow.cuh"
#include "kernels/gla/chunk_gla_sm90_backward_shared.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_finish.cuh"
#include "kernels/gla/chunk_gla_sm90_state_tile.cuh"

namespace gla::internal {

// Warpgroup `group` of two: 64 values of dS and dv, and its share of dq, dk and
// dg (BackwardConfig::kTokens).
template <typename C>
class BackwardMain : StateTile<C> {
 public:
  __device__ BackwardMain(const BackwardParams& params, const ScanWork& work,
                          BackwardShared<C>& shared, int group)
      : StateTile<C>(params.scan, work, group),
        params_(params),
        shared_(shared),
        slab_(C::kSlabs == 2 ? group : 0),
        thread_{warp_, lane_, C::kSlabs == 2 ? 0 : 32 * group} {}

  __device__ void Run() {
    if (IsLoader()) {
      LoadState(0);
      LoadRows(0);
      LoadRows(1);
    }
    Tile::LoadState();
#pragma unroll 1
    for (int i = 0; i < work_.chunks; ++i) Step(i);
    Tile::StoreState();
    if (IsStorer()) TensorStoreWaitRead();
  }

 private:
  using Tile = StateTile<C>;
  using Tile::args_, Tile::work_, Tile::group_, Tile::warp_, Tile::lane_;
  using Tile::column_, Tile::fragment_, Tile::state_;
  using Keys = typename BackwardShared<C>::Keys;
  using State = typename BackwardShared<C>::State;
  using Rows = uint8_t[2][kSlabBytes];
  using Gate = typename C::Gate;

  static constexpr Contract kRows = Contract::kAlongRows;
  static constexpr Contract kColumns = Contract::kAlongColumns;
  static constexpr int kSize = C::kTokens / 2;  // accumulators of dq~, of dk^
  using Accumulators = float[kSize];
  using Scaling = typename C::Scaling;
  using Finish = GradFinish<Gate, kSize, Scaling>;
  static constexpr int kStateBytes = sizeof(State);

  __device__ bool IsStorer() const { return warp_ == 0 && lane_ == 0; }
  __device__ bool IsLoader() const { return group_ == 0 && IsStorer(); }

  __device__ void Step(int i) {
    const int stage = i % 2, chunk = ChunkAt<C>(work_, i);
    Keys& keys = shared_.keys[stage];
    Rows& v = shared_.rows[2 * i % 3];
    Rows& d_o = shared_.rows[(2 * i + 1) % 3];
    const int rows = work_.rows.length - chunk * kChunk;
    BarrierWait(SharedAddress(&shared_.gated[stage]), Parity<2>(i));
    ScaleByEdge(shared_.decay[stage]);
    StoreD();
    BarrierWait(SharedAddress(&shared_.rows_full[2 * i % 3]), Parity<3>(2 * i));
    BarrierWait(SharedAddress(&shared_.rows_full[(2 * i + 1) % 3]),
                Parity<3>(2 * i + 1));
    if (rows < kChunk) MaskRows(rows, v, d_o);

    const bool any_steep = FormScores(stage, chunk, v, d_o);
    if (IsStorer()) TensorStoreWaitRead();  // dv of the chunk before
    NamedBarrier(kBackwardMainBarrier, C::kMainThreads);
    if (IsLoader()) LoadRows(2 * i + 2);

    // dv^T = D^T k^^T + d_o^T scores^T;  dS^T = mid D^T + d_o^T q~;
    // dk^ = D v^T
    uint32_t x[4][4];
    const uint32_t x_slab = SharedAddress(d_o[group_]);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      LoadMatrixTransposed(x_slab + fragment_ + 2048 * step, x[step]);
    }
    float y[32] = {};
    ValueProducts(stage, x, y);
    if (any_steep) ScaleByMid(shared_.decay[stage]);
    UpdateState(keys, x);
    Accumulators k = {};
    WgmmaFence();
    StateProduct(shared_.d_state, v, k);
    WgmmaCommit();
    WgmmaWait<2>();
    Touch(y);
    uint32_t packed[4][4];
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) PackOperand(y, pair, packed[pair]);
    WgmmaWait<1>();
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) Touch(state_[s]);

    // dq~ = S d_o^T + k^ dA^T;  dk^ += q~ dA
    BarrierWait(SharedAddress(&shared_.state_full), i & 1);
    Accumulators q = {};
    WgmmaFence();
    StateProduct(shared_.state, d_o, q);
    KeyProducts(stage, q);
    WgmmaCommit();
    WgmmaWait<1>();
    Touch(k);
    LoadRowsIfFree(2 * i + 3);
    const GradChunk grad_chunk = MakeGradChunk(stage, chunk, rows);
    Scaling parts = {};
    const Finish finish(params_.grad, grad_chunk, thread_, parts);
    float flow[2];
    finish.KeyFlow(
        k, [](int, int) { return 1.0f; }, flow);
    WgmmaFence();
    QueryProducts(stage, k);
    WgmmaCommit();
    AddStateFlow(shared_.decay[stage], flow);
    WgmmaWait<0>();
    Touch(q);
    Touch(k);
    NamedBarrier(kBackwardMainBarrier, C::kMainThreads);
    // The operands, S, D and the scores have been read.
    if constexpr (C::kSlabs == 1) ReadStateFlow(i, flow);
    if (IsLoader()) LoadState(i + 1);
    StoreValues(chunk, rows, x_slab, packed);
    FinishKeys(stage, finish, grad_chunk, any_steep, parts, q, k, flow);
    FenceAsyncProxy();
    BarrierArrive(SharedAddress(&shared_.finished[stage]));
    // Before the next scores replace what steep channels were formed from.
    if (any_steep) NamedBarrier(kBackwardMainBarrier, C::kMainThreads);
  }

  // --- Loads.

  // The state before step i's chunk.
  __device__ void LoadState(int i) {
    if (i >= work_.chunks) return;
    const uint32_t full = SharedAddress(&shared_.state_full);
    BarrierArriveExpect(full, kStateBytes);
    const int64_t state =
        (work_.chunk_slot + ChunkAt<C>(work_, i)) * args_.shape.H + work_.h;
    TensorLoad(SharedAddress(shared_.state), &params_.states, 0,
               state * (kStateBytes / 128), full);
  }

  // Number `use` of the ring: v and d_o of one step after the other.
  __device__ void LoadRows(int use) {
    if (use / 2 >= work_.chunks) return;
    const int slot = use % 3;
    const uint32_t full = SharedAddress(&shared_.rows_full[slot]);
    BarrierArriveExpect(full, sizeof(Rows));
#pragma unroll
    for (int group = 0; group < 2; ++group) {
      TensorLoad(SharedAddress(shared_.rows[slot][group]),
                 use % 2 == 0 ? &params_.v : &params_.d_o,
                 work_.h * C::V + group * 64,
                 work_.rows.first + ChunkAt<C>(work_, use / 2) * kChunk, full);
    }
  }

  // The same once both warpgroups have come here.
  __device__ void LoadRowsIfFree(int use) {
    if (group_ == 0 && warp_ == 0) {
      NamedBarrier(kBackwardRowsBarrier, C::kMainThreads);
      if (lane_ == 0) LoadRows(use);
    } else {
      NamedBarrierArrive(kBackwardRowsBarrier, C::kMainThreads);
    }
  }

  // Zeros in the rows past the sequence, whatever lies there.
  __device__ void MaskRows(int rows, Rows& v, Rows& d_o) {
    const int piece = lane_ % 8, first = Tile::Thread() / 8;
    for (int row = rows + first; row < kChunk; row += 16) {
      const uint32_t offset = SlabOffset(row, piece);
      *reinterpret_cast<uint4*>(v[group_] + offset) = {};
      *reinterpret_cast<uint4*>(d_o[group_] + offset) = {};
    }
    FenceAsyncProxy();
    NamedBarrier(kBackwardMainBarrier, C::kMainThreads);
  }

  // --- Scores and dA: this warpgroup's 32 columns of both.

  // Both, masked, to shared memory. Returns whether any channel is steep.
  __device__ bool FormScores(int stage, int chunk, const Rows& v,
                             const Rows& d_o) {
    float p[16] = {}, d_a[16] = {};
    WgmmaFence();
    StartScores(stage, v, d_o, p, d_a);
    WgmmaCommit();
    WgmmaWait<0>();
    Touch(p);
    Touch(d_a);
    const bool any_steep = HasSteep(stage);
    if (any_steep) {
      const auto is_steep = [this, stage](int channel) {
        return IsSteepDecay(shared_.decay[stage][channel]);
      };
      Tile::AddSteepScores(chunk, is_steep, shared_.steep[0], p);
    }
    Tile::template StoreScores<C::kParts>(shared_.scores[0], IsCausal<C>, p);
    Tile::ForOwnScores(d_a, [this, stage](int i, float& own) {
      shared_.own_d_a[stage][Tile::Row() + 8 * i] = own;
    });
    const auto has_key = [](int query, int key) { return key < query; };
    Tile::template StoreScores<C::kParts>(shared_.d_a[0], has_key, d_a);
    FenceAsyncProxy();
    return any_steep;
  }

  // p = k^ q~^T, d_a = d_o v^T.
  __device__ void StartScores(int stage, const Rows& v, const Rows& d_o,
                              float (&p)[16], float (&d_a)[16]) {
    const Keys& keys = shared_.keys[stage];
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
      AddProduct(keys.k[s], keys.q[s], s > 0, p);
      if constexpr (C::kRests) {
        AddProduct(keys.k[s], shared_.rests[stage].q[s], true, p);
        AddProduct(shared_.rests[stage].k[s], keys.q[s], true, p);
      }
    }
#pragma unroll
    for (int s = 0; s < 2; ++s) AddProduct(d_o[s], v[s], s > 0, d_a);
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

  // fn(e^B, whether steep) gives a channel's factor.
  template <typename Fn>
  __device__ void Scale(const float (&decay)[C::K], Fn fn) {
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float2 pair = *reinterpret_cast<const float2*>(
            &decay[64 * s + 8 * j + lane_ % 4 * 2]);
        const float factor[2] = {fn(fabsf(pair.x), IsSteepDecay(pair.x)),
                                 fn(fabsf(pair.y), IsSteepDecay(pair.y))};
#pragma unroll
        for (int e = 0; e < 4; ++e) state_[s][4 * j + e] *= factor[e % 2];
      }
    }
  }
  __device__ void ScaleByEdge(const float (&decay)[C::K]) {
    Scale(decay, [](float all, bool steep) { return steep ? 1 : all; });
  }
  __device__ void ScaleByMid(const float (&decay)[C::K]) {
    Scale(decay, [](float all, bool steep) { return steep ? all : 1; });
  }

  // The state, rounded, to shared memory.
  __device__ void StoreD() {
    const int row = warp_ * 16 + lane_ % 16, half = lane_ / 16;
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
      const uint32_t slab = SharedAddress(shared_.d_state[s][group_]);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        uint32_t a[4];
        PackOperand(state_[s], step, a);
        StoreMatrix(slab + SlabOffset(row, 2 * step + half), a);
      }
    }
  }

  // y = D^T k^^T + d_o^T scores^T. Returns with at most one group of products
  // under way.
  __device__ void ValueProducts(int stage, const uint32_t (&x)[4][4],
                                float (&y)[32]) {
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
        if constexpr (C::kRests) {
          const uint64_t rest =
              SlabDescriptor(SharedAddress(shared_.rests[stage].k[s]));
          Wgmma<kColumns>(y, a[i], StepDescriptor<kColumns>(rest, first + i),
                          true);
        }
      }
      WgmmaCommit();
      WgmmaWait<1>();  // Frees the registers of earlier groups.
    }
    WgmmaFence();
#pragma unroll
    for (int part = 0; part < C::kParts; ++part) {
      const uint64_t scores =
          SlabDescriptor(SharedAddress(shared_.scores[part]));
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        Wgmma<kColumns>(y, x[step], StepDescriptor<kColumns>(scores, step),
                        true);
      }
    }
    WgmmaCommit();
  }

  // state += x^T q~.
  __device__ void UpdateState(const Keys& keys, const uint32_t (&x)[4][4]) {
    WgmmaFence();
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
      const uint64_t slab = SlabDescriptor(SharedAddress(keys.q[s]));
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        Wgmma<kRows>(state_[s], x[step], StepDescriptor<kRows>(slab, step),
                     true);
      }
    }
    WgmmaCommit();
  }

  // dv of a chunk, from the slab of its d_o, which all have read.
  __device__ void StoreValues(int chunk, int rows, uint32_t slab,
                              const uint32_t (&y)[4][4]) {
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      StoreMatrixTransposed(slab + fragment_ + 2048 * pair, y[pair]);
    }
    FenceAsyncProxy();
    NamedBarrier(kBackwardGroupBarrier + group_, 128);
    if (rows < kChunk) {
      Tile::StoreRows(chunk, slab, rows);
    } else if (IsStorer()) {
      TensorStore(&params_.dv, work_.h * C::V + column_,
                  work_.rows.first + chunk * kChunk, slab);
      TensorStoreCommit();
    }
  }

  // --- dq, dk, dg: this warpgroup's channels and tokens; rows are channels.

  __device__ GradChunk MakeGradChunk(int stage, int chunk, int rows) {
    const int64_t row = work_.rows.first + chunk * kChunk;
    const int64_t H = args_.shape.H;
    Keys& keys = shared_.keys[stage];
    GradChunk grad_chunk = {.first = (row * H + work_.h) * C::K + slab_ * 64,
                            .stride = H * C::K,
                            .rows = rows,
                            .d_a = shared_.d_a[0],
                            .q = keys.q[slab_],
                            .k = keys.k[slab_],
                            .b = keys.b[slab_],
                            .own_d_a = shared_.own_d_a[stage]};
    if constexpr (C::kRests) {
      grad_chunk.d_a_rest = shared_.d_a[1];
      grad_chunk.q_rest = shared_.rests[stage].q[slab_];
      grad_chunk.k_rest = shared_.rests[stage].k[slab_];
    }
    return grad_chunk;
  }

  // d = state rows^T, of all values.
  __device__ void StateProduct(const State& state, const Rows& rows,
                               Accumulators& d) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const uint64_t a = SlabDescriptor(SharedAddress(state[slab_][s]));
      const uint64_t b =
          SlabDescriptor(SharedAddress(rows[s]) + thread_.first_token * 128);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        Wgmma<kRows, kColumns>(d, StepDescriptor<kRows>(a, step),
                               StepDescriptor<kColumns>(b, step), s + step > 0);
      }
    }
  }

  // q += k^ dA^T.
  __device__ void KeyProducts(int stage, Accumulators& q) {
    const auto& k = shared_.keys[stage].k[slab_];
    AddScoreProduct<kColumns>(k, shared_.d_a[0], q);
    if constexpr (C::kRests) {
      AddScoreProduct<kColumns>(k, shared_.d_a[1], q);
      AddScoreProduct<kColumns>(shared_.rests[stage].k[slab_], shared_.d_a[0],
                                q);
    }
  }

  // k += q~ dA.
  __device__ void QueryProducts(int stage, Accumulators& k) {
    const auto& q = shared_.keys[stage].q[slab_];
    AddScoreProduct<kRows>(q, shared_.d_a[0], k);
    if constexpr (C::kRests) {
      AddScoreProduct<kRows>(q, shared_.d_a[1], k);
      AddScoreProduct<kRows>(shared_.rests[stage].q[slab_], shared_.d_a[0], k);
    }
  }

  // d += operand dA^T, contracted along the columns of dA, or operand dA, along
  // its rows.
  template <Contract kAlong>
  __device__ void AddScoreProduct(const uint8_t (&operand)[kSlabBytes],
                                  const uint8_t (&d_a)[kSlabBytes],
                                  Accumulators& d) {
    constexpr int kTokenBytes = kAlong == kColumns ? 128 : 2;
    const uint64_t a = SlabDescriptor(SharedAddress(operand));
    const uint64_t b =
        SlabDescriptor(SharedAddress(d_a) + thread_.first_token * kTokenBytes);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      Wgmma<kRows, kAlong>(d, StepDescriptor<kRows>(a, step),
                           StepDescriptor<kAlong>(b, step), true);
    }
  }

  // Adds mid <S, D> to the flow out of the chunk.
  __device__ void AddStateFlow(const float (&decay)[C::K], float (&flow)[2]) {
    float sums[8] = {}, state_flow[2];
    constexpr int kValueSlabs = C::kSlabs;  // of a warpgroup
#pragma unroll
    for (int i = 0; i < kValueSlabs; ++i) {
      const int s = C::kSlabs == 2 ? i : group_;
      AddSlabFlow(shared_.state[slab_][s], shared_.d_state[slab_][s], thread_,
                  sums);
    }
    SumSlabFlow(thread_, sums, state_flow);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float all = decay[slab_ * 64 + thread_.Channel(i)];
      flow[i] += (IsSteepDecay(all) ? -all : 1) * state_flow[i];
      if (C::kSlabs == 1 && lane_ % 4 == 0) {
        shared_.flow[group_][thread_.Channel(i)] = flow[i];
      }
    }
    if (C::kSlabs == 1) BarrierArrive(SharedAddress(&shared_.flow_full));
  }

  // What both warpgroups have added in a step, where they share the tokens.
  __device__ void ReadStateFlow(int step, float (&flow)[2]) const {
    BarrierWait(SharedAddress(&shared_.flow_full), step & 1);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int channel = thread_.Channel(i);
      flow[i] = shared_.flow[0][channel] + shared_.flow[1][channel];
    }
  }

  __device__ void FinishKeys(int stage, const Finish& finish,
                             const GradChunk& chunk, bool any_steep,
                             Scaling& parts, Accumulators& q, Accumulators& k,
                             float (&flow)[2]) {
    if (any_steep) {
      const auto is_steep = [this, stage](int channel) {
        return IsSteepDecay(shared_.decay[stage][slab_ * 64 + channel]);
      };
      parts = {{is_steep(thread_.Channel(0)), is_steep(thread_.Channel(1))}};
      GradSteep<Gate, kSize, Scaling>(params_.grad, chunk, thread_, parts,
                                      shared_.steep[group_])
          .Add(kBackwardGroupBarrier + group_, is_steep, q, k);
    }
    finish.StoreKeys(any_steep, q, k);
    if constexpr (C::kSlabs == 1) {
      if (group_ == 1) {
        finish.SumTerms(q, flow);
        if (lane_ % 4 == 0) {
          shared_.flow[2][thread_.Channel(0)] = flow[0];
          shared_.flow[2][thread_.Channel(1)] = flow[1];
        }
        NamedBarrierArrive(kBackwardFlowBarrier, C::kMainThreads);
      } else {
        NamedBarrier(kBackwardFlowBarrier, C::kMainThreads);
        flow[0] = shared_.flow[2][thread_.Channel(0)];
        flow[1] = shared_.flow[2][thread_.Channel(1)];
        finish.SumTerms(q, flow);
      }
    } else {
      finish.SumTerms(q, flow);
    }
    finish.StoreGates(any_steep, q);
  }

  const BackwardParams& params_;
  BackwardShared<C>& shared_;
  const int slab_;  // of the channels whose dq and dk it forms
  const GradThread thread_;
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_MAIN_CUH_
