// A warp's weights on their way: its part of shared memory as a ring of slots, which it fills by bulk copies and reads.
//
// The stream runs through all layers and begins anew with the next token. A slot holds as many units as divide every product.
#pragma once
#include "batch_layout.cuh"

__device__ constexpr u32 common_divisor(u32 a, u32 b) { return b == 0 ? a : common_divisor(b, a % b); }

constexpr u32 RING_START = (sizeof(Shared) + 127) / 128 * 128;

struct Ring {
    static constexpr u32 UNITS = common_divisor(common_divisor(QKV_UNITS, OUT_UNITS), common_divisor(UP_UNITS, DOWN_UNITS));
    static constexpr u32 SLOT_BYTES = UNITS * UNIT, FITTING = (SHARED_BYTES - RING_START) / (SLOT_BYTES * WARPS);
    static constexpr u32 SLOTS = FITTING < SLOTS_MAX ? FITTING : SLOTS_MAX;
    static_assert(SLOTS >= 4, "the ring is too small for this model");

    const char *stream;
    const u32 memory, full; // the warp's slots and their barriers
    u32 left, offset = 0;   // slots to fetch, and where the next lies in the stream
    u32 newest = 0, parity = 0, oldest = 0;

    // Of `layers` layers in all.
    __device__ Ring(const Shared &s, const char *stream, u32 layers)
        : stream(stream), memory(shared_address(&s) + RING_START + threadIdx.x / WARP * SLOTS * SLOT_BYTES),
          full(shared_address(s.full[threadIdx.x / WARP])), left(layers * (LAYER_UNITS / UNITS)) {
#pragma unroll 1
        for (u32 i = 0; i < SLOTS; i++) fetch_next();
    }

    // Waits for the next slot and reads its units.
    __device__ void read(uint2 (&units)[UNITS]) {
#ifndef NOWAIT
        barrier_await_together(full + 8 * newest, parity);
#endif
#pragma unroll
        for (u32 i = 0; i < UNITS; i++) units[i] = load_unit(memory + newest * SLOT_BYTES + i * UNIT);
        if (++newest == SLOTS) newest = 0, parity ^= 1;
    }
    static __device__ uint2 load_unit(u32 at) {
        uint2 x;
        asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "r"(at + threadIdx.x % WARP * 8) : "memory");
        return x;
    }

    // Gives the oldest slot back: what was read of it has been used.
    __device__ void release() {
        __syncwarp();
        fetch_next();
    }
    __device__ void fetch_next() {
#ifndef NOWAIT
        if (left > 0 && threadIdx.x % WARP == 0) {
            barrier_expect(full + 8 * oldest, SLOT_BYTES);
            fetch(memory + oldest * SLOT_BYTES, stream + offset, SLOT_BYTES, full + 8 * oldest);
        }
#endif
        left -= left > 0;
        offset = offset + SLOT_BYTES == STREAM_BYTES ? 0 : offset + SLOT_BYTES;
        if (++oldest == SLOTS) oldest = 0;
    }
};
