// What blocks of a cluster say to each other: mbarriers, stores into another block's shared memory that complete them, and bulk copies.
//
// Addresses of shared memory are 32-bit, as PTX takes them. PTX ISA: mbarrier, st.async, cp.async.bulk, mapa. Needs sm_90.
#pragma once
#include "common.cuh"

__device__ inline u32 shared_address(const void *p) { return u32(__cvta_generic_to_shared(p)); }

__device__ inline u32 cluster_rank() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// The address, in the shared memory of block `rank`, of what lies at `address` in ours.
__device__ inline u32 in_block(u32 address, u32 rank) {
    u32 remote;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
    return remote;
}

// All threads of all blocks of the cluster meet.
__device__ inline void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
}

// A barrier of `arrivals` a phase, which may also wait for a number of bytes.
__device__ inline void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ inline void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ inline void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrives, and the phase then waits for `bytes` too.
__device__ inline void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Whether the phase of this parity is complete; waits a while for it.
__device__ inline bool barrier_try(u32 barrier, u32 parity) {
    u32 done;
    asm volatile("{\n\t.reg .pred done;\n"
                 "\tmbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
                 "\tselp.u32 %0, 1, 0, done;\n\t}" : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
    return done != 0;
}
// Waits for it: a whole warp, which leaves together.
__device__ inline void barrier_wait(u32 barrier, u32 parity) {
    while (!__all_sync(ALL_LANES, barrier_try(barrier, parity))) {}
}

// Stores into a block of the cluster and counts the bytes on a barrier of the same block.
__device__ inline void send(u32 address, u32 word, u32 barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(address), "r"(word),
                 "r"(barrier) : "memory");
}
__device__ inline void send(u32 address, float value, u32 barrier) { send(address, __float_as_uint(value), barrier); }
__device__ inline void send(u32 address, float a, float b, u32 barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(address), "f"(a),
                 "f"(b), "r"(barrier) : "memory");
}

// Copies `bytes` (a multiple of 16) from device memory into our shared memory and counts them on `barrier`.
__device__ inline void fetch(u32 address, const void *from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(address), "l"(from),
                 "r"(bytes), "r"(barrier) : "memory");
}
