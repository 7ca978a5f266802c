// The main warpgroups of the gradient kernel (chunk_gla_sm90_grad.cuh), a chunk
// each.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_MAIN_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_MAIN_CUH_

#include "kernels/gla/chunk_gla_sm90_gating.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_finish.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_shared.cuh"

namespace gla::internal {

template <typename C>
class GradMain {
 public:
  __device__ GradMain(const GradParams& params, GradShared<C>& shared,
                      int chunk)
      : params_(params),
        shared_(shared),
        chunk_(chunk),
        thread_{WarpOfGroup(), static_cast<int>(threadIdx.x % 32)} {}

  __device__ void Run() {
    for (int n = 0; shared_.HasItem(n); ++n) {
      float q[32] = {}, k[32] = {};
      float flow[2];
      StateProducts(q, k);
      thread_.lane = Opaque(thread_.lane);
      BarrierWait(SharedAddress(&shared_.gated_full), n & 1);
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
  using Elements = GradFinish<Gate, 32, ScaledParts>;
  static constexpr Contract kRows = Contract::kAlongRows;
  static constexpr Contract kColumns = Contract::kAlongColumns;
  static constexpr int kMainThreads = 128 * kSegmentChunks;

  __device__ float LogDecay(int c, int i) const {
    return shared_.log_decay[c][thread_.Channel(i)];
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
      if (i == C::kSteps - 1) {
        NamedBarrier(kGradLastStepBarrier, C::kThreads - 128);
      }
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
    const int last = (shared_.work(n).rows - 1) / kChunk;
    ScaleStateProducts(last, q, k);
    float key_flow[2];
    KeyFlow(n, last, k, key_flow);
    StateDecay(last, flow);
    BarrierWait(SharedAddress(&shared_.scored), n & 1);
    if (chunk_ == 0 && thread_.warp == 0 && thread_.lane == 0) {
      ClusterBarrierArrive(
          ClusterAddress(SharedAddress(&shared_.sent), ClusterRank() ^ 1));
    }
    AddScores(n, last, q, k);
#pragma unroll
    for (int i = 0; i < 2; ++i) flow[i] *= StateFlow(thread_.Channel(i));
    Publish(shared_.key_flow, key_flow);
    // The operands' slabs are written over from here on.
    NamedBarrier(kGradMainBarrier, kMainThreads);
    // What has been in the place of dA is in the other block.
    BarrierWait(SharedAddress(&shared_.sent), n & 1);
    if (!shared_.any_steep[chunk_]) {
      BarrierArrive(SharedAddress(&shared_.keys_free));
    }
  }

  // By args.scale, as dA is; and D had the last edge.
  __device__ void ScaleStateProducts(int last, float (&q)[32],
                                     float (&k)[32]) const {
#pragma unroll
    for (int e = 0; e < 32; ++e) q[e] *= params_.args.scale;
    if (!C::kHasEdge) return;
    const float log[2] = {-StateEdge(last, 0), -StateEdge(last, 1)};
    Scale(log, k);
  }

  // What the chunk's keys add to the flow out of the segment: k^ times the D
  // term of dk^, with the decays from their parts on.
  __device__ void KeyFlow(int n, int last, const float (&k)[32],
                          float (&key_flow)[2]) const {
    float decay[2];  // from the part asked for to the segment's end
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      decay[i] = SumDecays(chunk_ + 1, last, i);
    }
    const auto weight = [this, &decay](int part, int i) {
      const PartGates gates = Part(chunk_ * kChunkParts + part, i);
      const float log = decay[i] + gates.Edge() - gates.KeyExponent();
      decay[i] += gates.decay;
      return Exp2(log);
    };
    const GradChunk chunk = Chunk(n);
    const ScaledParts scaling = Scaling();
    const Elements elements(params_.args, chunk, thread_, scaling);
    if (shared_.is_gentle[chunk_]) {
      elements.KeyFlow(
          k, [](int, int) { return 1.0f; }, key_flow);
      key_flow[0] *= weight(kChunkParts - 1, 0);
      key_flow[1] *= weight(kChunkParts - 1, 1);
    } else {
      elements.KeyFlow(k, weight, key_flow);
    }
  }

  // The decays of chunks `first` to `last`, as a log.
  __device__ float SumDecays(int first, int last, int i) const {
    float sum = 0;
#pragma unroll
    for (int c = 0; c < kSegmentChunks; ++c) {
      const float log = LogDecay(c, i);
      sum += c >= first && c <= last ? log : 0;
    }
    return sum;
  }

  // What the stored D has been scaled by, as a log.
  __device__ float StateEdge(int last, int i) const {
    if (!C::kHasEdge) return 0;
    const float log = LogDecay(last, i);
    return IsSteep(log) ? 0 : log;
  }

  // A part of the segment and this thread's channel i.
  __device__ const PartGates& Part(int part, int i) const {
    return shared_
        .parts[part / kChunkParts][part % kChunkParts][thread_.Channel(i)];
  }

  // The products with dA: of dq~ with the keys of the first chunk and on to
  // this one, of dk^ with the queries of the segment's last and back to this
  // one, one of each at a time. Accumulators come to have the reference and the
  // scale of what is added next. Gentle chunks have one of each and are added
  // at once.
  __device__ void AddScores(int n, int last, float (&q)[32],
                            float (&k)[32]) const {
    Logs rest = {};
    const int count = max(chunk_, last - chunk_) + 1;
    const bool gentle =
        shared_.is_gentle[0] & shared_.is_gentle[1] & shared_.is_gentle[2];
    int part = 0;
    Logs logs;
    FindLogs(0, last, part, gentle, rest, logs);
#pragma unroll 1
    for (int i = 0; i < count;) {
      StartTerms(n, i, last - i, part, gentle, logs, q, k);
      // During the products.
      if (gentle || ++part == kChunkParts) part = 0, ++i;
      FindLogs(i, last - i, part, gentle, rest, logs);
      WgmmaWait<0>();
      Touch(q);
      Touch(k);
    }
  }

  // Of dq~ and dk^ and the thread's channels.
  struct Logs {
    float q[2], k[2];
  };

  // What accumulators are multiplied by before terms are added, as a log, if
  // `rest` is what is left from before; and what is left after. (Tokens of
  // other parts also by Mid.) The terms are those with keys of chunk `key` and
  // queries of chunk `query`, if there are any: with their parts number
  // `part`, of queries from the last back, or with all (gentle).
  __device__ void FindLogs(int key, int query, int part, bool gentle,
                           Logs& rest, Logs& logs) const {
    if (key <= chunk_) {
      const float scale =
          shared_.score_exponent[ScoreBlock(chunk_, 0) + key][0];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const PartGates gates =
            Part(key * kChunkParts + (gentle ? kChunkParts - 1 : part), i);
        const float exponent = gates.KeyExponent() + scale;
        logs.q[i] = rest.q[i] + exponent;
        rest.q[i] = gates.Edge() - exponent;
      }
    }
    if (query >= chunk_) {
      const float scale = shared_.score_exponent[ScoreBlock(query, chunk_)][0];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const PartGates gates = Part(QueryPart(query, part), i);
        const float exponent = gates.QueryExponent() + scale;
        logs.k[i] = rest.k[i] + exponent + gates.Edge();
        rest.k[i] = -exponent;
      }
    }
  }
  static __device__ int QueryPart(int query, int part) {
    return query * kChunkParts + kChunkParts - 1 - part;
  }

