// Device code for asynchronous copies and barriers on Hopper (PTX mbarrier,
// cp.async, cp.async.bulk, clusters). Addresses are shared-memory addresses
// (SharedAddress) unless typed as pointers, which are global.
#ifndef GLA_KERNELS_DEVICE_ASYNC_SM90_CUH_
#define GLA_KERNELS_DEVICE_ASYNC_SM90_CUH_

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
      "@p bra done;\n"
      "bra wait;\n"
      "done:\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Named barrier `id` (1..15) among `threads` threads of the block.
__device__ inline void NamedBarrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Orders this thread's ordinary shared-memory writes before later reads of
// wgmma and of bulk copies (once a barrier has told their issuer).
__device__ inline void FenceAsyncProxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --- Clusters ---------------------------------------------------------------

__device__ inline uint32_t ClusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
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

// --- cp.async ---------------------------------------------------------------

// Starts a copy of 16 bytes to shared memory, or of zeros unless `valid`.
__device__ inline void CopyAsync16(uint32_t to, const void* from, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to),
               "l"(from), "r"(bytes)
               : "memory");
}
__device__ inline void CopyAsyncCommit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most kPending of this thread's groups are unfinished.
template <int kPending>
__device__ inline void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
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
