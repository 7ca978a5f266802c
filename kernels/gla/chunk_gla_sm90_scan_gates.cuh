// The gate warpgroup of the state pass (chunk_gla_sm90_scan.cuh).
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_GATES_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_GATES_CUH_

#include "kernels/gla/chunk_gla_sm90_scan_shared.cuh"

namespace gla::internal {

template <typename C>
class ScanGates {
 public:
  __device__ ScanGates(const ScanParams& params, const ScanWork& work,
                       ScanShared<C>& shared, int rank)
      : params_(params),
        args_(params.args),
        work_(work),
        shared_(shared),
        thread_(threadIdx.x % 128),
        warp_(__shfl_sync(0xffffffff, thread_ / 32, 0)),
        lane_(thread_ % 32),
        rank_(rank) {}

  __device__ void Run() {
    LoadG(0);
    LoadQ(0);
    LoadK(0);
#pragma unroll 1
    for (int i = 0; i < work_.chunks; ++i) Step(i);
    if (!C::kOutput && warp_ == 0) StorePieceDecay();
  }

 private:
  // The gated operands of step i, once their stage is free.
  __device__ void Step(int i) {
    const int stage = i % C::kStages;
    BarrierWait(SharedAddress(&shared_.empty[stage]),
                Parity<C::kStages>(i) ^ 1);
    if (IsLoader()) LoadX(i);
    BarrierWait(SharedAddress(&shared_.g_full), i & 1);
    const int rows = work_.rows.length - ChunkAt<C>(work_, i) * kChunk;
    if (rows < kChunk) {
      BarrierWait(SharedAddress(&shared_.q_full), i & 1);
      BarrierWait(SharedAddress(&shared_.k_full), i & 1);
      MaskRaw(rows);
    }
    GateOperands(i);
  }

  using Gate = typename C::Gate;
  using Pair = typename GatePair<Gate>::Type;
  using Raw = typename ScanShared<C>::Raw;

  __device__ int OwnSlab(int j) const { return rank_ * C::kOwn + j; }

  // The thread that starts loads.
  __device__ bool IsLoader() const { return warp_ == 3 && lane_ == 0; }

  // Starts the loads of step i's q, k or g of the own slabs.
  __device__ void LoadQ(int i) {
    Load<&Raw::q>(i, &params_.q, &shared_.q_full);
  }
  __device__ void LoadK(int i) {
    Load<&Raw::k>(i, &params_.k, &shared_.k_full);
  }
  __device__ void LoadG(int i) {
    Load<&Raw::g>(i, &params_.g, &shared_.g_full);
  }

  template <auto kMember>
  __device__ void Load(int i, const CUtensorMap* map, uint64_t* full) {
    if (!IsLoader() || i >= work_.chunks) return;
    const uint32_t barrier = SharedAddress(full);
    BarrierArriveExpect(barrier, C::kOwn * sizeof(shared_.raw[0].*kMember));
    const int row = work_.rows.first + ChunkAt<C>(work_, i) * kChunk;
#pragma unroll
    for (int j = 0; j < C::kOwn; ++j) {
      TensorLoad(SharedAddress(&(shared_.raw[j].*kMember)), map,
                 work_.h * C::K + OwnSlab(j) * 64, row, barrier);
    }
  }

  // Zeros in the rows past the sequence, whatever lies there: each warp in the
  // rows that it reads.
  __device__ void MaskRaw(int rows) {
#pragma unroll 1
    for (int r = warp_ * 16; r < warp_ * 16 + 16; ++r) {
      if (r < rows) continue;
#pragma unroll
      for (int j = 0; j < C::kOwn; ++j) {
        auto& raw = shared_.raw[j];
        reinterpret_cast<uint32_t*>(raw.q[r])[lane_] = 0;
        reinterpret_cast<uint32_t*>(raw.k[r])[lane_] = 0;
        reinterpret_cast<Pair*>(raw.g[r])[lane_] = Pair{};
      }
    }
    FenceAsyncProxy();  // Before the next load writes there.
    __syncwarp();
  }