  __device__ void StartTerms(int n, int key, int query, int part, bool gentle,
                             const Logs& logs, float (&q)[32],
                             float (&k)[32]) const {
    const int query_part = kChunkParts - 1 - part;
    if (key <= chunk_) {
      if (gentle) {
        Scale(logs.q, q);
      } else {
        ScaleParts<1>(key == chunk_, key * kChunkParts + part, logs.q, q);
      }
    }
    if (query >= chunk_) {
      if (gentle) {
        Scale(logs.k, k);
      } else {
        ScaleParts<-1>(query == chunk_, QueryPart(query, part), logs.k, k);
      }
    }
    Touch(q);
    Touch(k);
    if (key <= chunk_) {
      StartScores<kColumns, 1>(shared_.keys(n, key).k,
                               shared_.d_a(n, ScoreBlock(chunk_, 0) + key),
                               part, gentle, q);
    }
    if (query >= chunk_) {
      StartScores<kRows, -1>(shared_.keys(n, query).q,
                             shared_.d_a(n, ScoreBlock(query, chunk_)),
                             query_part, gentle, k);
    }
    WgmmaCommit();
  }

  // Finite: what it multiplies may be 0.
  static __device__ float Factor(float log) {
    return Exp2(fminf(log, kMaxFactor));
  }
  static __device__ void Scale(const float (&log)[2], float (&d)[32]) {
    const float factor[2] = {Factor(log[0]), Factor(log[1])};
#pragma unroll
    for (int e = 0; e < 32; ++e) d[e] *= factor[e / 2 % 2];
  }

