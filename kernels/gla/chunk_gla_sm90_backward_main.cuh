// The main warpgroups of the one-kernel backward pass
// (chunk_gla_sm90_backward.cuh).
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_MAIN_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_MAIN_CUH_

#include "kernels/gla/chunk_gla_sm90_backward_flow.cuh"
#include "kernels/gla/chunk_gla_sm90_backward_shared.cuh"
#include "kernels/gla/chunk_gla_sm90_backward_values.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_finish.cuh"

namespace gla::internal {

// Warpgroup `group` of two: 64 values of dS and dv (BackwardValues), and its
// share of dq, dk and dg (BackwardConfig::kTokens).
template <typename C>
class BackwardMain : BackwardValues<C> {
 public:
  __device__ BackwardMain(const BackwardParams& params, const ScanWork& work,
                          BackwardShared<C>& shared, int group)
      : BackwardValues<C>(params, work, shared, group),
        slab_(C::kSlabs == 2 ? group : 0),
        thread_{warp_, lane_, C::kSlabs == 2 ? 0 : 32 * group} {}

  __device__ void Run() {
    if (IsLoader()) {
      LoadState(0);
      LoadRows(0);
      LoadRows(1);
    }
    Values::Tile::LoadState();
#pragma unroll 1
    for (int i = 0; i < work_.chunks; ++i) Step(i);
    Values::Tile::StoreState();
    if (IsStorer()) TensorStoreWaitRead();
  }

 private:
  using Values = BackwardValues<C>;
  using typename Values::Keys, typename Values::Rows;
  using Values::args_, Values::work_, Values::group_, Values::warp_;
  using Values::IsStorer, Values::MaskRows, Values::FormScores;
  using Values::kRows, Values::kColumns;
  using Values::lane_, Values::fragment_, Values::state_;
  using Values::params_, Values::shared_;
  using Values::ScaleByEdge, Values::ScaleByMid, Values::StoreD;
  using Values::ValueProducts, Values::UpdateState, Values::StoreValues;
  using State = typename BackwardShared<C>::State;
  using Gate = typename C::Gate;

  static constexpr int kSize = C::kTokens / 2;  // accumulators of dq~, of dk^
  using Accumulators = float[kSize];
  using Scaling = typename C::Scaling;
  using Finish = GradFinish<Gate, kSize, Scaling>;
  static constexpr int kStateBytes = sizeof(State);

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
          .Add(shared_.group_meeting[group_], is_steep, q, k);
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

  const int slab_;  // of the channels whose dq and dk it forms
  const GradThread thread_;
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_MAIN_CUH_
