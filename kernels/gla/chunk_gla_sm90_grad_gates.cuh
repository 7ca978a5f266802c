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
    int count = 0;  // items whose loads have started
    const auto load_next = [this, &items, &count] {
      if (!items.Next(params_, &works_[count % C::kBuffers])) return;
      LoadRaw(count % C::kBuffers);
      ++count;
    };
    for (int b = 0; b < C::kBuffers; ++b) load_next();
    int gated = 0;
    for (int n = 0; n < count; ++n) {
      for (; gated < count && gated < n + C::kBuffers; ++gated) {
        GateItem(gated);
      }
      BarrierWait(SharedAddress(&shared_.finished), n & 1);
      Store(n % C::kBuffers);
      load_next();
    }
  }

 private:
  using GateT = typename C::Gate;
  // A lane has eight channels.
  using Gates = float[8];
  using Raw = RawGates<GateT, 8>;
  using Piece = Bf16Piece<8>;
  static constexpr bool kGatesInSlab = sizeof(GateT) == 2;

  static constexpr int kUnitWarps = 2 / C::kMains;  // that gate a chunk's slab
  static constexpr int kRows = kChunk / 4 / kUnitWarps;  // of a lane

  __device__ bool IsLoader() const { return warp_ == 0 && lane_ == 0; }
  // The first channel of a slab in a row of H K.
  static __device__ int Column(const GradWork& work, int slab) {
    return work.h * C::K + (work.slice * C::kMains + slab) * 64;
  }

  // q, k and 16-bit gates, each in the place of what is made of it.
  __device__ void LoadRaw(int buffer) {
    if (!IsLoader()) return;
    const GradWork& work = works_[buffer];
    const uint32_t full = SharedAddress(&shared_.raw_full[buffer]);
    constexpr int kTensors = kGatesInSlab ? 3 : 2;
    BarrierArriveExpect(full,
                        C::kMains * kSegmentChunks * kTensors * kSlabBytes);
    for (int slab = 0; slab < C::kMains; ++slab) {
      auto& gated = shared_.gated[buffer][slab];
      const int column = Column(work, slab);
      for (int c = 0; c < kSegmentChunks; ++c) {
        const int row = work.row + c * kChunk;
        TensorLoad(SharedAddress(gated.q[c]), &params_.q, column, row, full);
        TensorLoad(SharedAddress(gated.k[c]), &params_.k, column, row, full);
        if (kGatesInSlab) {
          TensorLoad(SharedAddress(gated.b[c]), &params_.g, column, row, full);
        }
      }
    }
  }

  // Item n: kUnitWarps warps gate a chunk of 64 channels.
  __device__ void GateItem(int n) {
    const int buffer = n % C::kBuffers;
    BarrierWait(SharedAddress(&shared_.raw_full[buffer]), n / C::kBuffers & 1);
    const int unit = warp_ / kUnitWarps;
    Gate(works_[buffer], buffer, unit / 2, unit % 2);
    FenceAsyncProxy();
    BarrierArrive(SharedAddress(&shared_.gated_full[buffer]));
  }

  __device__ void Gate(const GradWork& work, int buffer, int slab, int c) {
    auto& gated = shared_.gated[buffer][slab];
    const int part = warp_ % kUnitWarps, piece = lane_ % 8;
    const int first = (part * 4 + lane_ / 8) * kRows;
    const int rows = work.RowsOf(c);
    // A lane's rows' gates, or zero where there is no row.
    const auto gates = [&](int row) -> Raw {
      if (row >= rows) return {};
      if constexpr (kGatesInSlab) {
        return {*PieceAt(gated.b[c], row)};
      } else {
        const int64_t offset =
            (work.row + c * kChunk + row) * (params_.args.shape.H * C::K) +
            Column(work, slab) + 8 * piece;
        return *reinterpret_cast<const Raw*>(
            static_cast<const float*>(params_.args.g) + offset);
      }
    };
    Gates decay = {};  // of the chunk
    if (rows > 0) {
      LoadSums(params_.args.log_decays +
                   ((work.slot * kSegmentChunks + c) * params_.args.shape.H +
                    work.h) *
                       C::K +
                   (work.slice * C::kMains + slab) * 64 + 8 * piece,
               decay);
    }
    Gates b = {}, all;
#pragma unroll 1
    for (int r = first; r < first + kRows; r += 4) {
      Raw g[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) g[i] = gates(r + i);
#pragma unroll
      for (int i = 0; i < 4; ++i) AddGates(g[i], b);
    }
    SumRowGroups(b, b, all);
    if constexpr (kUnitWarps == 2) AddFirstHalf(c, part, all, b);
    if (part == 0 && lane_ < 8) {
      StoreSums(decay, &shared_.log_decay[buffer][c][slab * 64 + 8 * piece]);
    }
    Gates shift;
    bool any = false;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      any |= IsSteep(decay[i]);
      shift[i] = KeyShift(decay[i]);
    }
    any = __any_sync(0xffffffff, any);
    if (part == 0 && lane_ == 0) shared_.any_steep[buffer][slab][c] = any;
    constexpr int kBatch = 2;  // rows whose loads are issued together
