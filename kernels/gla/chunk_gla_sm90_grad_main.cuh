// The main warpgroups of the gradient kernel (chunk_gla_sm90_grad.cuh), 64
// channels each.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_MAIN_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_MAIN_CUH_

#include "kernels/gla/chunk_gla_sm90_gating.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_shared.cuh"
#include "kernels/gla/chunk_gla_sm90_grad_steep.cuh"

namespace gla::internal {

template <typename C>
class GradMain {
 public:
  __device__ GradMain(const GradParams& params, GradShared<C>& shared,
                      int group)
      : params_(params),
        shared_(shared),
        thread_{group, WarpOfGroup(), static_cast<int>(threadIdx.x % 32)},
        fragment_(SlabOffset((thread_.lane & 7) + ((thread_.lane >> 4) << 3),
                             2 * thread_.warp + ((thread_.lane >> 3) & 1))) {}

  __device__ void Run() {
    GradItems<C> items;
    for (int n = 0; items.Next(params_, &work_); ++n) {
      float q[2][32] = {}, k[2][32] = {};
      float flow[2];
      StateProducts(q, k, flow);
      BarrierWait(SharedAddress(&shared_.gated_full[work_.buffer]),
                  n / C::kBuffers & 1);
      BarrierWait(SharedAddress(&shared_.scored), n & 1);
      Decay decay[2];
      LoadDecay(0, decay[0]);
      LoadDecay(1, decay[1]);
      Within(decay, q, k, flow);
      Finish(1, q[1], k[1], flow);
      Finish(0, q[0], k[0], flow);
      FenceAsyncProxy();
      BarrierArrive(SharedAddress(&shared_.finished));
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
    return shared_.gated[work_.buffer][thread_.group];
  }

  // Of this thread's two channels in a chunk.
  struct Decay {
    float all[2];   // e^B
    float edge[2];  // and
    float mid[2];   // as in chunk_gla_sm90.cuh
  };

  __device__ void LoadDecay(int c, Decay& decay) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float log = shared_.log_decay[work_.buffer][c][thread_.group * 64 +
                                                           thread_.Channel(i)];
      const float all = Exp2(log);
      const bool steep = IsSteep(log);
      decay.all[i] = all;
      decay.edge[i] = steep ? 1 : all;
      decay.mid[i] = steep ? all : 1;
    }
  }

  static __device__ void Scale(float (&d)[32], const float (&factor)[2]) {
#pragma unroll
    for (int e = 0; e < 32; ++e) d[e] *= factor[e / 2 % 2];
  }

  // --- From the stored states.

  // q += S do^T, k += D v^T, flow = <S, D> of this thread's channels.
  __device__ void StateProducts(float (&q)[2][32], float (&k)[2][32],
                                float (&flow)[2]) {
    float sums[8] = {};
#pragma unroll 1
    for (int step = 0; step < C::kSteps; ++step) {
      WaitForStage(half_step_);
      StartProduct(q);
      if (step > 0) {
        WgmmaWait<1>();
        Release(half_step_ - 1);
      }
      WaitForStage(half_step_ + 1);
      StartProduct(k, 1);
      AddFlow(sums);
      WgmmaWait<1>();
      Release(half_step_);
      half_step_ += 2;
    }
    WgmmaWait<0>();
    Release(half_step_ - 1);
    TouchAll(q, k);
    FinishFlow(sums, flow);
  }

  __device__ void WaitForStage(int half_step) const {
    BarrierWait(SharedAddress(&shared_.full[half_step % C::kStages]),
                HalfStepParity<C>(half_step));
  }
  __device__ void Release(int half_step) {
    __syncwarp();
    if (thread_.lane == 0) {
      BarrierArrive(SharedAddress(&shared_.empty[half_step % C::kStages]));
    }
  }

