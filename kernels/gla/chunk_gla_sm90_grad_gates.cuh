// The gate warpgroup of the gradient kernel (chunk_gla_sm90_grad.cuh): gated
// operands in, gradients out.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_GATES_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_GATES_CUH_

#include "kernels/gla/chunk_gla_sm90_grad_shared.cuh"

namespace gla::internal {

template <typename C>
class GradGates {
 public:
  __device__ GradGates(const GradParams& params, GradShared<C>& shared)
      : params_(params),
        shared_(shared),
        warp_(__shfl_sync(0xffffffff, threadIdx.x / 32 % 4, 0)),
        lane_(threadIdx.x % 32) {}

  __device__ void Run() {
    GradItems<C> items;
    bool more = items.Next(params_, &work_);
    if (more) LoadRaw();
    for (uint32_t parity = 0; more; parity ^= 1) {
      BarrierWait(SharedAddress(&shared_.raw_full), parity);
      if (warp_ < C::kMains * kSegmentChunks) Gate(warp_ / 2, warp_ % 2);
      FenceAsyncProxy();
      BarrierArrive(SharedAddress(&shared_.gated_full));
      BarrierWait(SharedAddress(&shared_.finished), parity);
      if (work_.rows == kSegment) {
        StoreSegment();
      } else {
        StoreRows();
      }
      more = items.Next(params_, &work_);
      if (more) LoadRaw();
    }
  }

 private:
  using GateT = typename C::Gate;
  using Pair = typename GatePair<GateT>::Type;
  static constexpr bool kGatesInSlab = sizeof(GateT) == 2;

  __device__ bool IsLoader() const { return warp_ == 0 && lane_ == 0; }
  // The first channel of a slab in a row of H K.
  __device__ int Column(int slab) const {
    return work_.h * C::K + (work_.slice * C::kMains + slab) * 64;
  }

  // q, k and 16-bit gates, each in the place of what is made of it.
  __device__ void LoadRaw() {
    if (!IsLoader()) return;
    const uint32_t full = SharedAddress(&shared_.raw_full);
    constexpr int kTensors = kGatesInSlab ? 3 : 2;
    BarrierArriveExpect(full,
                        C::kMains * kSegmentChunks * kTensors * kSlabBytes);
    for (int slab = 0; slab < C::kMains; ++slab) {
      auto& gated = shared_.gated[slab];
      for (int c = 0; c < kSegmentChunks; ++c) {
        const int row = work_.row + c * kChunk;
        TensorLoad(SharedAddress(gated.q[c]), &params_.q, Column(slab), row,
                   full);
        TensorLoad(SharedAddress(gated.k[c]), &params_.k, Column(slab), row,
                   full);
        if (kGatesInSlab) {
          TensorLoad(SharedAddress(gated.b[c]), &params_.g, Column(slab), row,
                     full);
        }
      }
    }
  }

  // A warp gates a chunk of 64 channels; lane l has channels 2 l and 2 l + 1.
  __device__ void Gate(int slab, int c) {
    float2 all = {0, 0};
#pragma unroll 1
    for (int first = 0; first < kChunk; first += kBatch) {
      Pair g[kBatch];
      LoadGates(slab, c, first, g);
#pragma unroll
      for (int r = 0; r < kBatch; ++r) {
        const float2 log2 = ToLog2(g[r]);
        all = {all.x + log2.x, all.y + log2.y};
      }
    }
    const bool steep0 = all.x < -kMaxLog2Decay;
    const bool steep1 = all.y < -kMaxLog2Decay;
    *reinterpret_cast<float2*>(&shared_.log_decay[c][slab * 64 + 2 * lane_]) =
        all;
    const bool any = __any_sync(0xffffffff, steep0 || steep1);
    if (lane_ == 0) shared_.any_steep[slab][c] = any;
    GateRows(slab, c, {steep0 ? all.x : 0, steep1 ? all.y : 0});
  }

  static constexpr int kBatch = 4;  // rows whose loads are issued together

  __device__ void LoadGates(int slab, int c, int first, Pair (&g)[kBatch]) {
    const int rows = work_.RowsOf(c);
#pragma unroll
    for (int r = 0; r < kBatch; ++r) {
      const int row = first + r;
      g[r] = Pair{};
      if (row >= rows) continue;
      if constexpr (kGatesInSlab) {
        g[r] = *reinterpret_cast<const uint32_t*>(shared_.gated[slab].b[c] +
                                                  Place(row));
      } else {
        const int64_t offset =
            (work_.row + c * kChunk + row) * (params_.args.shape.H * C::K) +
            Column(slab);
        g[r] = reinterpret_cast<const float2*>(
            static_cast<const float*>(params_.args.g) + offset)[lane_];
      }
    }
  }

