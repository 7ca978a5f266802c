// The main warpgroups of the gradient kernel (chunk_gla_sm90_grad.cuh), a chunk
// each.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_MAIN_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_MAIN_CUH_

#include "kernels/gla/chunk_gla_sm90_gating.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_shared.cuh"

namespace gla::internal {

template <typename C>
class GradMain {
 public:
  __device__ GradMain(const GradParams& params, GradShared<C>& shared,
                      int chunk)
      : params_(params),
        shared_(shared),
        gated_(shared.gated[chunk]),
        chunk_(chunk),
        thread_{WarpOfGroup(), static_cast<int>(threadIdx.x % 32)} {}

  __device__ void Run() {
    GradWork unused;  // the gate warps' is what counts
    bool has_work = GradItems<C>().Next(params_, &unused);
    for (int n = 0; has_work; ++n) {
      float q[32] = {}, k[32] = {};
      float flow[2];
      StateProducts(q, k);
      thread_.lane = Opaque(thread_.lane);
      BarrierWait(SharedAddress(&shared_.gated_full), n & 1);
      has_work = shared_.has_next;
      Within(n, q, k, flow);
      Finish(n, q, k, flow);
    }
  }

 private:
  // The same in all lanes, and known to be.
  static __device__ int WarpOfGroup() {
    return __shfl_sync(0xffffffff, threadIdx.x / 32 % 4, 0);
  }

  using Gate = typename C::Gate;
  using Elements = GradFinish<Gate, 32>;
  static constexpr Contract kRows = Contract::kAlongRows;
  static constexpr Contract kColumns = Contract::kAlongColumns;
  static constexpr int kMainThreads = 128 * kSegmentChunks;

  // Of this thread's two channels in a chunk: e^B, and what of it is `edge` and
  // `mid` (chunk_gla_sm90.cuh).
  struct Decay {
    float all[2], edge[2], mid[2];
  };

  __device__ float LogDecay(int c, int i) const {
    return shared_.log_decay[c][thread_.Channel(i)];
  }
  __device__ Decay LoadDecay(int c) const {
    Decay decay;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float log = LogDecay(c, i);
      const float all = Exp2(log);
      const bool steep = IsSteep(log);
      decay.all[i] = all;
      decay.edge[i] = steep ? 1 : all;
      decay.mid[i] = steep ? all : 1;
    }
    return decay;
  }

  static __device__ void Scale(float (&d)[32], const float (&factor)[2]) {
#pragma unroll
    for (int e = 0; e < 32; ++e) d[e] *= factor[e / 2 % 2];
  }

  // --- From the stored states.

  // q += S do^T, k += D v^T.
  __device__ void StateProducts(float (&q)[32], float (&k)[32]) {
#pragma unroll 1
    for (int i = 0; i < C::kSteps; ++i) {
      const int index = step_ % C::kStages;
      BarrierWait(SharedAddress(&shared_.full[index]), StepParity<C>(step_));
      const auto& stage = shared_.stage[index];
      // The last products of dA first: it is waited for.
      if (i == C::kSteps - 1)
        NamedBarrier(kGradLastStepBarrier, C::kThreads - 128);
      WgmmaFence();
      AddProduct(stage.state, stage.d_o[chunk_], q);
      AddProduct(stage.d_state, stage.v[chunk_], k);
      WgmmaCommit();
      // Not behind the next step's: while that one is waited for, what comes
      // after it can be loaded.
      WgmmaWait<0>();
      ReleaseStep<C>(shared_, step_);
      ++step_;
    }
    Touch(q);
    Touch(k);
  }

  // Starts d += state rows^T of a step's values.
  static __device__ void AddProduct(const uint8_t (&state)[kSlabBytes / 2],
                                    const uint8_t (&rows)[kSlabBytes / 2],
                                    float (&d)[32]) {
    const uint64_t a = SlabDescriptor(SharedAddress(state));
    const uint64_t b = HalfSlabDescriptor(SharedAddress(rows));
#pragma unroll
    for (int i = 0; i < C::kValues / 16; ++i) {
      Wgmma<kRows, kColumns>(d, StepDescriptor<kRows>(a, i),
                             StepDescriptor<kColumns>(b, i), true);
    }
  }