  // Starts the load of step i's x.
  __device__ void LoadX(int i) {
    const int stage = i % C::kStages;
    const uint32_t barrier = SharedAddress(&shared_.x_full[stage]);
    BarrierArriveExpect(barrier, 2 * kSlabBytes);
    const int row = work_.rows.first + ChunkAt<C>(work_, i) * kChunk;
    const int column = work_.h * C::V + rank_ * 128;
    for (int group = 0; group < 2; ++group) {
      TensorLoad(SharedAddress(shared_.stage[stage].x[group]), &params_.x,
                 column + group * 64, row, barrier);
    }
  }

  // Gated operands of the own slabs, and their decay: first q~, on its way to
  // the other blocks while k^ is formed. Loads of the next step start as soon
  // as what they overwrite has been read. Lane l has channels 2 l and 2 l + 1,
  // warp w rows 16 w .. 16 w + 15.
  __device__ void GateOperands(int i) {
    const int stage = i % C::kStages;
    Pair g[C::kOwn][16];
    float2 before[C::kOwn], all[C::kOwn];
    SumGates(g, before, all);
    LoadG(i + 1);
    auto& tiles = shared_.stage[stage];
    uint8_t(*const q_slabs)[kSlabBytes] = C::kReverse ? tiles.b : tiles.a;
    uint8_t(*const k_slabs)[kSlabBytes] = C::kReverse ? tiles.a : tiles.b;
    BarrierWait(SharedAddress(&shared_.q_full), i & 1);
#pragma unroll
    for (int j = 0; j < C::kOwn; ++j) {
      GateRows<true>(j, g[j], before[j], {0, 0}, q_slabs[OwnSlab(j)]);
      if (warp_ == 0) StoreDecay(stage, OwnSlab(j), all[j]);
    }
    FenceAsyncProxy();
    NamedBarrier(kGateBarrier, 128);
    LoadQ(i + 1);
    Publish(stage, q_slabs, /*with_decay=*/true);
    BarrierWait(SharedAddress(&shared_.k_full), i & 1);
#pragma unroll
    for (int j = 0; j < C::kOwn; ++j) {
      const float2 shift = {all[j].x < -kMaxLog2Decay ? all[j].x : 0,
                            all[j].y < -kMaxLog2Decay ? all[j].y : 0};
      GateRows<false>(j, g[j], before[j], shift, k_slabs[OwnSlab(j)]);
    }
    FenceAsyncProxy();
    NamedBarrier(kGateBarrier, 128);
    Publish(stage, k_slabs, /*with_decay=*/false);
    if (IsLoader()) {
      constexpr uint32_t kBytes = 2 * kSlabBytes + sizeof(SlabDecay);
      BarrierArriveExpect(SharedAddress(&shared_.full[stage]),
                          (C::kSlabs - C::kOwn) * kBytes);
    }
    LoadK(i + 1);
  }

  // This lane's gates; in powers of two, those of the chunk and of its rows
  // before this warp's.
  __device__ void SumGates(Pair (&g)[C::kOwn][16], float2 (&before)[C::kOwn],
                           float2 (&all)[C::kOwn]) {
#pragma unroll
    for (int j = 0; j < C::kOwn; ++j) {
      float2 total = {0, 0};
#pragma unroll
      for (int r = 0; r < 16; ++r) {
        g[j][r] = reinterpret_cast<const Pair*>(
            shared_.raw[j].g[warp_ * 16 + r])[lane_];
      }
#pragma unroll
      for (int r = 0; r < 16; ++r) {
        const float2 log2 = ToLog2(g[j][r]);
        total = {total.x + log2.x, total.y + log2.y};
      }
      *reinterpret_cast<float2*>(&shared_.totals[j][warp_][2 * lane_]) = total;
    }
    NamedBarrier(kGateBarrier, 128);
#pragma unroll
    for (int j = 0; j < C::kOwn; ++j) {
      before[j] = all[j] = {0, 0};
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float2 t =
            *reinterpret_cast<float2*>(&shared_.totals[j][w][2 * lane_]);
        if (w < warp_) before[j] = {before[j].x + t.x, before[j].y + t.y};
        all[j] = {all[j].x + t.x, all[j].y + t.y};
      }
      sums_[j] = {sums_[j].x + all[j].x, sums_[j].y + all[j].y};
    }
  }

