// The main warpgroups of the gradient kernel (chunk_gla_sm90_grad.cuh), 64
// channels each.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_MAIN_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_MAIN_CUH_

#include "kernels/gla/chunk_gla_sm90_gating.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_shared.cuh"

namespace gla::internal {

template <typename C>
class GradMain {
 public:
  __device__ GradMain(const GradParams& params, GradShared<C>& shared,
                      int group)
      : params_(params),
        shared_(shared),
        thread_{group, WarpOfGroup(), static_cast<int>(threadIdx.x % 32)} {}

  __device__ void Run() {
    GradWork unused;  // the gate warpgroup's is what counts
    bool has_work = GradItems<C>().Next(params_, &unused);
    for (int n = 0; has_work; ++n) {
      float q[2][32] = {}, k[2][32] = {};
      float flow[2];
      StateProducts(q, k);
      thread_.lane = Opaque(thread_.lane);
      BarrierWait(SharedAddress(&shared_.gated_full), n & 1);
      has_work = shared_.has_next;
      Within(n, q, k, flow);
      // One copy of the code: two do not stay in the instruction cache.
#pragma unroll 1
      for (int c = kSegmentChunks - 1; c >= 0; --c) {
        Finish(c, q[1], k[1], flow);
        Copy(q[0], q[1]);
        Copy(k[0], k[1]);
      }
    }
  }

 private:
  // The same in all lanes, and known to be.
  static __device__ int WarpOfGroup() {
    return __shfl_sync(0xffffffff, threadIdx.x / 32 % 4, 0);
  }

  using Gate = typename C::Gate;
  static constexpr Contract kRows = Contract::kAlongRows;
  static constexpr Contract kColumns = Contract::kAlongColumns;
  static constexpr int kNextSlab = kSlabBytes >> 4;  // in a descriptor

  // The operands of this warpgroup's channels.
  __device__ typename GradShared<C>::Gated& Gated() const {
    return shared_.gated[thread_.group];
  }

  // Of this thread's two channels in a chunk.
  struct Decay {
    float all[2];   // e^B
    float edge[2];  // and
    float mid[2];   // as in chunk_gla_sm90.cuh
  };

  __device__ Decay LoadDecay(int c) const {
    Decay decay;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float log =
          shared_.log_decay[c][thread_.group * 64 + thread_.Channel(i)];
      const float all = Exp2(log);
      const bool steep = IsSteep(log);
      decay.all[i] = all;
      decay.edge[i] = steep ? 1 : all;
      decay.mid[i] = steep ? all : 1;
    }
    return decay;
  }

  static __device__ void Copy(const float (&from)[32], float (&to)[32]) {
#pragma unroll
    for (int e = 0; e < 32; ++e) to[e] = from[e];
  }

  static __device__ void Scale(float (&d)[32], const float (&factor)[2]) {
#pragma unroll
    for (int e = 0; e < 32; ++e) d[e] *= factor[e / 2 % 2];
  }

  // --- From the stored states.

  // q += S do^T, k += D v^T.
  __device__ void StateProducts(float (&q)[2][32], float (&k)[2][32]) {
#pragma unroll 1
    for (int i = 0; i < C::kSteps; ++i) {
      const int index = step_ % C::kStages;
      BarrierWait(SharedAddress(&shared_.full[index]), StepParity<C>(step_));
      const auto& stage = shared_.stage[index];
      WgmmaFence();
      AddProduct(stage.state[thread_.group], stage.d_o, q);
      AddProduct(stage.d_state[thread_.group], stage.v, k);
      WgmmaCommit();
      if (i > 0) {
        WgmmaWait<1>();
        Release(step_ - 1);
      }
      ++step_;
    }
    WgmmaWait<0>();
    Release(step_ - 1);
    TouchAll(q, k);
  }

  __device__ void Release(int step) {
    __syncwarp();
    if (thread_.lane == 0) {
      BarrierArrive(SharedAddress(&shared_.empty[step % C::kStages]));
    }
  }

  // Starts d += state rows^T of a step's values.
  static __device__ void AddProduct(
      const uint8_t (&state)[kSlabBytes / 2],
      const uint8_t (&rows)[kSegmentChunks][kSlabBytes / 2],
      float (&d)[2][32]) {
    const uint64_t first = SlabDescriptor(SharedAddress(state));
#pragma unroll
    for (int i = 0; i < C::kValues / 16; ++i) {
      const uint64_t a = StepDescriptor<kRows>(first, i);
#pragma unroll
      for (int c = 0; c < kSegmentChunks; ++c) {
        const uint64_t b = HalfSlabDescriptor(SharedAddress(rows[c]));
        Wgmma<kRows, kColumns>(d[c], a, StepDescriptor<kColumns>(b, i), true);
      }
    }
  }

  // --- Within the segment.