  // --- Within the segment.

  // From state products to dq~ and dk^ of item n. `flow` becomes what S adds to
  // the flow out of the segment; what this chunk's keys add is published.
  __device__ void Within(int n, float (&q)[32], float (&k)[32],
                         float (&flow)[2]) {
    const int last = (shared_.work.rows - 1) / kChunk;
    const GradChunk chunk = Chunk();
    float key_flow[2];
    Elements(params_.args, chunk, thread_).KeyFlow(k, key_flow);
    StateDecay(last, flow);
    BarrierWait(SharedAddress(&shared_.scored), n & 1);
    if (chunk_ == 0 && thread_.warp == 0 && thread_.lane == 0) {
      ClusterBarrierArrive(
          ClusterAddress(SharedAddress(&shared_.sent), ClusterRank() ^ 1));
    }
    AddScores(last, q, k, key_flow);
#pragma unroll
    for (int i = 0; i < 2; ++i) flow[i] *= StateFlow(thread_.Channel(i));
    Publish(shared_.key_flow, key_flow);
    // The operands' slabs are written over from here on.
    NamedBarrier(kGradMainBarrier, kMainThreads);
  }

  // The products with dA: of dq~ with the keys of the first chunk and on to
  // this one, of dk^ with the queries of the segment's last and back to this
  // one, one of each at a time. `key_flow` is scaled as what it has been summed
  // from.
  __device__ void AddScores(int last, float (&q)[32], float (&k)[32],
                            float (&key_flow)[2]) const {
#pragma unroll 1
    for (int i = 0; i <= max(chunk_, last - chunk_); ++i) {
      const int key = i, query = last - i;
      const bool has_key = key <= chunk_, has_query = query >= chunk_;
      float factor[2];
      if (has_key) {
        QueryFactor(key, factor);
        Scale(q, factor);
      }
      if (has_query) {
        KeyFactor(query, query == last, factor);
        Scale(k, factor);
        key_flow[0] *= factor[0];
        key_flow[1] *= factor[1];
      }
      Touch(q);
      Touch(k);
      if (has_key) {
        StartScores<kColumns>(shared_.gated[key].k, ScoreBlock(chunk_, key), q);
      }
      if (has_query) {
        StartScores<kRows>(shared_.gated[query].q, ScoreBlock(query, chunk_),
                           k);
      }
      WgmmaCommit();
      WgmmaWait<0>();
      Touch(q);
      Touch(k);
    }
  }

