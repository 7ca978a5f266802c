// The main warpgroups of the one-kernel backward pass
// (chunk_gla_sm90_backward.cuh).
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_MAIN_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_MAIN_CUH_

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
    Values::Tile::LoadState();
#pragma unroll 1
    for (int i = 0; i < work_.chunks; ++i) Step(i);
    Values::Tile::StoreState();
    if (IsStorer()) TensorStoreWaitRead();
  }

 private:
  using Values = BackwardValues<C>;
  using typename Values::Keys, typename Values::Rows, typename Values::PackedD;
  using Values::args_, Values::work_, Values::group_, Values::warp_;
  using Values::IsStorer, Values::MaskRows, Values::PutValues;
  using Values::kRows, Values::kColumns;
  using Values::lane_, Values::fragment_, Values::state_;
  using Values::params_, Values::shared_;
  using Values::ScaleByEdge, Values::ScaleByMid, Values::StoreD, Values::PackD;
  using Values::StartScoreGradients, Values::StoreScoreGradients;
  using Values::StartScores, Values::StoreScores, Values::HasSteep;
  using Values::ValueProducts, Values::UpdateState, Values::StoreValues;
  using Gate = typename C::Gate;

  static constexpr int kSize = C::kTokens / 2;  // accumulators of dq~, of dk^
  using Accumulators = float[kSize];
  using Scaling = typename C::Scaling;
  using Finish = GradFinish<Gate, kSize, Scaling>;

  // By one thread for all main threads, which have met.
  __device__ void Tell(uint64_t& barrier) {
    if (group_ == 0 && IsStorer()) BarrierArrive(SharedAddress(&barrier));
  }

  __device__ void Step(int i) {
    const int stage = i % 2, chunk = ChunkAt<C>(work_, i);
    Rows& v = RowsOfUse(2 * i);
    Rows& d_o = RowsOfUse(2 * i + 1);
    const int rows = work_.rows.length - chunk * kChunk;
    float p[16] = {};  // scores = k^ q~^T
    const bool any_steep = TakeOperands(i, stage, rows, v, d_o, p);

    // dk^ = D v^T;  dA = d_o v^T
    float d_a[16] = {};
    Accumulators k = {};
    WgmmaFence();
    StateProduct(shared_.StateGradient(stage, slab_), v, k);
    StartScoreGradients(v, d_o, d_a);
    WgmmaCommit();
    WgmmaWait<1>();
    Touch(p);
    StoreScores(stage, chunk, any_steep, p);
    WgmmaWait<0>();
    Touch(d_a);
    Touch(k);
    const GradChunk grad_chunk = MakeGradChunk(stage, chunk, rows);
    Scaling parts = {};
    const Finish finish(params_.grad, grad_chunk, thread_, parts);
    float flow[2];
    finish.KeyFlow(
        k, [](int, int) { return 1.0f; }, flow);
    if constexpr (C::kSlabs == 1) StoreKeyFlow(flow);
    if constexpr (C::kRoomy) StoreScoreGradients(d_a);
    FenceAsyncProxy();
    NamedBarrier(kBackwardMainBarrier, C::kMainThreads);
    // Scores are there; v and, by these warpgroups, D have been read.
    Tell(shared_.d_read);
    if constexpr (!C::kRoomy) StoreScoreGradients(d_a);

    uint32_t packed[4][4];
    FormValues(stage, any_steep, d_o, packed);
    BarrierWait(SharedAddress(&shared_.state_full), i & 1);
    Accumulators q = {};  // S d_o^T
    WgmmaFence();
    StateProduct(shared_.state[slab_], d_o, q);
    WgmmaCommit();
    if constexpr (!C::kRoomy) {
      FenceAsyncProxy();
      NamedBarrier(kBackwardMainBarrier, C::kMainThreads);
      // dA is there, and scores have been read.
    }

    FormGradients(i, chunk, rows, packed, grad_chunk, q, k);
    // The next v comes to where dA's rest was.
    if constexpr (!C::kRoomy) FenceAsyncProxy();
    NamedBarrier(kBackwardMainBarrier, C::kMainThreads);
    // The operands, S, d_o and dA have been read.
    if (!any_steep) Tell(shared_.operands_read);
    if constexpr (C::kRoomy) {
      PutValues(ValuePlace(), packed);
      NamedBarrier(kBackwardGroupBarrier + group_, 128);
    }
    if (C::kRoomy || rows < kChunk) StoreValues(chunk, rows, ValuePlace());
    FinishKeys(stage, finish, grad_chunk, any_steep, parts, q, k, flow);
    FenceAsyncProxy();
    BarrierArrive(SharedAddress(&shared_.finished[stage]));
    if (any_steep) {
      // What steep channels were formed from has been read.
      NamedBarrier(kBackwardMainBarrier, C::kMainThreads);
      Tell(shared_.operands_read);
    }
  }

  // Starts scores, and waits until all that values are formed from is there, D
  // too. Returns whether any channel is steep.
  __device__ bool TakeOperands(int i, int stage, int rows, Rows& v, Rows& d_o,
                               float (&p)[16]) {
    BarrierWait(SharedAddress(&shared_.gated[stage]), Parity<2>(i));
    if (IsStorer()) TensorStoreWaitRead();  // the last chunk's dv
    if constexpr (!C::kRoomy) {  // Its rests, where D will be, have been read.
      NamedBarrier(kBackwardGroupBarrier + group_, 128);
    }
    const bool any_steep = HasSteep(stage);
    ScaleByEdge(shared_.decay[stage], any_steep);
    PackedD d;
    PackD(d);
    WgmmaFence();
    StartScores(stage, p);
    WgmmaCommit();
    StoreD(stage, d);
    WaitRows(2 * i);
    WaitRows(2 * i + 1);
    if (rows < kChunk) {
      MaskRows(rows, v[group_]);
      MaskRows(rows, d_o[group_]);
    }
    FenceAsyncProxy();
    BarrierArrive(SharedAddress(&shared_.d_full));
    NamedBarrier(kBackwardMainBarrier, C::kMainThreads);  // D is there.
    return any_steep;
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
  __device__ void FormGradients(int i, int chunk, int rows,
                                const uint32_t (&packed)[4][4],
                                const GradChunk& grad_chunk, Accumulators& q,
                                Accumulators& k) {
    WgmmaFence();
    KeyProducts(i % 2, q);
    QueryProducts(i % 2, k);
    WgmmaCommit();
    if constexpr (!C::kRoomy) PutValues(ValuePlace(), packed);
    WaitFlow(i, rows);
    WgmmaFence();
    QueryRestProducts(i % 2, k);
    WgmmaCommit();
    if constexpr (!C::kRoomy) {  // A sequence's last chunk: in Step, by all.
      NamedBarrier(kBackwardGroupBarrier + group_, 128);
      if (rows >= kChunk) StoreValues(chunk, rows, ValuePlace());
    }
    NearOperands near;
    LoadNear(grad_chunk, 0, near);
    WgmmaWait<0>();
    Touch(q);
    Touch(k);
    AddNearProducts(grad_chunk, near, q, k);
  }

  // --- What is loaded.

  // Number `use` of the ring: v and d_o of one step after the other.
  __device__ Rows& RowsOfUse(int use) {
    return shared_.rows[use % C::kRowSlots];
  }
  __device__ void WaitRows(int use) {
    BarrierWait(SharedAddress(&shared_.rows_full[use % C::kRowSlots]),
                Parity<C::kRowSlots>(use));
  }

  // Until <S, D> is there and, if not kRoomy, rests of q~ are: they are asked
  // for when D has been read, so that waiting for them is enough.
  __device__ void WaitFlow(int i, int rows) {
    BarrierWait(
        SharedAddress(C::kRoomy ? &shared_.d_read : &shared_.query_rests_full),
        i & 1);
    if (C::kRoomy || rows >= kChunk) return;
    MaskRows(rows, shared_.QueryRest(0, group_));
    NamedBarrier(kBackwardGroupBarrier + group_, 128);
  }

  // Where dv is transposed: scores have been read.
  __device__ uint32_t ValuePlace() const {
    return SharedAddress(shared_.scores[group_]);
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
            .own_d_a = shared_.own_d_a,
            .d_a_rest = shared_.ScoreGradients(1),
            .q_rest = shared_.QueryRest(stage, slab_),
            .k_rest = shared_.KeyRest(stage, slab_)};
  }

  // d = state rows^T, of all values.
  __device__ void StateProduct(const Rows& state, const Rows& rows,
                               Accumulators& d) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const uint64_t a = SlabDescriptor(SharedAddress(state[s]));
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
  __device__ void QueryProducts(int stage, Accumulators& k) {
    AddScoreProduct<kRows>(shared_.keys[stage].q[slab_],
                           shared_.ScoreGradients(0), k);
  }
  __device__ void QueryRestProducts(int stage, Accumulators& k) {
    AddScoreProduct<kRows>(shared_.QueryRest(stage, slab_),
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
  struct NearOperands {
    uint32_t k[4], q[4], queries[4], keys[4];  // dA's rest for q, for k
  };
  __device__ void LoadNear(const GradChunk& chunk, int n, NearOperands& x) {
    const int row = lane_ % 8, half = lane_ / 8 % 2, other = lane_ / 16;
    const int block = thread_.first_token / 16 + n;
    const auto at = [&](int token, int piece) {
      return SharedAddress(chunk.d_a_rest) +
             SlabOffset(16 * block + token, 2 * block + piece);
    };
    const uint32_t operand = fragment_ + 2048 * block;
    LoadMatrixTransposed(SharedAddress(chunk.k) + operand, x.k);
    LoadMatrix(at(row + 8 * other, half), x.queries);
    LoadMatrixTransposed(SharedAddress(chunk.q) + operand, x.q);
    LoadMatrixTransposed(at(row + 8 * half, other), x.keys);
  }
  // `x` are the first block's operands.
  __device__ void AddNearProducts(const GradChunk& chunk, NearOperands& x,
                                  Accumulators& q, Accumulators& k) {
#pragma unroll
    for (int n = 0; n < C::kTokens / 16; ++n) {
      const NearOperands now = x;
      if (n + 1 < C::kTokens / 16) LoadNear(chunk, n + 1, x);
      Mma(now.k, now.queries[0], now.queries[1], &q[8 * n]);
      Mma(now.k, now.queries[2], now.queries[3], &q[8 * n + 4]);
      Mma(now.q, now.keys[0], now.keys[1], &k[8 * n]);
      Mma(now.q, now.keys[2], now.keys[3], &k[8 * n + 4]);
    }
  }

  // Where the main warpgroups share the tokens: what the keys of the first
  // one's add to the flow out of the chunk, for the second.
  __device__ void StoreKeyFlow(const float (&flow)[2]) {
    if (group_ > 0 || lane_ % 4 > 0) return;
    shared_.flow[0][thread_.Channel(0)] = flow[0];
    shared_.flow[0][thread_.Channel(1)] = flow[1];
  }

  // Adds what the gate warps and, there, the other main warpgroup have formed.
  __device__ void AddFlow(float (&flow)[2]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int channel = thread_.Channel(i);
      if (C::kSlabs == 1) flow[i] += shared_.flow[0][channel];
      flow[i] += shared_.state_flow[slab_ * 64 + channel];
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
      if (IsStorer()) TensorStoreWaitRead();  // dv, where the channels will be
      NamedBarrier(kBackwardGroupBarrier + group_, 128);
      GradSteep<Gate, kSize, Scaling>(params_.grad, chunk, thread_, parts,
                                      shared_.SteepOfGradients(group_))
          .Add(shared_.group_meeting[group_], is_steep, q, k);
    }
    finish.StoreKeys(any_steep, q, k);
    if constexpr (C::kSlabs == 1) {
      if (group_ == 1) {
        AddFlow(flow);
        finish.SumTerms(q, flow);
        if (lane_ % 4 == 0) {
          shared_.flow[1][thread_.Channel(0)] = flow[0];
          shared_.flow[1][thread_.Channel(1)] = flow[1];
        }
        NamedBarrierArrive(kBackwardFlowBarrier, C::kMainThreads);
      } else {
        NamedBarrier(kBackwardFlowBarrier, C::kMainThreads);
        flow[0] = shared_.flow[1][thread_.Channel(0)];
        flow[1] = shared_.flow[1][thread_.Channel(1)];
        finish.SumTerms(q, flow);
      }
    } else {
      AddFlow(flow);
      finish.SumTerms(q, flow);
    }
    finish.StoreGates(any_steep, q);
  }

  const int slab_;  // of the channels whose dq and dk it forms
  const GradThread thread_;
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_MAIN_CUH_
