// Where a decoder's cycles go, in a build that reads the clock (CLOCKED): the first thread adds up what it spends up to each handoff, and then waiting
// for what it brings. In any other build all of it is empty. Read by src/clock.rs.
#pragma once
#include "common.cuh"

#ifdef CLOCKED

constexpr u32 CLOCK_PLACES = 16, CLOCK_NAME = 32;
struct ClockPlace {
    u64 work, wait, times;
};
extern "C" __device__ ClockPlace clock_places[CLOCK_PLACES];
// What the handoffs bring, in the order of their numbers.
#define CLOCK_NAMES(...) extern "C" __device__ char clock_names[CLOCK_PLACES][CLOCK_NAME] = {__VA_ARGS__};

// A thread's.
struct Clock {
    u32 last = clock();

    __device__ void add(u64 *to) {
        asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(to), "l"(u64(u32(clock()) - last)) : "memory");
        last = clock();
    }
    // It begins to wait for a handoff.
    __device__ void worked(u32 handoff) {
        if (blockIdx.x == 0 && threadIdx.x == 0) add(&clock_places[handoff].work);
    }
    // It has what it waited for.
    __device__ void waited(u32 handoff) {
        if (blockIdx.x > 0 || threadIdx.x > 0) return;
        add(&clock_places[handoff].wait);
        asm volatile("red.relaxed.gpu.global.add.u64 [%0], 1;" ::"l"(&clock_places[handoff].times) : "memory");
    }
};

#else

#define CLOCK_NAMES(...)
struct Clock {
    __device__ void worked(u32) {}
    __device__ void waited(u32) {}
};

#endif