  // Before the keys of chunk c are added to dq~: the decay from after the keys
  // of the one before.
  __device__ void QueryFactor(int c, float (&factor)[2]) const {
    const Decay before = LoadDecay(max(c - 1, 0)), own = LoadDecay(c);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      factor[i] = (c > 0 ? before.edge[i] : 1) * (c < chunk_ ? own.mid[i] : 1);
    }
  }

  // The same of the queries of chunk c and dk^. D may have the segment's last
  // edge.
  __device__ void KeyFactor(int c, bool is_last, float (&factor)[2]) const {
    const Decay decay = LoadDecay(c);
    const bool has_edge = C::kHasEdge && is_last;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      factor[i] = c == chunk_ ? (has_edge ? 1 : decay.edge[i])
                              : (has_edge ? decay.mid[i] : decay.all[i]);
    }
  }

  // Starts d += operand^T times a block of dA, contracted along its columns
  // (keys) or rows (queries).
  template <Contract kScores>
  __device__ void StartScores(const uint8_t (&operand)[kSlabBytes], int block,
                              float (&d)[32]) const {
    const uint64_t a = SlabDescriptor(SharedAddress(operand));
    const uint64_t b = SlabDescriptor(SharedAddress(shared_.d_a[block]));
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      Wgmma<kRows, kScores>(d, StepDescriptor<kRows>(a, i),
                            StepDescriptor<kScores>(b, i), true);
    }
  }

  // What is left of the state before the segment after it; D may have the last
  // edge.
  __device__ void StateDecay(int last, float (&decay)[2]) const {
    decay[0] = decay[1] = 1;
#pragma unroll
    for (int c = 0; c < kSegmentChunks; ++c) {
      const Decay own = LoadDecay(c);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float factor = C::kHasEdge && c == last ? own.mid[i] : own.all[i];
        decay[i] *= c <= last ? factor : 1;
      }
    }
  }

  // <S, D> of a channel.
  __device__ float StateFlow(int channel) const {
    return (shared_.flow[0][channel] + shared_.flow[1][channel]) +
           (shared_.flow[2][channel] + shared_.flow[3][channel]);
  }

  // Stores what a quad has of two channels.
  __device__ void Publish(float (&to)[kSegmentChunks][64],
                          const float (&x)[2]) const {
    if (thread_.lane % 4 != 0) return;
    to[chunk_][thread_.Channel(0)] = x[0];
    to[chunk_][thread_.Channel(1)] = x[1];
  }

  // --- Gradients of the chunk, each in the place of an operand.

  __device__ void Finish(int n, float (&q)[32], float (&k)[32],
                         float (&flow)[2]) {
    const GradChunk chunk = Chunk();
    const Elements elements(params_.args, chunk, thread_);
    const bool any_steep = shared_.any_steep[chunk_];
    bool steep[2] = {false, false};
    // What has been in the place of steep channels is in the other block.
    BarrierWait(SharedAddress(&shared_.sent), n & 1);
    if (any_steep) {
      const auto is_steep = [this](int channel) {
        return IsSteep(shared_.log_decay[chunk_][channel]);
      };
      GradSteep<Gate, 32>(params_.args, chunk, thread_, shared_.steep(chunk_))
          .Add(kGradSteepBarrier + chunk_, is_steep, q, k);
      steep[0] = is_steep(thread_.Channel(0));
      steep[1] = is_steep(thread_.Channel(1));
    }
    elements.StoreKeys(any_steep, steep, q, k);
    FenceAsyncProxy();
    BarrierArrive(SharedAddress(&shared_.keys_finished[chunk_]));
    float terms[2] = {0, 0};
    elements.SumTerms(q, terms);
    Publish(shared_.terms, terms);
    NamedBarrier(kGradMainBarrier, kMainThreads);
    AddPublished(flow);
#pragma unroll
    for (int e = 0; e < 32; ++e) q[e] += flow[e / 2 % 2];
    elements.StoreGates(any_steep, q);
    FenceAsyncProxy();
    BarrierArrive(SharedAddress(&shared_.finished[chunk_]));
  }

  // From S's part of the flow out of the segment to the flow out of this chunk.
  __device__ void AddPublished(float (&flow)[2]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int channel = thread_.Channel(i);
#pragma unroll
      for (int c = 0; c < kSegmentChunks; ++c) {
        flow[i] += shared_.key_flow[c][channel];
        flow[i] += c > chunk_ ? shared_.terms[c][channel] : 0;
      }
    }
  }

  __device__ GradChunk Chunk() const {
    const int64_t H = params_.args.shape.H;
    return {.first = shared_.work.template KeyOffset<C>(H, chunk_),
            .stride = H * C::K,
            .rows = shared_.work.RowsOf(chunk_),
            .d_a = shared_.d_a[ScoreBlock(chunk_, chunk_)],
            .q = gated_.q,
            .k = gated_.k,
            .b = gated_.b};
  }

  const GradParams& params_;
  GradShared<C>& shared_;
  typename GradShared<C>::Gated& gated_;  // of the chunk
  const int chunk_;
  GradThread thread_;
  int step_ = 0;  // of all items
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_MAIN_CUH_