  // Starts d += state rows^T of the stage of half step half_step_ + next.
  __device__ void StartProduct(float (&d)[2][32], int next = 0) {
    const auto& stage = shared_.stage[(half_step_ + next) % C::kStages];
    const uint64_t state =
        SlabDescriptor(SharedAddress(stage.state[thread_.group]));
    const uint64_t rows = SlabDescriptor(SharedAddress(stage.rows));
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint64_t a = StepDescriptor<kRows>(state, i);
      Wgmma<kRows, kColumns>(d[0], a, StepDescriptor<kColumns>(rows, i), true);
      Wgmma<kRows, kColumns>(
          d[1], a, StepDescriptor<kColumns>(rows + kNextSlab, i), true);
    }
    WgmmaCommit();
  }

  // Adds 64 values' <S, D>, meanwhile. A warp has its 16 channels of all rows:
  // even lanes the first eight, odd ones the others; the rows of a quarter of a
  // warp lie in different banks.
  __device__ void AddFlow(float (&sums)[8]) const {
    const uint32_t s = SharedAddress(
        shared_.stage[half_step_ % C::kStages].state[thread_.group]);
    const uint32_t d = SharedAddress(
        shared_.stage[(half_step_ + 1) % C::kStages].state[thread_.group]);
    const int group = thread_.lane / 2;
    const int row = group % 4 * 2 + group / 4 % 2 + group / 8 * 8;
    const uint32_t offset =
        SlabOffset(row, 2 * thread_.warp + thread_.lane % 2);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint4 x = LoadShared128(s + offset + i * 2048);
      const uint4 y = LoadShared128(d + offset + i * 2048);
      const uint32_t a[4] = {x.x, x.y, x.z, x.w};
      const uint32_t b[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sums[2 * j] += LowFloat(a[j]) * LowFloat(b[j]);
        sums[2 * j + 1] += HighFloat(a[j]) * HighFloat(b[j]);
      }
    }
  }

  __device__ void FinishFlow(float (&sums)[8], float (&flow)[2]) const {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int distance = 2; distance < 32; distance *= 2) {
        sums[j] += __shfl_xor_sync(0xffffffff, sums[j], distance);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float x = __shfl_sync(0xffffffff, sums[j], i);
        if (thread_.lane / 4 == j) flow[i] = x;
      }
    }
  }

  // --- Within the segment.

  // From state products to dq~ and dk^ of both chunks, and from <S, D> to the
  // flow out of the segment.
  __device__ void Within(const Decay (&decay)[2], float (&q)[2][32],
                         float (&k)[2][32], float (&flow)[2]) {
    // If there is no chunk 1, D has been scaled for chunk 0.
    const bool both = work_.rows > kChunk;
    Scale(q[1], decay[0].mid);
    Scale(k[0], decay[1].mid);
    float early[2], late[2], key_edge[2];
    KeyFlow(0, k[0], early);
    KeyFlow(1, k[1], late);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      key_edge[i] = both ? decay[0].edge[i] : 1;
      flow[i] *= both ? decay[0].all[i] * decay[1].mid[i] : decay[0].mid[i];
      flow[i] += key_edge[i] * early[i] + late[i];
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
    Scale(q[1], decay[0].edge);
    Scale(k[0], key_edge);
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

  // The sum of k^ d over a chunk's tokens.
  __device__ void KeyFlow(int c, const float (&d)[32], float (&sum)[2]) const {
    const int rows = work_.RowsOf(c);
    sum[0] = sum[1] = 0;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      uint32_t x[4];
      LoadMatrixTransposed(SharedAddress(Gated().k[c]) + fragment_ + 2048 * s,
                           x);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int e = 8 * s + 2 * i;
        if (thread_.Token(e) < rows) sum[i % 2] += LowFloat(x[i]) * d[e];
        if (thread_.Token(e + 1) < rows)
          sum[i % 2] += HighFloat(x[i]) * d[e + 1];
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sum[i] += __shfl_xor_sync(0xffffffff, sum[i], 1);
      sum[i] += __shfl_xor_sync(0xffffffff, sum[i], 2);
    }
  }

  // --- Gradients of a chunk, each in the place of an operand.

  // `flow` is what flows out of the chunk, and becomes what flows into it.
  __device__ void Finish(int c, float (&q)[32], float (&k)[32],
                         float (&flow)[2]) {
    const int rows = work_.RowsOf(c);
    const bool any_steep = shared_.any_steep[work_.buffer][thread_.group][c];
    bool steep[2] = {false, false};
    if (any_steep) {
      const GradSteep<C> channels(params_.args, shared_, work_, thread_);
      channels.Add(c, q, k);
      steep[0] = channels.IsSteep(c, thread_.Channel(0));
      steep[1] = channels.IsSteep(c, thread_.Channel(1));
    }
    const uint32_t q_slab = SharedAddress(Gated().q[c]) + fragment_;
    const uint32_t k_slab = SharedAddress(Gated().k[c]) + fragment_;
    const uint32_t b_slab = SharedAddress(Gated().b[c]) + fragment_;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      uint32_t x[4], y[4], b[4];
      LoadMatrixTransposed(q_slab + 2048 * s, x);
      LoadMatrixTransposed(k_slab + 2048 * s, y);
      LoadMatrixTransposed(b_slab + 2048 * s, b);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int e = 8 * s + 2 * i;
        FinishPair(e, rows, steep[i % 2], x[i], y[i], b[i], q, k);
      }
      StoreMatrixTransposed(q_slab + 2048 * s, x);
      StoreMatrixTransposed(k_slab + 2048 * s, y);
    }
    SumTerms(q, flow);
    if (any_steep) ZeroResets(c, q);
    if constexpr (sizeof(Gate) == 2) {
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        uint32_t a[4];
        PackOperand(q, s, a);
        StoreMatrixTransposed(b_slab + 2048 * s, a);
      }
    } else {
      float* const to = static_cast<float*>(params_.args.dg);
#pragma unroll
      for (int e = 0; e < 32; ++e) {
        if (thread_.Token(e) < rows) {
          to[work_.KeyOffset<C>(params_.args.shape.H, thread_.group, c,
                                thread_.Token(e)) +
             thread_.Channel(e / 2 % 2)] = q[e];
        }
      }
    }
  }

  // Elements e and e + 1, with their operands x = q~, y = k^ and gates: x and y
  // become dq and dk, q the terms q~ dq~ - k^ dk^ of dg.
  __device__ void FinishPair(int e, int rows, bool steep, uint32_t& x,
                             uint32_t& y, uint32_t b, float (&q)[32],
                             float (&k)[32]) {
    float term[2], dq[2], dk[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t units = i == 0 ? b & 0xffff : b >> 16;
      const float q_operand = i == 0 ? LowFloat(x) : HighFloat(x);
      const float k_operand = i == 0 ? LowFloat(y) : HighFloat(y);
      term[i] = q_operand * q[e + i] - k_operand * k[e + i];
      dq[i] = q[e + i] * params_.args.scale * Exp2(units * (-1 / kLogUnits));
      dk[i] = k[e + i] * Exp2(units * (1 / kLogUnits));
    }
    if (steep) {  // GradSteep has left them so.
      term[0] = __uint_as_float(__byte_perm(x, y, 0x1054));
      term[1] = __uint_as_float(__byte_perm(x, y, 0x3276));
      dq[0] = q[e], dq[1] = q[e + 1];
      dk[0] = k[e], dk[1] = k[e + 1];
    }
    x = PackBf16(dq[0], dq[1]);
    y = PackBf16(dk[0], dk[1]);
    q[e] = thread_.Token(e) < rows ? term[0] : 0;
    q[e + 1] = thread_.Token(e + 1) < rows ? term[1] : 0;
  }

  // Terms to gradients: the sum of a token's and all later terms, plus `flow`,
  // to which all are added.
  __device__ void SumTerms(float (&term)[32], float (&flow)[2]) const {
#pragma unroll
    for (int j = 7; j >= 0; --j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& first = term[4 * j + 2 * i];
        float& second = term[4 * j + 2 * i + 1];
        first += second;
        // Sums over the pairs of later lanes of the quad.
        float later = 0;
#pragma unroll
        for (int offset = 1; offset < 4; ++offset) {
          const float x = __shfl_down_sync(0xffffffff, first, offset, 4);
          if (thread_.lane % 4 + offset < 4) later += x;
        }
        const float all =
            __shfl_sync(0xffffffff, first + later, thread_.lane & ~3);
        first += later + flow[i];
        second += later + flow[i];
        flow[i] += all;
      }
    }
  }

  // dg is 0 where a gate is -inf.
  __device__ void ZeroResets(int c, float (&term)[32]) {
    const Gate* const g = static_cast<const Gate*>(params_.args.g);
    const int rows = work_.RowsOf(c);
#pragma unroll
    for (int e = 0; e < 32; ++e) {
      if (thread_.Token(e) < rows &&
          static_cast<float>(
              g[work_.KeyOffset<C>(params_.args.shape.H, thread_.group, c,
                                   thread_.Token(e)) +
                thread_.Channel(e / 2 % 2)]) == -INFINITY) {
        term[e] = 0;
      }
    }
  }

  const GradParams& params_;
  GradShared<C>& shared_;
  const GradThread thread_;
  const uint32_t fragment_;  // this lane's place in 16 rows of a slab, as
                             // ldmatrix and stmatrix want it
  GradWork work_;
  int half_step_ = 0;
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_MAIN_CUH_
