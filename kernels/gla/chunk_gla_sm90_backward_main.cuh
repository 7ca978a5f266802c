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
  __device__ BackwardMain(const BackwardParams& params,
                          BackwardShared<C>& shared, int group)
      : BackwardValues<C>(params, shared, group),
        slab_(C::kSlabs == 2 ? group : 0),
        thread_{warp_, lane_, C::kSlabs == 2 ? 0 : 32 * group} {}

  __device__ void Run() {
    if (IsLoader()) {
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
  using Values::IsStorer, Values::MaskRows, Values::PutValues;
  using Values::kRows, Values::kColumns;
  using Values::lane_, Values::fragment_, Values::state_;
  using Values::params_, Values::shared_;
  using Values::ScaleByEdge, Values::ScaleByMid, Values::StoreD;
  using Values::StartScoreGradients, Values::StoreScoreGradients;
  using Values::StartScores, Values::StoreScores;
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
    Rows& v = RowsOfUse(2 * i);
    Rows& d_o = RowsOfUse(2 * i + 1);
    const int rows = work_.rows.length - chunk * kChunk;
    TakeOperands(i, stage, rows, v, d_o);

    // dk^ = D v^T;  dA = d_o v^T;  scores = k^ q~^T
    float p[16] = {}, d_a[16] = {};
    Accumulators k = {};
    WgmmaFence();
    StateProduct(shared_.d_state, v, k);
    StartScoreGradients(v, d_o, d_a);
    WgmmaCommit();
    if constexpr (!C::kRoomy) WaitKeyRests(i);
    WgmmaFence();
    StartScores(stage, p);
    WgmmaCommit();
    WgmmaWait<1>();
    Touch(d_a);
    Touch(k);
    const GradChunk grad_chunk = MakeGradChunk(stage, chunk, rows);
    Scaling parts = {};
    const Finish finish(params_.grad, grad_chunk, thread_, parts);
    float flow[2];
    finish.KeyFlow(
        k, [](int, int) { return 1.0f; }, flow);
    WgmmaWait<0>();
    Touch(p);
    const bool any_steep = StoreScores(stage, chunk, p);
    if constexpr (C::kRoomy) StoreScoreGradients(stage, d_a);
    FenceAsyncProxy();
    NamedBarrier(kBackwardMainBarrier, C::kMainThreads);
    // Scores are there, and v has been read.
    if constexpr (C::kRoomy) {
      if (IsLoader()) LoadRows(2 * i + 3);
    } else {
      StoreScoreGradients(stage, d_a);
    }

    uint32_t packed[4][4];
    FormValues(stage, any_steep, d_o, packed);
    BarrierWait(SharedAddress(&shared_.state_full), i & 1);
    Accumulators q = {};  // S d_o^T
    WgmmaFence();
    StateProduct(shared_.state, d_o, q);
    WgmmaCommit();
    AddStateFlow(shared_.decay[stage], flow);
    if constexpr (!C::kRoomy) {
      FenceAsyncProxy();
      NamedBarrier(kBackwardMainBarrier, C::kMainThreads);
      // dA is there, and D has been read.
      if (IsLoader()) LoadQueryRests(i);
      PutValues(ValuePlace(d_o), packed);
    }

    FormGradients(i, chunk, rows, d_o, q, k);
    AddNearProducts(grad_chunk, q, k);
    NamedBarrier(kBackwardMainBarrier, C::kMainThreads);
    // The operands, S, d_o and dA have been read.
    if constexpr (C::kSlabs == 1) ReadStateFlow(i, flow);
    if constexpr (C::kRoomy) {
      PutValues(ValuePlace(d_o), packed);
      NamedBarrier(kBackwardGroupBarrier + group_, 128);
    } else if (!any_steep) {
      LoadNextRows(i);
    }
    if (C::kRoomy || rows < kChunk) StoreValues(chunk, rows, ValuePlace(d_o));
    FinishKeys(stage, finish, grad_chunk, any_steep, parts, q, k, flow);
    FenceAsyncProxy();
    BarrierArrive(SharedAddress(&shared_.finished[stage]));
    if (any_steep) {
      // What steep channels were formed from has been read.
      NamedBarrier(kBackwardMainBarrier, C::kMainThreads);
      if (!C::kRoomy) LoadNextRows(i);
    }
  }

  // Waits until all that scores and values are formed from is there, D too.
  __device__ void TakeOperands(int i, int stage, int rows, Rows& v, Rows& d_o) {
    BarrierWait(SharedAddress(&shared_.gated[stage]), Parity<2>(i));
    ScaleByEdge(shared_.decay[stage]);
    if (IsStorer()) TensorStoreWaitRead();  // the last chunk's dv
    if constexpr (!C::kRoomy) {             // Rests of q~ have been read too.
      NamedBarrier(kBackwardGroupBarrier + group_, 128);
    }
    StoreD();
    WaitRows(2 * i);
    WaitRows(2 * i + 1);
    if (rows < kChunk) {
      MaskRows(rows, v[group_]);
      MaskRows(rows, d_o[group_]);
      if constexpr (!C::kRoomy) {
        WaitKeyRests(i);
        MaskRows(rows, shared_.KeyRest(stage, group_));
      }
    }
    FenceAsyncProxy();
    NamedBarrier(kBackwardMainBarrier, C::kMainThreads);  // D is there.
    if (IsLoader()) {
      LoadState(i);
      if (C::kRoomy) LoadRows(2 * i + 2);
    }
  }

  // dv^T = D^T k^^T + d_o^T scores^T, packed;  dS^T = mid D^T + d_o^T q~.
  __device__ void FormValues(int stage, bool any_steep, const Rows& d_o,
                             uint32_t (&packed)[4][4]) {
    uint32_t x[4][4];
    const uint32_t x_slab = SharedAddress(d_o[group_]);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      LoadMatrixTransposed(x_slab + fragment_ + 2048 * step, x[step]);
    }
    float y[32] = {}, late[8] = {};
    ValueProducts(stage, x, y, late);
    if (any_steep) ScaleByMid(shared_.decay[stage]);
    UpdateState(shared_.keys[stage], x);
    WgmmaWait<1>();
    Touch(y);
    if constexpr (!C::kRoomy) {
      Touch(late);
#pragma unroll
      for (int e = 0; e < 8; ++e) y[24 + e] += late[e];
    }
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) PackOperand(y, pair, packed[pair]);
    WgmmaWait<0>();
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) Touch(state_[s]);
  }

  // dq~ += k^ dA^T;  dk^ += q~ dA. Meanwhile dv leaves, if not kRoomy.
  __device__ void FormGradients(int i, int chunk, int rows, const Rows& d_o,
                                Accumulators& q, Accumulators& k) {
    WgmmaFence();
    KeyProducts(i % 2, q);
    WgmmaCommit();
    WgmmaFence();
    QueryProducts(i, rows, k);
    WgmmaCommit();
    if constexpr (!C::kRoomy) {  // A sequence's last chunk: in Step, by all.
      NamedBarrier(kBackwardGroupBarrier + group_, 128);
      if (rows >= kChunk) StoreValues(chunk, rows, ValuePlace(d_o));
    }
    WgmmaWait<0>();
    Touch(q);
    Touch(k);
  }

  // --- Loads.

  // The state before step i's chunk.
  __device__ void LoadState(int i) {
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
    const int slot = use % C::kRowSlots;
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

  __device__ Rows& RowsOfUse(int use) {
    return shared_.rows[use % C::kRowSlots];
  }
  __device__ void WaitRows(int use) {
    BarrierWait(SharedAddress(&shared_.rows_full[use % C::kRowSlots]),
                Parity<C::kRowSlots>(use));
  }

  // The rests of step i's q~, from where the gate warps have stored them.
  __device__ void LoadQueryRests(int i) {
    const uint32_t full = SharedAddress(&shared_.query_rests_full);
    BarrierArriveExpect(full, C::kSlabs * kSlabBytes);
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
      TensorLoad(SharedAddress(shared_.QueryRest(0, s)), &params_.dq,
                 work_.h * C::K + s * 64,
                 work_.rows.first + ChunkAt<C>(work_, i) * kChunk, full);
    }
  }
  // If not kRoomy: step i + 1's v and d_o, by one warp each, once dA and d_o
  // have been read.
  __device__ void LoadNextRows(int i) {
    if (group_ == 1 && lane_ == 0 && (warp_ == 1 || warp_ == 2)) {
      LoadRows(2 * i + 1 + warp_);
    }
  }

  // Rests that come from global memory.
  __device__ void WaitKeyRests(int i) {
    BarrierWait(SharedAddress(&shared_.key_rests_full), i & 1);
  }
  __device__ void WaitQueryRests(int i, int rows) {
    BarrierWait(SharedAddress(&shared_.query_rests_full), i & 1);
    if (rows >= kChunk) return;
    MaskRows(rows, shared_.QueryRest(0, group_));
    NamedBarrier(kBackwardGroupBarrier + group_, 128);
  }

  // Where dv is transposed.
  __device__ uint32_t ValuePlace(const Rows& d_o) const {
    return SharedAddress(C::kRoomy ? d_o[group_]
                                   : shared_.d_state[C::kSlabs - 1][group_]);
  }

  // --- dq, dk, dg: this warpgroup's channels and tokens; rows are channels.

  __device__ GradChunk MakeGradChunk(int stage, int chunk, int rows) {
    const int64_t row = work_.rows.first + chunk * kChunk;
    const int64_t H = args_.shape.H;
    Keys& keys = shared_.keys[stage];
    return {.first = (row * H + work_.h) * C::K + slab_ * 64,
            .stride = H * C::K,
            .rows = rows,
            .d_a = shared_.ScoreGradients(0),
            .q = keys.q[slab_],
            .k = keys.k[slab_],
            .b = keys.b[slab_],
            .own_d_a = shared_.own_d_a[stage],
            .d_a_rest = shared_.ScoreGradients(1),
            .q_rest = shared_.QueryRest(stage, slab_),
            .k_rest = shared_.KeyRest(stage, slab_)};
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
    AddScoreProduct<kColumns>(k, shared_.ScoreGradients(0), q);
    AddScoreProduct<kColumns>(shared_.KeyRest(stage, slab_),
                              shared_.ScoreGradients(0), q);
  }

  // k += q~ dA.
  __device__ void QueryProducts(int i, int rows, Accumulators& k) {
    const auto& q = shared_.keys[i % 2].q[slab_];
    AddScoreProduct<kRows>(q, shared_.ScoreGradients(0), k);
    if constexpr (!C::kRoomy) {
      WaitQueryRests(i, rows);
      WgmmaFence();
    }
    AddScoreProduct<kRows>(shared_.QueryRest(i % 2, slab_),
                           shared_.ScoreGradients(0), k);
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

  // q += k^ dA^T and k += q~ dA with the rest of dA, which it has in blocks of
  // 16 x 16 on its diagonal: by each warp for its channels.
  __device__ void AddNearProducts(const GradChunk& chunk, Accumulators& q,
                                  Accumulators& k) {
    const int row = lane_ % 8, half = lane_ / 8 % 2, other = lane_ / 16;
    const uint32_t rest = SharedAddress(chunk.d_a_rest);
#pragma unroll
    for (int n = 0; n < C::kTokens / 16; ++n) {
      const int block = thread_.first_token / 16 + n;
      const auto at = [=](int token, int piece) {
        return rest + SlabOffset(16 * block + token, 2 * block + piece);
      };
      const uint32_t operand = fragment_ + 2048 * block;
      uint32_t a[4], b[4];
      LoadMatrixTransposed(SharedAddress(chunk.k) + operand, a);
      LoadMatrix(at(row + 8 * other, half), b);
      Mma(a, b[0], b[1], &q[8 * n]);
      Mma(a, b[2], b[3], &q[8 * n + 4]);
      LoadMatrixTransposed(SharedAddress(chunk.q) + operand, a);
      LoadMatrixTransposed(at(row + 8 * half, other), b);
      Mma(a, b[0], b[1], &k[8 * n]);
      Mma(a, b[2], b[3], &k[8 * n + 4]);
    }
  }

  // Adds mid <S, D> to the flow out of the chunk.
  __device__ void AddStateFlow(const float (&decay)[C::K], float (&flow)[2]) {
    ChannelProducts products = {};
    float state_flow[2];
    constexpr int kValueSlabs = C::kSlabs;  // of a warpgroup
#pragma unroll
    for (int i = 0; i < kValueSlabs; ++i) {
      const int s = C::kSlabs == 2 ? i : group_;
      AddSlabFlow(shared_.state[slab_][s], shared_.d_state[slab_][s], fragment_,
                  products);
    }
    TakeDiagonals(products, thread_, state_flow);
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
                                      shared_.SteepOfGradients(group_))
          .Add(shared_.group_meeting[group_], is_steep, q, k);
    }
    finish.StoreKeys(any_steep, q, k);
    if (!C::kRoomy) BarrierArrive(SharedAddress(&shared_.rests_read));
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
