// The gate warpgroup of the gradient kernel (chunk_gla_sm90_grad.cuh): gated
// operands in, gradients out.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_GATES_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_GATES_CUH_

#include "kernels/gla/chunk_gla_sm90_gating.cuh"
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
      const int column = Column(slab);
      for (int c = 0; c < kSegmentChunks; ++c) {
        const int row = work_.row + c * kChunk;
        TensorLoad(SharedAddress(gated.q[c]), &params_.q, column, row, full);
        TensorLoad(SharedAddress(gated.k[c]), &params_.k, column, row, full);
        if (kGatesInSlab) {
          TensorLoad(SharedAddress(gated.b[c]), &params_.g, column, row, full);
        }
      }
    }
  }

  // A warp gates a chunk of 64 channels, a lane 16 rows of it.
  __device__ void Gate(int slab, int c) {
    constexpr int kRows = kChunk / 4;
    auto& gated = shared_.gated[slab];
    const int first = lane_ / 8 * kRows, piece = lane_ % 8;
    const int rows = work_.RowsOf(c);
    Gates b = {}, all;
#pragma unroll 1
    for (int r = first; r < first + kRows; r += 4) {
      RawGates<GateT> g[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) g[i] = LoadGates(slab, c, r + i);
#pragma unroll
      for (int i = 0; i < 4; ++i) AddGates(g[i], b);
    }
    SumRowGroups(b, b, all);
    if (lane_ < 8) StoreSums(all, &shared_.log_decay[c][slab * 64 + 8 * piece]);
    bool any = false;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      any |= IsSteep(all[i]);
      all[i] = KeyShift(all[i]);
    }
    any = __any_sync(0xffffffff, any);
    if (lane_ == 0) shared_.any_steep[slab][c] = any;
#pragma unroll 1
    for (int r = first; r < first + kRows; r += kBatch) {
      RawGates<GateT> g[kBatch];
      uint4 q[kBatch], k[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        g[i] = LoadGates(slab, c, r + i);
        q[i] = *PieceAt(gated.q[c], r + i);
        k[i] = *PieceAt(gated.k[c], r + i);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        AddGates(g[i], b);
        if (r + i >= rows) q[i] = k[i] = uint4{};
        *PieceAt(gated.q[c], r + i) = GateQuery(q[i], b, params_.args.scale);
        *PieceAt(gated.k[c], r + i) = GateKey(k[i], b, all);
        *PieceAt(gated.b[c], r + i) = LogUnits(b);
      }
    }
  }

  static constexpr int kBatch = 2;  // rows whose loads are issued together

  // Zero where there is no row.
  __device__ RawGates<GateT> LoadGates(int slab, int c, int row) {
    if (row >= work_.RowsOf(c)) return {};
    if constexpr (kGatesInSlab) {
      return {*PieceAt(shared_.gated[slab].b[c], row)};
    } else {
      const int64_t offset =
          (work_.row + c * kChunk + row) * (params_.args.shape.H * C::K) +
          Column(slab) + lane_ % 8 * 8;
      return *reinterpret_cast<const RawGates<float>*>(
          static_cast<const float*>(params_.args.g) + offset);
    }
  }

  __device__ uint4* PieceAt(uint8_t (&slab)[kSlabBytes], int row) const {
    return reinterpret_cast<uint4*>(slab + SlabOffset(row, lane_ % 8));
  }

  // -kLogUnits b rounded to integers of 16 bits.
  static __device__ uint4 LogUnits(const Gates& b) {
    const auto units = [&b](int i) {
      constexpr float kIntegers = 1 << 23;  // floats from here on are integers
      return __float_as_uint(fminf(b[i] * -kLogUnits, 65535) + kIntegers);
    };
    const auto pair = [&units](int i) {
      return __byte_perm(units(i), units(i + 1), 0x5410);
    };
    return {pair(0), pair(2), pair(4), pair(6)};
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
