// A block's weights on their way: shared memory as a ring of slots, which one thread fills by bulk copies and the warps that compute read.
//
// The stream runs through all layers and begins anew with the next token.
#pragma once
#include "batch_layout.cuh"

// The thread's number, as if it were another each time: else the compiler keeps all that follows from it, and runs out of registers.
__device__ inline u32 thread() {
    u32 t = threadIdx.x;
    asm volatile("" : "+r"(t));
    return t;
}

// A warp's reading place.
struct Ring {
    const u32 full, mine; // the slots' barriers, and where this lane's parts of the first one's units lie
    u32 newest = 0, parity = 0, oldest = 0;

    __device__ Ring(const Shared &s)
        : full(shared_address(s.full)), mine(shared_address(&s) + RING_START + threadIdx.x / WARP * (SLOT_UNITS * UNIT) + threadIdx.x % WARP * 8) {}

    // Fills the slots for `layers` layers in all, and for q, k and v of one more: one thread.
    static __device__ void fill(const Shared &s, const char *stream, u32 layers) {
        u32 slot = 0, parity = 1, offset = 0, full = shared_address(s.full), empty = shared_address(s.empty);
#pragma unroll 1
        for (u32 left = (layers * LAYER_UNITS + QKV_UNITS) / SLOT_UNITS; left > 0; left--) {
            barrier_await(empty + 8 * slot, parity);
            barrier_expect(full + 8 * slot, SLOT_BYTES);
            fetch(shared_address(&s) + RING_START + slot * SLOT_BYTES, stream + offset, SLOT_BYTES, full + 8 * slot);
            offset = offset + SLOT_BYTES == STREAM_BYTES ? 0 : offset + SLOT_BYTES;
            if (++slot == SLOTS) slot = 0, parity ^= 1;
        }
    }

    // Reads this warp's units of the next slots, waiting for each, and gives the slots back.
    template <u32 COUNT> __device__ void read(uint2 (&units)[COUNT]) {
        static_assert(COUNT % SLOT_UNITS == 0, "a product takes whole slots");
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) {
            if (i % SLOT_UNITS == 0) await();
            units[i] = load_unit(mine + newest * SLOT_BYTES + i % SLOT_UNITS * UNIT);
            if (i % SLOT_UNITS + 1 < SLOT_UNITS) continue;
            if (++newest == SLOTS) newest = 0, parity ^= 1;
            if (i >= SLOT_UNITS) release(units + i + 1 - 2 * SLOT_UNITS);
        }
        release(units + COUNT - SLOT_UNITS);
    }

    __device__ void await() const {
        barrier_await_together(full + 8 * newest, parity);
    }
    static __device__ uint2 load_unit(u32 at) {
        uint2 x;
        asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "r"(at) : "memory");
        return x;
    }

    // Gives the oldest slot back, of which `units` are. An arrival does not wait for loads under way, so it is made to depend on what they brought.
    __device__ void release(const uint2 *units) {
        u32 bits = 0;
#pragma unroll
        for (u32 i = 0; i < SLOT_UNITS; i++) bits |= units[i].x | units[i].y;
        if (thread() % WARP == 0 && is_number(bits & 0x3fffffff)) barrier_arrive(full + EMPTY + 8 * oldest);
        if (++oldest == SLOTS) oldest = 0;
    }
    static constexpr u32 EMPTY = SLOTS_MAX * sizeof(u64);

    // Whether these are the bits of a number, out of the compiler's sight.
    static __device__ bool is_number(u32 bits) {
        u32 is;
        asm volatile("{\n\t.reg .pred is;\n\tsetp.eq.f32 is, %1, %1;\n\tselp.u32 %0, 1, 0, is;\n\t}" : "=r"(is) : "f"(__uint_as_float(bits)));
        return is != 0;
    }
};
