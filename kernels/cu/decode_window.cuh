// A block's window of shared memory onto its stream of weights. One warp fills it ahead by bulk copies, the others read.
//
// The stream runs through all layers and begins anew with the next token. It comes in parts; within a part, every warp's weights lie together. Where
// a layer fits into the window, a part is a whole product and has a place of its own, filled with the next layer's weights as soon as all
// warps are done with this layer's (STATIC). Else parts are smaller and of one size, and the window is a ring of them.
#pragma once
#include "decode_keys.cuh"

// The largest divisor of `n` up to `limit`.
__device__ constexpr u32 divisor_up_to(u32 n, u32 limit) {
    while (n % limit != 0) limit--;
    return limit;
}

struct Window {
    static constexpr bool STATIC = WINDOW_BYTES >= LAYER_BYTES;
    // Bytes a warp of a part of the ring: as many as divide every product.
    static constexpr u32 SLOT = common_divisor(common_divisor(QKV_BYTES, OUT_BYTES), common_divisor(UP_BYTES, DOWN_BYTES));
    static constexpr u32 FITTING = WINDOW_BYTES / SLOT < SLOTS_MAX ? WINDOW_BYTES / SLOT : SLOTS_MAX;
    static constexpr u32 SLOTS = STATIC ? u32(PRODUCTS) : FITTING, PARTS = STATIC ? u32(PRODUCTS) : LAYER_BYTES / SLOT;
    static_assert(SLOTS >= 3, "the window is too small for this model");

    // Bytes a warp of a part, and those before it in its layer or, of a slot, in the window.
    static __device__ constexpr u32 bytes(u32 part) {
        return !STATIC ? SLOT : part == QKV_PRODUCT ? QKV_BYTES : part == OUT_PRODUCT ? OUT_BYTES : part == UP_PRODUCT ? UP_BYTES : DOWN_BYTES;
    }
    static __device__ constexpr u32 start(u32 part) {
        return !STATIC ? part * SLOT : (part > 0) * QKV_BYTES + (part > 1) * OUT_BYTES + (part > 2) * UP_BYTES;
    }
    // Where byte `i` of a warp's layer lies in the layer of its block.
    static __device__ u32 place(u32 warp, u32 i) {
        u32 part = STATIC ? (i >= start(1)) + (i >= start(2)) + (i >= start(3)) : i / SLOT;
        return start(part) * WARPS + warp * bytes(part) + i - start(part);
    }

    // Fetches a product of a layer, where all warps have read that of the layer before: one thread.
    static __device__ void fetch_product(u32 product, u32 window, u32 full, const char *layer) {
        u32 before = start(product) * WARPS, length = bytes(product) * WARPS;
        barrier_expect(full + 8 * product, length);
        fetch(window + before, layer + before, length, full + 8 * product);
    }

    // Fills the window for `layers` layers in all: one thread.
    static __device__ void fill(u32 window, u32 full, u32 empty, const char *stream, u32 layers) {
        u32 slot = 0, parity = 1, offset = 0;
#pragma unroll 1
        for (u32 layer = 0; layer < layers; layer++) {
#pragma unroll 1
            for (u32 part = 0; part < PARTS; part++) {
                barrier_await_asleep(empty + 8 * slot, parity);
                barrier_expect(full + 8 * slot, bytes(part) * WARPS);
                fetch(window + start(slot) * WARPS, stream + offset, bytes(part) * WARPS, full + 8 * slot);
                offset += bytes(part) * WARPS;
                if (++slot == SLOTS) slot = 0, parity ^= 1;
            }
            if (offset == LAYERS * LAYER_BYTES * WARPS) offset = 0;
        }
    }
};

// A warp's reading place.
struct Reader {
    const Shared &s;
    u32 slot = 0, parity = 0;

    __device__ Reader(const Shared &s) : s(s) {}

    // Waits for the next part, which is of this product, and says where this warp's weights of it lie.
    template <u32 PRODUCT> __device__ const char *await() const {
        barrier_await_soon(shared_address(&s.full[Window::STATIC ? PRODUCT : slot]), parity);
        return at<PRODUCT>();
    }
    template <u32 PRODUCT> __device__ const char *at() const {
        u32 at = Window::STATIC ? PRODUCT : slot;
        const char *window = reinterpret_cast<const char *>(&s) + WINDOW_START;
        return window + Window::start(at) * WARPS + threadIdx.x / WARP * Window::bytes(PRODUCT);
    }

    // Gives it back: every lane has read it, and what it read last is in its registers. An arrival does not wait for loads under way, so it is made
    // to depend on their values; no weight is a NaN.
    template <u32 PRODUCT, u32 HELD> __device__ void release(const Four<Element> (&read)[HELD]) {
        bool here = false;
#pragma unroll
        for (int i = 0; i < int(HELD); i++) here |= read[i].values().x == read[i].values().x;
        give_back<PRODUCT>(__any_sync(ALL_LANES, here));
    }
    // The same where all that was read has been used, and the warps have met since.
    template <u32 PRODUCT> __device__ void release() { give_back<PRODUCT>(true); }

    template <u32 PRODUCT> __device__ void give_back(bool read) {
        if (read && threadIdx.x % WARP == 0) barrier_arrive(shared_address(&s.empty[Window::STATIC ? PRODUCT : slot]));
        if (Window::STATIC) {
            if (PRODUCT == DOWN_PRODUCT) parity ^= 1;
        } else if (++slot == Window::SLOTS) {
            slot = 0, parity ^= 1;
        }
    }
};

// Fills the slots for positions `past` to `end`, by one thread: `keys` and `values` are those of each layer, [H, P, D].
__device__ inline void fill_keys(Shared &s, Element *const *keys, Element *const *values, u32 head, u32 part, u32 past, u32 end) {
    KeySlot at;
#pragma unroll 1
    for (; past < end; past++)
#pragma unroll 1
        for (u32 layer = 0; layer < LAYERS; layer++)
#pragma unroll 1
            for (u32 round = 0; first_position(round, part) <= past; round++, at.advance()) {
                u32 full = shared_address(&s.keys_full[at.slot]), to = shared_address(KeySlot::at(s, at.slot));
                u32 first = first_position(round, part), bytes = min(past - min(past, first), BLOCK_KEYS) * D * sizeof(Element);
                barrier_await_asleep(shared_address(&s.keys_empty[at.slot]), at.parity ^ 1);
                order_copies(); // the last token's rows were stored by other threads
                barrier_expect(full, 2 * bytes);
                if (bytes == 0) continue;
                u64 from = (u64(head) * P + first) * D;
                fetch(to, keys[layer] + from, bytes, full), fetch(to + KEY_BYTES, values[layer] + from, bytes, full);
            }
}
