// The copying warps of the one-kernel backward pass
// (chunk_gla_sm90_backward.cuh): q, k and gates in, dq, dk and dg out, each
// tensor by a warp of its own, so that none waits for another; and a warp for
// all else that comes in.
#ifndef GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_COPIES_CUH_
#define GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_COPIES_CUH_

#include "kernels/gla/chunk_gla_sm90_backward_shared.cuh"

namespace gla::internal {

template <typename C>
class BackwardCopies {
 public:
  __device__ BackwardCopies(const BackwardParams& params,
                            BackwardShared<C>& shared)
      : params_(params),
        args_(params.grad),
        work_(shared.work),
        shared_(shared),
        warp_(__shfl_sync(0xffffffff, threadIdx.x / 32 % 4, 0)),
        lane_(threadIdx.x % 32) {}

  __device__ void Run() {
    if (warp_ == 0) {
      Run(params_.q, params_.dq, args_.dq,
          [this](int i) { return shared_.keys[i % 2].q; });
    } else if (warp_ == 1) {
      Run(params_.k, params_.dk, args_.dk,
          [this](int i) { return shared_.keys[i % 2].k; });
    } else if (warp_ == 2) {
      RunGates();
    } else {
      RunOthers();
    }
  }

 private:
  using Slabs = const uint8_t (*)[kSlabBytes];

  // Loads a tensor two steps ahead, to place(step), when the gradient that lay
  // there has been stored.
  template <typename Fn>
  __device__ void Run(const CUtensorMap& from, const CUtensorMap& to,
                      __nv_bfloat16* tensor, Fn place) {
    Load(0, from, place(0));
    Load(1, from, place(1));
#pragma unroll 1
    for (int i = 0; i < work_.chunks; ++i) {
      BarrierWait(SharedAddress(&shared_.finished[i % 2]), Parity<2>(i));
      Store(i, to, tensor, place(i));
      Load(i + 2, from, place(i + 2));
    }
  }
  // 16-bit gates, in the place of LogUnits, where then dg is. Others are not
  // loaded here, nor is dg stored.
  __device__ void RunGates() {
    if constexpr (sizeof(typename C::Gate) == 2) {
      Run(params_.g, params_.d_g, static_cast<__nv_bfloat16*>(args_.dg),
          [this](int i) { return shared_.keys[i % 2].b; });
    } else {
      if (lane_ > 0) return;
#pragma unroll 1
      for (int i = 0; i < work_.chunks; ++i) {
        if (i >= 2) {
          BarrierWait(SharedAddress(&shared_.finished[i % 2]),
                      Parity<2>(i - 2));
        }
        BarrierArrive(SharedAddress(&shared_.raw_full[i % 2]));
      }
    }
  }
  // v, d_o and S, each when its place has been read; with 128 channels also
  // rests of q~, from where the gate warps have stored them.
  __device__ void RunOthers() {
    if (lane_ > 0) return;
#pragma unroll 1
    for (int use = 0; use < C::kRowSlots; ++use) LoadRows(use);
    LoadState(0);
#pragma unroll 1
    for (int i = 0; i < work_.chunks; ++i) {
      BarrierWait(SharedAddress(&shared_.d_read), i & 1);
      if constexpr (C::kRoomy) {
        LoadRows(2 * i + 3);
      } else {
        LoadSlabs(i, params_.dq, &shared_.QueryRest(0, 0),
                  SharedAddress(&shared_.query_rests_full));
      }
      BarrierWait(SharedAddress(&shared_.operands_read), i & 1);
      if constexpr (C::kRoomy) {
        LoadRows(2 * i + 4);
      } else {
        LoadRows(2 * i + 2);
        LoadRows(2 * i + 3);
      }
      LoadState(i + 1);
    }
  }

  // The state before step i's chunk.
  __device__ void LoadState(int i) {
    if (i >= work_.chunks) return;
    constexpr int kBytes = sizeof(typename BackwardShared<C>::State);
    const uint32_t full = SharedAddress(&shared_.state_full);
    BarrierArriveExpect(full, kBytes);
    const int chunk = ChunkAt<C>(work_, i);
    const int64_t state = (work_.chunk_slot + chunk) * args_.shape.H + work_.h;
    // A copy from before the tensor brings zeros.
    const bool has_state = chunk > 0 || args_.has_initial_state;
    TensorLoad(SharedAddress(shared_.state), &params_.states, 0,
               (has_state ? state : -1) * (kBytes / 128), full);
  }

  // Number `use` of the ring: v and d_o of one step after the other.
  __device__ void LoadRows(int use) {
    if (use / 2 >= work_.chunks) return;
    const int slot = use % C::kRowSlots;
    const uint32_t full = SharedAddress(&shared_.rows_full[slot]);
    BarrierArriveExpect(full, sizeof(shared_.rows[slot]));
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      TensorLoad(SharedAddress(shared_.rows[slot][s]),
                 use % 2 == 0 ? &params_.v : &params_.d_o,
                 work_.h * C::V + s * 64, FirstRow(use / 2), full);
    }
  }

  __device__ void Load(int i, const CUtensorMap& map, Slabs to) {
    if (lane_ == 0 && i < work_.chunks) {
      LoadSlabs(i, map, to, SharedAddress(&shared_.raw_full[i % 2]));
    }
  }
  __device__ void LoadSlabs(int i, const CUtensorMap& map, Slabs to,
                            uint32_t full) {
    BarrierArriveExpect(full, C::kSlabs * kSlabBytes);
#pragma unroll
    for (int s = 0; s < C::kSlabs; ++s) {
      TensorLoad(SharedAddress(to[s]), &map, Column(s), FirstRow(i), full);
    }
  }

  // Returns when `from` has been read; of a sequence's last chunk only its own
  // rows are stored.
  __device__ void Store(int i, const CUtensorMap& map, __nv_bfloat16* tensor,
                        Slabs from) {
    const int rows = work_.rows.length - ChunkAt<C>(work_, i) * kChunk;
    if (rows < kChunk) {
      StoreRows(i, rows, tensor, from);
      FenceAsyncProxy();
    } else if (lane_ == 0) {
#pragma unroll
      for (int s = 0; s < C::kSlabs; ++s) {
        TensorStore(&map, Column(s), FirstRow(i), SharedAddress(from[s]));
      }
      TensorStoreCommit();
      TensorStoreWaitRead();
    }
    __syncwarp();
  }
  // Eight lanes a row.
  __device__ void StoreRows(int i, int rows, __nv_bfloat16* tensor,
                            Slabs from) {
    const int piece = lane_ % 8;
#pragma unroll 1
    for (int s = 0; s < C::kSlabs; ++s) {
#pragma unroll 1
      for (int r = lane_ / 8; r < rows; r += 4) {
        const int64_t offset =
            (FirstRow(i) + r) * (args_.shape.H * C::K) + Column(s) + piece * 8;
        *reinterpret_cast<uint4*>(tensor + offset) =
            LoadShared128(SharedAddress(from[s]) + SlabOffset(r, piece));
      }
    }
  }

  // A slab's first channel, in rows of H K, and step i's first row.
  __device__ int Column(int slab) const { return work_.h * C::K + slab * 64; }
  __device__ int64_t FirstRow(int i) const {
    return work_.rows.first + ChunkAt<C>(work_, i) * kChunk;
  }

  const BackwardParams& params_;
  const GradArgs& args_;
  const ScanWork& work_;
  BackwardShared<C>& shared_;
  const int warp_, lane_;
};

}  // namespace gla::internal

#endif  // GLA_KERNELS_GLA_CHUNK_GLA_SM90_BACKWARD_COPIES_CUH_