#pragma unroll 1
    for (int r = first; r < first + kRows; r += kBatch) {
      Raw g[kBatch];
      Piece q[kBatch], k[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        g[i] = gates(r + i);
        q[i] = *PieceAt(gated.q[c], r + i);
        k[i] = *PieceAt(gated.k[c], r + i);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        AddGates(g[i], b);
        if (r + i >= rows) q[i] = k[i] = {};
        Gates x;
        GateQuery(q[i], b, params_.args.scale, x);
        *PieceAt(gated.q[c], r + i) = Round(x);
        GateKey(k[i], b, shift, x);
        *PieceAt(gated.k[c], r + i) = Round(x);
        *PieceAt(gated.b[c], r + i) = LogUnits(b);
      }
    }
  }

  // From sums within half a chunk, `all` of them, to sums within the chunk.
  __device__ void AddFirstHalf(int c, int part, const Gates& all,
                               Gates& before) {
    float(&total)[64] = shared_.first_half[c];
    if (part == 0 && lane_ < 8) StoreSums(all, &total[8 * lane_]);
    NamedBarrier(kGradGateBarrier, 128);
    if (part == 1) {
      Gates first;
      LoadSums(&total[lane_ % 8 * 8], first);
#pragma unroll
      for (int i = 0; i < 8; ++i) before[i] += first[i];
    }
    NamedBarrier(kGradGateBarrier, 128);  // All have read.
  }

  __device__ Piece* PieceAt(uint8_t (&slab)[kSlabBytes], int row) const {
    return reinterpret_cast<Piece*>(slab + SlabOffset(row, lane_ % 8));
  }

  // The gradients that are in a buffer.
  __device__ void Store(int buffer) {
    if (works_[buffer].rows == kSegment) {
      StoreSegment(buffer);
    } else {
      StoreRows(buffer);
    }
  }

  __device__ void StoreSegment(int buffer) {
    if (!IsLoader()) return;
    const GradWork& work = works_[buffer];
    for (int slab = 0; slab < C::kMains; ++slab) {
      auto& gated = shared_.gated[buffer][slab];
      const int column = Column(work, slab);
      for (int c = 0; c < kSegmentChunks; ++c) {
        const int row = work.row + c * kChunk;
        TensorStore(&params_.dq, column, row, SharedAddress(gated.q[c]));
        TensorStore(&params_.dk, column, row, SharedAddress(gated.k[c]));
        if (kGatesInSlab) {
          TensorStore(&params_.d_g, column, row, SharedAddress(gated.b[c]));
        }
      }
    }
    TensorStoreCommit();
    TensorStoreWaitRead();
  }

  // Of a sequence's last segment, only its own rows: eight threads a row.
  __device__ void StoreRows(int buffer) {
    const GradWork& work = works_[buffer];
    const int piece = lane_ % 8;
    for (int slab = 0; slab < C::kMains; ++slab) {
      const auto& gated = shared_.gated[buffer][slab];
      for (int r = warp_ * 4 + lane_ / 8; r < work.rows; r += 16) {
        const int c = r / kChunk;
        const uint32_t place = SlabOffset(r % kChunk, piece);
        const int64_t offset = (work.row + r) * (params_.args.shape.H * C::K) +
                               Column(work, slab) + piece * 8;
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
  GradWork works_[C::kBuffers];  // of what is in the buffers
  const int warp_, lane_;
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_GRAD_GATES_CUH_
