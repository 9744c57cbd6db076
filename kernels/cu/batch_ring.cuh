// A block's weights on their way: shared memory as a ring of slots, which one thread fills by bulk copies and the warps that compute read.
//
// The stream runs through all layers and begins anew with the next token. A slot holds as many units of every warp as divide every product.
#pragma once
#include "batch_layout.cuh"

__device__ constexpr u32 common_divisor(u32 a, u32 b) { return b == 0 ? a : common_divisor(b, a % b); }

constexpr u32 RING_START = (sizeof(Shared) + 127) / 128 * 128;

// A warp's reading place.
struct Ring {
    static constexpr u32 UNITS = common_divisor(common_divisor(QKV_UNITS, OUT_UNITS), common_divisor(UP_UNITS, DOWN_UNITS));
    static constexpr u32 SLOT_BYTES = UNITS * UNIT * WARPS, FITTING = (SHARED_BYTES - RING_START) / SLOT_BYTES;
    static constexpr u32 SLOTS = FITTING < SLOTS_MAX ? FITTING : SLOTS_MAX;
    static_assert(SLOTS >= 4, "the ring is too small for this model");

    const u32 full, mine; // the slots' barriers, and where this lane's parts of the first one's units lie
    u32 newest = 0, parity = 0, oldest = 0;

    __device__ Ring(const Shared &s)
        : full(shared_address(s.full)), mine(shared_address(&s) + RING_START + threadIdx.x / WARP * (UNITS * UNIT) + threadIdx.x % WARP * 8) {}

    // Fills the slots for `layers` layers in all: one thread.
    static __device__ void fill(const Shared &s, const char *stream, u32 layers) {
        u32 slot = 0, parity = 1, offset = 0, behind = SLOTS, attended = 0, full = shared_address(s.full), empty = shared_address(s.empty);
#pragma unroll 1
        for (u32 left = layers * (LAYER_UNITS / UNITS); left > 0; left--) {
            barrier_await(empty + 8 * slot, parity);
            // What attention reads has the way to L2 for itself: this slot was of q, k, v.
            if (behind == 0) barrier_await(shared_address(&s.attended), attended), attended ^= 1, behind = LAYER_UNITS / UNITS;
            behind--;
            barrier_expect(full + 8 * slot, SLOT_BYTES);
            fetch(shared_address(&s) + RING_START + slot * SLOT_BYTES, stream + offset, SLOT_BYTES, full + 8 * slot);
            offset = offset + SLOT_BYTES == STREAM_BYTES ? 0 : offset + SLOT_BYTES;
            if (++slot == SLOTS) slot = 0, parity ^= 1;
        }
    }

    // Reads this warp's units of the next slots, waiting for each, and gives the slots back.
    template <u32 COUNT> __device__ void read(uint2 (&units)[COUNT]) {
        static_assert(COUNT % UNITS == 0, "a product takes whole slots");
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) {
            if (i % UNITS == 0) await();
            units[i] = load_unit(mine + newest * SLOT_BYTES + i % UNITS * UNIT);
            if (i % UNITS + 1 < UNITS) continue;
            if (++newest == SLOTS) newest = 0, parity ^= 1;
            if (i >= UNITS) release(units + i + 1 - 2 * UNITS);
        }
        release(units + COUNT - UNITS);
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
        for (u32 i = 0; i < UNITS; i++) bits |= units[i].x | units[i].y;
        if (threadIdx.x % WARP == 0 && is_number(bits & 0x3fffffff)) barrier_arrive(full + EMPTY + 8 * oldest);
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
