// A block's weights on their way: shared memory as a ring of slots, which one thread fills by bulk copies and the warps that compute read.
//
// The stream of weights runs through all layers and begins anew with the next token. A slot holds as many units of every warp as divide every product, or
// a tile of the cache: 16 keys of each pair that the block attends to, then their values. Those come between the weights of q, k, v and of out. There
// are no more slots than weights of a layer: so a tile is fetched when the weights behind the last one have been read, and its rows written.
#pragma once
#include "batch_layout.cuh"

__device__ constexpr u32 common_divisor(u32 a, u32 b) { return b == 0 ? a : common_divisor(b, a % b); }

constexpr u32 RING_START = (sizeof(Shared) + 127) / 128 * 128;

// A warp's reading place.
struct Ring {
    static constexpr u32 UNITS = common_divisor(common_divisor(QKV_UNITS, OUT_UNITS), common_divisor(UP_UNITS, DOWN_UNITS));
    static constexpr u32 BYTES = UNITS * UNIT * WARPS, CACHE_BYTES = 2 * PAIRS_HERE * TILE_BYTES, QKV_SLOTS = QKV_UNITS / UNITS, LAYER_SLOTS = LAYER_UNITS / UNITS;
    static constexpr u32 SLOT_BYTES = BYTES > CACHE_BYTES ? BYTES : CACHE_BYTES, FITTING = (SHARED_BYTES - RING_START) / SLOT_BYTES;
    static constexpr u32 SLOTS = FITTING < LAYER_SLOTS ? FITTING : LAYER_SLOTS;
    static_assert(SLOTS >= 4, "the ring is too small for this model");

    const u32 full, mine; // the slots' barriers, and where this lane's parts of the first one's units lie
    const bf16 *const tiles;
    u32 newest = 0, parity = 0, oldest = 0;

    __device__ Ring(const Shared &s)
        : full(shared_address(s.full)), mine(shared_address(&s) + RING_START + threadIdx.x / WARP * (UNITS * UNIT) + threadIdx.x % WARP * 8),
          tiles(reinterpret_cast<const bf16 *>(reinterpret_cast<const char *>(&s) + RING_START)) {}

    // Reads this warp's units of the next slots, waiting for each, and gives the slots back.
    template <u32 COUNT> __device__ void read(uint2 (&units)[COUNT]) {
        static_assert(COUNT % UNITS == 0, "a product takes whole slots");
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) {
            if (i % UNITS == 0) await();
            units[i] = load_unit(mine + newest * SLOT_BYTES + i % UNITS * UNIT);
            if (i % UNITS + 1 < UNITS) continue;
            advance();
            if (i >= UNITS) release(units + i + 1 - 2 * UNITS);
        }
        release(units + COUNT - UNITS);
    }

    // A tile of the cache in the next slot: a pair's keys.
    __device__ const bf16 *tile(u32 pair) const { return tiles + (newest * SLOT_BYTES + pair * TILE_BYTES) / sizeof(bf16); }
    // To the next slot.
    __device__ void advance() {
        if (++newest == SLOTS) newest = 0, parity ^= 1;
    }
    __device__ void await() const {
#ifndef NOWAIT
        barrier_await_together(full + 8 * newest, parity);
#endif
    }
    static __device__ uint2 load_unit(u32 at) {
        uint2 x;
        asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "r"(at) : "memory");
        return x;
    }

    __device__ void release(const uint2 *units) {
        u32 bits = 0;
#pragma unroll
        for (u32 i = 0; i < UNITS; i++) bits |= units[i].x | units[i].y;
        release(bits);
    }
    // Gives the oldest slot back. An arrival does not wait for loads under way, so it is made to depend on the bits that they brought.
    __device__ void release(u32 bits) {
#ifndef NOWAIT
        if (threadIdx.x % WARP == 0 && is_number(bits & 0x3fffffff)) barrier_arrive(full + EMPTY + 8 * oldest);
#endif
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

// The thread that fills the ring.
struct Filler {
    const Shared &s;
    const char *stream;
    u32 slot = 0, parity = 1, offset = 0;

    // Waits for the next slot, which so many bytes will come to.
    __device__ u32 next(u32 bytes) {
#ifndef NOWAIT
        barrier_await(shared_address(&s.empty[slot]), parity);
        barrier_expect(barrier(), bytes);
#endif
        return shared_address(&s) + RING_START + slot * Ring::SLOT_BYTES;
    }
    __device__ u32 barrier() const { return shared_address(&s.full[slot]); }
    __device__ void copy(u32 to, const void *from, u32 bytes) const {
#ifndef NOWAIT
        fetch(to, from, bytes, barrier());
#endif
    }
    __device__ void advance() {
        if (++slot == Ring::SLOTS) slot = 0, parity ^= 1;
    }

    __device__ void weights(u32 slots) {
#pragma unroll 1
        for (; slots > 0; slots--) {
            copy(next(Ring::BYTES), stream + offset, Ring::BYTES);
            offset = offset + Ring::BYTES == STREAM_BYTES ? 0 : offset + Ring::BYTES;
            advance();
        }
    }

    // The cached positions of this block's pairs, the first of which is `pair`.
    __device__ void cache(const bf16 *keys, const bf16 *values, u32 pair, u32 step) {
        u64 from = (u64(s.first) * H + pair) * P * D;
        keys += from, values += from;
#pragma unroll 1
        for (int first = 0; first < cached(s.longest, step); first += TILE_KEYS) {
            u32 all = 0;
#pragma unroll 1
            for (u32 i = 0; i < PAIRS_HERE; i++) all += rows(pair + i, first, step);
            u32 to = next(all * 2 * D * sizeof(bf16));
#pragma unroll 1
            for (u32 i = 0; i < PAIRS_HERE; i++, to += TILE_BYTES) {
                u32 bytes = rows(pair + i, first, step) * D * sizeof(bf16), at = (i * P + first) * D;
                if (bytes == 0) continue;
                copy(to, keys + at, bytes), copy(to + PAIRS_HERE * TILE_BYTES, values + at, bytes);
            }
            advance();
        }
    }
    // How many rows of a tile there are.
    __device__ u32 rows(u32 pair, int first, u32 step) const {
        u32 n = pair / H;
        return n < s.count ? min(max(cached(s.cursor[n].past, step) - first, 0), int(TILE_KEYS)) : 0;
    }
    // Of a sequence that had `past` positions before the first step; of none where that is below 0.
    static __device__ int cached(int past, u32 step) { return past < 0 ? 0 : min(past + int(step), int(P)); }
};
