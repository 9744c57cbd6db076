// Barriers in shared memory that count arrivals and bytes: mbarriers (PTX ISA), from Hopper on. Elsewhere all of it is empty, and no launcher
// chooses a kernel that uses it. Addresses of shared memory are 32-bit, as PTX takes them.
#pragma once
#include "common.cuh"

__device__ inline u32 shared_address(const void *p) { return u32(__cvta_generic_to_shared(p)); }

// Makes a barrier of `arrivals` a phase.
__device__ inline void barrier_init(u32 barrier, u32 arrivals) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
#endif
}
// Makes initialised barriers visible to the cluster and to the copy engine.
__device__ inline void publish_barriers() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
__device__ inline void barrier_arrive(u32 barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
#endif
}
// Arrives, and the phase then waits for `bytes` too.
__device__ inline void barrier_expect(u32 barrier, u32 bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
#endif
}
// Whether the phase of this parity is complete; waits a while for it.
__device__ inline bool barrier_try(u32 barrier, u32 parity) {
    u32 done = 1;
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n\t.reg .pred done;\n"
                 "\tmbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
                 "\tselp.u32 %0, 1, 0, done;\n\t}" : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
#endif
    return done != 0;
}
// Waits for it: each lane by itself, or a whole warp, which leaves together.
__device__ inline void barrier_await(u32 barrier, u32 parity) {
    while (!barrier_try(barrier, parity)) {}
}
__device__ inline void barrier_await_together(u32 barrier, u32 parity) {
    while (!__all_sync(ALL_LANES, barrier_try(barrier, parity))) {}
}
// Each lane by itself, where the phase is mostly complete already: the loop is one of PTX, because those of C++ begin with a branch.
__device__ inline void barrier_await_soon(u32 barrier, u32 parity) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n\t.reg .pred done;\n"
                 "again:\n\tmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "\t@!done bra again;\n\t}" ::"r"(barrier), "r"(parity) : "memory");
#endif
}
// By one who has time, and leaves the issue slots to others meanwhile.
__device__ inline void barrier_await_asleep(u32 barrier, u32 parity) {
    while (!barrier_try(barrier, parity)) __nanosleep(100);
}