  // Stores this warp's rows of scale q e^b or k e^(shift - b) in a slab; `b` is
  // the cumulative gate before them.
  template <bool kQuery>
  __device__ void GateRows(int j, const Pair (&g)[16], float2 b, float2 shift,
                           uint8_t* slab) {
    constexpr int kBatch = 8;  // rows whose loads are issued together
    const auto& raw = kQuery ? shared_.raw[j].q : shared_.raw[j].k;
    slab += warp_ * 2048;
#pragma unroll
    for (int first = 0; first < 16; first += kBatch) {
      uint32_t value[kBatch];
#pragma unroll
      for (int r = 0; r < kBatch; ++r) {
        value[r] = reinterpret_cast<const uint32_t*>(
            raw[warp_ * 16 + first + r])[lane_];
      }
#pragma unroll
      for (int r = 0; r < kBatch; ++r) {
        const float2 log2 = ToLog2(g[first + r]);
        b = {b.x + log2.x, b.y + log2.y};
        const float low = LowFloat(value[r]), high = HighFloat(value[r]);
        value[r] = kQuery ? PackBf16(low * args_.scale * Exp2(b.x),
                                     high * args_.scale * Exp2(b.y))
                          : PackBf16(low * Exp2(shift.x - b.x),
                                     high * Exp2(shift.y - b.y));
      }
#pragma unroll
      for (int r = 0; r < kBatch; ++r) {
        const int row = first + r;
        const int offset = row * 128 + (lane_ * 4 ^ (row % 8 << 4));
        *reinterpret_cast<uint32_t*>(slab + offset) = value[r];
      }
    }
  }

  __device__ void StoreDecay(int stage, int slab, float2 all) {
    const bool steep0 = all.x < -kMaxLog2Decay;
    const bool steep1 = all.y < -kMaxLog2Decay;
    SlabDecay& decay = shared_.decay[stage][slab];
    const float d0 = Exp2(all.x), d1 = Exp2(all.y);
    const int i = lane_ % 4, j = lane_ / 4 * 2;
    *reinterpret_cast<float2*>(&decay.edge[i][j]) = {steep0 ? 1 : d0,
                                                     steep1 ? 1 : d1};
    *reinterpret_cast<float2*>(&decay.mid[i][j]) = {steep0 ? d0 : 1,
                                                    steep1 ? d1 : 1};
    const bool any = __any_sync(0xffffffff, steep0 || steep1);
    if (lane_ == 0) decay.any_steep = any;
  }

  // Sends the own slabs to the other blocks of the cluster, one a warp.
  __device__ void Publish(int stage, uint8_t (*slabs)[kSlabBytes],
                          bool with_decay) {
    if (warp_ + 1 >= C::kCluster || lane_ != 0) return;
    const uint32_t peer = (rank_ + 1 + warp_) % C::kCluster;
    const uint32_t barrier =
        ClusterAddress(SharedAddress(&shared_.full[stage]), peer);
#pragma unroll
    for (int j = 0; j < C::kOwn; ++j) {
      Send(slabs[OwnSlab(j)], kSlabBytes, peer, barrier);
      if (with_decay) {
        Send(&shared_.decay[stage][OwnSlab(j)], sizeof(SlabDecay), peer,
             barrier);
      }
    }
  }

  __device__ void Send(const void* data, uint32_t bytes, uint32_t peer,
                       uint32_t barrier) {
    const uint32_t address = SharedAddress(data);
    ClusterCopy(ClusterAddress(address, peer), address, bytes, barrier);
  }

  __device__ void StorePieceDecay() {
    const int64_t head = work_.n * args_.shape.H + work_.h;
#pragma unroll
    for (int j = 0; j < C::kOwn; ++j) {
      float* const to = args_.piece_decays +
                        (head * args_.pieces + work_.piece) * C::K +
                        OwnSlab(j) * 64 + 2 * lane_;
      to[0] = Exp2(sums_[j].x);
      to[1] = Exp2(sums_[j].y);
    }
  }

  const ScanParams& params_;
  const ScanArgs& args_;
  const ScanWork& work_;
  ScanShared<C>& shared_;
  const int thread_, warp_, lane_, rank_;
  float2 sums_[C::kOwn] = {};  // gates of the piece so far
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_SCAN_GATES_CUH_
