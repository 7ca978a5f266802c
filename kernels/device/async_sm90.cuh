// Device code for asynchronous copies and barriers on Hopper (PTX mbarrier,
// cp.async.bulk, tensor maps, clusters). Addresses are shared-memory addresses
// (SharedAddress) unless typed as pointers, which are global.
#ifndef GLA_KERNELS_DEVICE_ASYNC_SM90_CUH_
#define GLA_KERNELS_DEVICE_ASYNC_SM90_CUH_

#include <cuda.h>

#include <cstdint>

namespace gla {

// --- mbarrier ---------------------------------------------------------------

__device__ inline void BarrierInit(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier),
               "r"(arrivals)
               : "memory");
}
// Makes initialised barriers visible to the cluster and to asynchronous copies.
__device__ inline void BarrierInitFence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void BarrierArrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier)
               : "memory");
}
// Arrives, and makes the phase wait for `bytes` of asynchronous copies too.
__device__ inline void BarrierArriveExpect(uint32_t barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
      "r"(bytes)
      : "memory");
}
// Waits for the end of the phase of parity `parity`. What others wrote before
// they arrived, in any block of the cluster, is then visible.
__device__ inline void BarrierWait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "wait:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@!p bra wait;\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Arrives and waits for all others that arrive: like NamedBarrier, but on a
// barrier that is used for nothing else, and which racecheck follows.
__device__ inline void BarrierMeet(uint32_t barrier) {
  asm volatile(
      "{\n.reg .pred p;\n.reg .b64 phase;\n"
      "mbarrier.arrive.shared::cta.b64 phase, [%0];\n"
      "meet:\n"
      "mbarrier.try_wait.shared::cta.b64 p, [%0], phase;\n"
      "@!p bra meet;\n}\n" ::"r"(barrier)
      : "memory");
}

// Named barrier `id` (1..15) among `threads` threads of the block.
__device__ inline void NamedBarrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Arrives at a named barrier for which other threads wait.
__device__ inline void NamedBarrierArrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Orders this thread's ordinary accesses to shared memory before later ones of
// wgmma and of bulk copies (once a barrier has told their issuer): writes
// before what these read, and reads before what copies write. An arrival on a
// barrier does not wait for this thread's loads: behind global loads of other
// warps they can be so late that a copy is there first.
__device__ inline void FenceAsyncProxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// The same of global memory, for bulk copies that read it.
__device__ inline void FenceAsyncProxyGlobal() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

// --- Clusters ---------------------------------------------------------------

__device__ inline uint32_t ClusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// The cluster's blocks have come here; orders nothing. Between
// BarrierInitFence, then __syncthreads, and the first use of another block's
// barriers.
__device__ inline void ClusterStart() {
  asm volatile(
      "barrier.cluster.arrive.relaxed.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}
__device__ inline void ClusterSync() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}
// The address of this block's `address` in the block of rank `rank`.
__device__ inline uint32_t ClusterAddress(uint32_t address, uint32_t rank) {
  uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(remote)
               : "r"(address), "r"(rank));
  return remote;
}
// Arrives on a barrier of the cluster (an address from ClusterAddress).
__device__ inline void ClusterBarrierArrive(uint32_t remote_barrier) {
  asm volatile(
      "mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(remote_barrier)
      : "memory");
}
// Starts a copy of `bytes` (a multiple of 16) of this block's shared memory to
// another block's; completion is counted on that block's barrier.
__device__ inline void ClusterCopy(uint32_t remote_to, uint32_t from,
                                   uint32_t bytes, uint32_t remote_barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes "
      "[%0], [%1], %2, [%3];" ::"r"(remote_to),
      "r"(from), "r"(bytes), "r"(remote_barrier)
      : "memory");
}

// Starts a copy of `bytes` (a multiple of 16) of global memory to the same
// place in every block of the cluster that is in `blocks`, a bit each; counted
// on the barrier at the same address of each.
__device__ inline void BulkLoadMulticast(uint32_t to, const void* from,
                                         uint32_t bytes, uint32_t barrier,
                                         uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "h"(blocks)
      : "memory");
}

// The same to this block alone.
__device__ inline void BulkLoad(uint32_t to, const void* from, uint32_t bytes,
                                uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1], %2, [%3];" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

// Starts a copy of `bytes` (a multiple of 16) to global memory, in the group of
// this thread's stores that TensorStoreCommit closes.
__device__ inline void BulkStore(void* to, uint32_t from, uint32_t bytes) {
  asm volatile(
      "cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
      "r"(from), "r"(bytes)
      : "memory");
}

// --- Tensor copies (TMA) ----------------------------------------------------

// Starts to bring a tensor map to where tensor copies read it.
__device__ inline void PrefetchMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// Starts the load of a tensor map's box whose first element is (column, row);
// its bytes are counted on `barrier`. Elements outside the tensor become zeros.
__device__ inline void TensorLoad(uint32_t to, const CUtensorMap* map,
                                  int column, int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::"
      "bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
// The same to the same place in every block of the cluster that is in `blocks`,
// a bit each; counted on the barrier at the same address of each.
__device__ inline void TensorLoadMulticast(uint32_t to, const CUtensorMap* map,
                                           int column, int row,
                                           uint32_t barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::"
      "bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(blocks)
      : "memory");
}
// Starts the store of a box; elements outside the tensor are left out.
__device__ inline void TensorStore(const CUtensorMap* map, int column, int row,
                                   uint32_t from) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], "
      "[%3];" ::"l"(map),
      "r"(column), "r"(row), "r"(from)
      : "memory");
}
// Closes a group of this thread's stores.
__device__ inline void TensorStoreCommit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Waits until this thread's stores have read their shared memory, but for those
// of the last kPending groups. A kernel is not over before they have written.
template <int kPending = 0>
__device__ inline void TensorStoreWaitRead() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// --- Registers --------------------------------------------------------------

// Moves registers between the warpgroups of a block.
template <int kRegisters>
__device__ inline void RaiseRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void LowerRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace gla

#endif  // GLA_KERNELS_DEVICE_ASYNC_SM90_CUH_