  // The same for terms with `part`. But if it is of this chunk (is_own), its
  // tokens are scaled without Mid, and those of parts before it, in the
  // direction of kStep, are not.
  template <int kStep>
  __device__ void ScaleParts(bool is_own, int part, const float (&log)[2],
                             float (&d)[32]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float own = Factor(log[i]),
                  others = Factor(log[i] + Part(part, i).Mid());
#pragma unroll
      for (int p = 0; p < kChunkParts; ++p) {
        const int order = is_own ? (p - part % kChunkParts) * kStep : 1;
        const float factor = order > 0 ? others : order == 0 ? own : 1;
#pragma unroll
        for (int e = 8 * p + 2 * i; e < 8 * p + 8; e += 4) {
          d[e] *= factor;
          d[e + 1] *= factor;
        }
      }
    }
  }

  // Starts d += operand^T times a block of dA, contracted along its columns
  // (keys) or rows (queries), of one part, or of all in the direction of kStep.
  template <Contract kScores, int kStep>
  __device__ void StartScores(const uint8_t (&operand)[kSlabBytes],
                              const uint8_t (&scores)[kSlabBytes], int part,
                              bool all, float (&d)[32]) const {
    const uint64_t a =
        StepDescriptor<kRows>(SlabDescriptor(SharedAddress(operand)), part);
    const uint64_t b =
        StepDescriptor<kScores>(SlabDescriptor(SharedAddress(scores)), part);
    WgmmaFence();
    Wgmma<kRows, kScores, __half>(d, a, b, true);
    if (!all) return;
#pragma unroll
    for (int i = 1; i < kChunkParts; ++i) {
      Wgmma<kRows, kScores, __half>(d, StepDescriptor<kRows>(a, i * kStep),
                                    StepDescriptor<kScores>(b, i * kStep),
                                    true);
    }
  }

  // What is left of the state before the segment after it; D may have the last
  // edge.
  __device__ void StateDecay(int last, float (&decay)[2]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      decay[i] = Exp2(SumDecays(0, last, i) - StateEdge(last, i));
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
    const GradChunk chunk = Chunk(n);
    const ScaledParts scaling = Scaling();
    const Elements elements(params_.args, chunk, thread_, scaling);
    const bool any_steep = shared_.any_steep[chunk_];
    if (any_steep) {
      const auto is_steep = [this](int channel) {
        bool any = false;
        for (const auto& part : shared_.parts[chunk_]) {
          any |= part[channel].IsSteep();
        }
        return any;
      };
      GradSteep<Gate, 32, ScaledParts>(params_.args, chunk, thread_, scaling,
                                       shared_.steep(n, chunk_))
          .Add(shared_.steep_meeting[chunk_], is_steep, q, k);
      FenceAsyncProxy();
      BarrierArrive(SharedAddress(&shared_.keys_free));
    }
    elements.StoreKeys(any_steep, q, k);
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
    BarrierArrive(SharedAddress(&shared_.gates_finished[chunk_]));
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

  __device__ ScaledParts Scaling() const {
    return {.gates = shared_.parts[chunk_],
            .thread = thread_,
            .score_exponent =
                shared_.score_exponent[ScoreBlock(chunk_, chunk_)][0]};
  }

  __device__ GradChunk Chunk(int n) const {
    auto& keys = shared_.keys(n, chunk_);
    const GradWork& work = shared_.work(n);
    const int64_t H = params_.args.shape.H;
    return {.first = work.template KeyOffset<C>(H, chunk_),
            .stride = H * C::K,
            .rows = work.RowsOf(chunk_),
            .d_a = shared_.d_a(n, ScoreBlock(chunk_, chunk_)),
            .q = keys.q,
            .k = keys.k,
            .b = shared_.gates[chunk_]};
  }

  const GradParams& params_;
  GradShared<C>& shared_;
  const int chunk_;
  GradThread thread_;
  int step_ = 0;  // of all items
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_MAIN_CUH_
