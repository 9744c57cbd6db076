// Where a decoder's cycles go, in a build that reads the clock (CLOCKED): the first thread adds up what it spends up to each handoff, and then
// waiting for what it brings. In any other build all of it is empty. Read by src/clock.rs.
#pragma once
#include "common.cuh"

#ifdef CLOCKED

constexpr u32 CLOCK_PLACES = 16, CLOCK_NAME = 32;
struct ClockPlace {
    u64 work, wait; // cycles; of work, the upper 24 bits say how often
};
extern "C" __device__ ClockPlace clock_places[CLOCK_PLACES];
// What the handoffs bring, in the order of their numbers.
#define CLOCK_NAMES(...) extern "C" __device__ char clock_names[CLOCK_PLACES][CLOCK_NAME] = {__VA_ARGS__};

// A thread's.
struct Clock {
    u32 last = clock();

    // Adds the cycles since it last did, by a store that nobody waits for.
    __device__ void add(u64 &to, u64 times) {
        if (blockIdx.x > 0 || threadIdx.x > 0) return;
        u32 now = clock();
        asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(&to), "l"(times << 40 | (now - last)) : "memory");
        last = now;
    }
    // It begins to wait for a handoff; it has what it waited for.
    __device__ void worked(u32 handoff) { add(clock_places[handoff].work, 1); }
    __device__ void waited(u32 handoff) { add(clock_places[handoff].wait, 0); }
};

#else

#define CLOCK_NAMES(...)
struct Clock {
    __device__ void worked(u32) {}
    __device__ void waited(u32) {}
};

#endif