  // From state products to dq~ and dk^ of both chunks of item n, and the flow
  // out of the segment.
  __device__ void Within(int n, float (&q)[2][32], float (&k)[2][32],
                         float (&flow)[2]) {
    // If there is no chunk 1, D has been scaled for chunk 0, or will be.
    const bool both = shared_.work.rows > kChunk;
    // Decays are loaded anew wherever they are used: registers are short.
    Scale(q[1], LoadDecay(0).mid);
    if constexpr (C::kHasEdge) {
      Scale(k[0], LoadDecay(1).mid);
    } else {
      const Decay last = LoadDecay(both ? 1 : 0);
      Scale(k[1], last.edge);
      const float all[2] = {both ? last.all[0] : last.edge[0],
                            both ? last.all[1] : last.edge[1]};
      Scale(k[0], all);
    }
    float early[2], late[2];
    KeyFlow(0, k[0], early);
    KeyFlow(1, k[1], late);
    BarrierWait(SharedAddress(&shared_.scored), n & 1);
    {
      const Decay first = LoadDecay(0), second = LoadDecay(1);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        // D has its edge, or gets it here.
        const float edge = both ? second.edge[i] : first.edge[i];
        const float decay = both ? first.all[i] * second.mid[i] : first.mid[i];
        flow[i] = shared_.flow[thread_.group * 64 + thread_.Channel(i)] *
                  (C::kHasEdge ? 1 : edge) * decay;
        flow[i] += (both ? first.edge[i] : 1) * early[i] + late[i];
      }
    }
    const uint64_t d_a = SlabDescriptor(SharedAddress(shared_.d_a));
    StartProducts(q, k);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      Wgmma<kRows, kColumns>(q[0], Operand(Gated().k[0], i),
                             StepDescriptor<kColumns>(d_a, i), true);
      Wgmma<kRows, kColumns>(q[1], Operand(Gated().k[0], i),
                             StepDescriptor<kColumns>(d_a + kNextSlab, i),
                             true);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      Wgmma<kRows, kRows>(k[0], Operand(Gated().q[1], i),
                          StepDescriptor<kRows>(d_a + kNextSlab, i), true);
      Wgmma<kRows, kRows>(k[1], Operand(Gated().q[1], i),
                          StepDescriptor<kRows>(d_a + 2 * kNextSlab, i), true);
    }
    EndProducts(q, k);
    {
      const Decay first = LoadDecay(0);
      const float key_edge[2] = {both ? first.edge[0] : 1,
                                 both ? first.edge[1] : 1};
      Scale(q[1], first.edge);
      Scale(k[0], key_edge);
    }
    StartProducts(q, k);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      Wgmma<kRows, kColumns>(q[1], Operand(Gated().k[1], i),
                             StepDescriptor<kColumns>(d_a + 2 * kNextSlab, i),
                             true);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      Wgmma<kRows, kRows>(k[0], Operand(Gated().q[0], i),
                          StepDescriptor<kRows>(d_a, i), true);
    }
    EndProducts(q, k);
    // The operands' slabs are written over from here on.
    NamedBarrier(kGradMainBarrier + thread_.group, 128);
  }

  static __device__ uint64_t Operand(const uint8_t* slab, int step) {
    return StepDescriptor<kRows>(SlabDescriptor(SharedAddress(slab)), step);
  }

  static __device__ void StartProducts(float (&q)[2][32], float (&k)[2][32]) {
    TouchAll(q, k);
    WgmmaFence();
  }
  static __device__ void EndProducts(float (&q)[2][32], float (&k)[2][32]) {
    WgmmaCommit();
    WgmmaWait<0>();
    TouchAll(q, k);
  }
  static __device__ void TouchAll(float (&q)[2][32], float (&k)[2][32]) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      Touch(q[c]);
      Touch(k[c]);
    }
  }

  __device__ void KeyFlow(int c, const float (&d)[32], float (&sum)[2]) {
    const GradChunk chunk = Chunk(c);
    Elements(params_.args, chunk, thread_).KeyFlow(d, sum);
  }

  // --- Gradients of a chunk, each in the place of an operand.

  // `flow` is what flows out of the chunk, and becomes what flows into it.
  __device__ void Finish(int c, float (&q)[32], float (&k)[32],
                         float (&flow)[2]) {
    const GradChunk chunk = Chunk(c);
    const Elements elements(params_.args, chunk, thread_);
    const bool any_steep = shared_.any_steep[thread_.group][c];
    bool steep[2] = {false, false};
    if (any_steep) {
      const auto is_steep = [this, c](int channel) {
        return IsSteep(shared_.log_decay[c][thread_.group * 64 + channel]);
      };
      GradSteep<Gate, 32>(params_.args, chunk, thread_,
                          shared_.steep[thread_.group])
          .Add(kGradMainBarrier + thread_.group, is_steep, q, k);
      steep[0] = is_steep(thread_.Channel(0));
      steep[1] = is_steep(thread_.Channel(1));
    }
    elements.StoreKeys(any_steep, steep, q, k);
    elements.SumTerms(q, flow);
    elements.StoreGates(any_steep, q);
    FenceAsyncProxy();
    BarrierArrive(SharedAddress(&shared_.finished[c]));
  }

  using Elements = GradFinish<Gate, 32>;

  __device__ GradChunk Chunk(int c) {
    auto& gated = Gated();
    const int64_t H = params_.args.shape.H;
    return {.first = shared_.work.template KeyOffset<C>(H, thread_.group, c),
            .stride = H * C::K,
            .rows = shared_.work.RowsOf(c),
            .d_a = shared_.d_a[2 * c],
            .q = gated.q[c],
            .k = gated.k[c],
            .b = gated.b[c]};
  }

  const GradParams& params_;
  GradShared<C>& shared_;
  GradThread thread_;
  int step_ = 0;  // of all items
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_MAIN_CUH_
