// What blocks of a cluster say to each other: stores into another block's shared memory that count themselves on its barriers, and bulk copies.
//
// PTX ISA: st.async, cp.async.bulk, mapa. Needs sm_90.
#pragma once
#include "barrier.cuh"
#include "clock.cuh"

__device__ inline u32 cluster_rank() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ inline u32 cluster_size() {
    u32 blocks;
    asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(blocks));
    return blocks;
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
__device__ inline void send(u32 address, uint4 v, u32 barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address), "r"(v.x),
                 "r"(v.y), "r"(v.z), "r"(v.w), "r"(barrier) : "memory");
}
// Stores 16 bytes into a block of the cluster, to be read behind the next cluster_barrier.
__device__ inline void store_remote(u32 address, float4 v) {
    asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}

// Copies `bytes` (a multiple of 16) from device memory into our shared memory and counts them on `barrier`.
__device__ inline void fetch(u32 address, const void *from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(address), "l"(from),
                 "r"(bytes), "r"(barrier) : "memory");
}

// Asks L2 for `bytes` (a multiple of 16) of device memory.
__device__ inline void fetch_to_l2(const void *from, u32 bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

// Orders what was stored before, by this thread and those it has waited for, in front of the copies that it starts.
__device__ inline void order_copies() { asm volatile("fence.proxy.async;" ::: "memory"); }