  // Where this lane's two channels of a row are in a slab.
  __device__ uint32_t Place(int row) const {
    return row * 128 + (lane_ * 4 ^ (row % 8 << 4));
  }

  __device__ void GateRows(int slab, int c, float2 shift) {
    auto& gated = shared_.gated[slab];
    const int rows = work_.RowsOf(c);
    float2 b = {0, 0};
#pragma unroll 1
    for (int first = 0; first < kChunk; first += kBatch) {
      Pair g[kBatch];
      LoadGates(slab, c, first, g);
      uint32_t q[kBatch], k[kBatch];
#pragma unroll
      for (int r = 0; r < kBatch; ++r) {
        const uint32_t place = Place(first + r);
        q[r] = *reinterpret_cast<const uint32_t*>(gated.q[c] + place);
        k[r] = *reinterpret_cast<const uint32_t*>(gated.k[c] + place);
        if (first + r >= rows) q[r] = k[r] = 0;
      }
#pragma unroll
      for (int r = 0; r < kBatch; ++r) {
        const float2 log2 = ToLog2(g[r]);
        b = {b.x + log2.x, b.y + log2.y};
        const uint32_t place = Place(first + r);
        *reinterpret_cast<uint32_t*>(gated.q[c] + place) =
            PackBf16(LowFloat(q[r]) * params_.args.scale * Exp2(b.x),
                     HighFloat(q[r]) * params_.args.scale * Exp2(b.y));
        *reinterpret_cast<uint32_t*>(gated.k[c] + place) =
            PackBf16(LowFloat(k[r]) * Exp2(shift.x - b.x),
                     HighFloat(k[r]) * Exp2(shift.y - b.y));
        *reinterpret_cast<uint32_t*>(gated.b[c] + place) =
            __byte_perm(LogUnits(b.x), LogUnits(b.y), 0x5410);
      }
    }
  }

  // -kLogUnits b rounded to an integer of at most 16 bits, in the low half.
  static __device__ uint32_t LogUnits(float b) {
    constexpr float kIntegers = 1 << 23;  // floats from here on are integers
    return __float_as_uint(fminf(b * -kLogUnits, 65535) + kIntegers);
  }

  __device__ void StoreSegment() {
    if (!IsLoader()) return;
    for (int slab = 0; slab < C::kMains; ++slab) {
      auto& gated = shared_.gated[slab];
      for (int c = 0; c < kSegmentChunks; ++c) {
        const int row = work_.row + c * kChunk;
        TensorStore(&params_.dq, Column(slab), row, SharedAddress(gated.q[c]));
        TensorStore(&params_.dk, Column(slab), row, SharedAddress(gated.k[c]));
        if (kGatesInSlab) {
          TensorStore(&params_.d_g, Column(slab), row,
                      SharedAddress(gated.b[c]));
        }
      }
    }
    TensorStoreCommit();
    TensorStoreWaitRead();
  }

  // Of a sequence's last segment, only its own rows: eight threads a row.
  __device__ void StoreRows() {
    const int piece = lane_ % 8;
    for (int slab = 0; slab < C::kMains; ++slab) {
      const auto& gated = shared_.gated[slab];
      for (int r = warp_ * 4 + lane_ / 8; r < work_.rows; r += 16) {
        const int c = r / kChunk;
        const uint32_t place = SlabOffset(r % kChunk, piece);
        const int64_t offset = (work_.row + r) * (params_.args.shape.H * C::K) +
                               Column(slab) + piece * 8;
        const auto store = [place, offset](void* tensor, const uint8_t* from) {
          *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(tensor) +
                                    offset) =
              *reinterpret_cast<const uint4*>(from + place);
        };
        store(params_.args.dq, gated.q[c]);
        store(params_.args.dk, gated.k[c]);
        if (kGatesInSlab) store(params_.args.dg, gated.b[c]);
      }
    }
    FenceAsyncProxy();
    NamedBarrier(kGradGateBarrier, 128);  // Before the next load.
  }

  const GradParams& params_;
  GradShared<C>& shared_;
  GradWork work_;
  const int warp_, lane_;
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_GATES_CUH_
