// What a warp of decode.cu knows, and how it hands over.
#pragma once
#include "decode_product.cuh"

struct DecodeArguments {
    const char *stream;     // decode_pack.cu
    const float *constants; // [N][CONSTANTS]
    const Element *token, *position;
    Element *keys[LAYERS], *values[LAYERS]; // [H, P, D]
    float *logits;
    u32 *tokens;
    Cursor *cursor;
    volatile u64 *outbox;
    OutboxState *state;
    u32 slots, steps;
    float eps;
};
static_assert(sizeof(DecodeArguments) == 8 * (11 + 2 * LAYERS), "DecodeArguments are laid out in Rust");

// A warp that computes.
struct Decoder {
    const DecodeArguments &a;
    Shared &s;
    Reader reader;
    const u32 rank, warp, lane;
    u32 parities = 0;          // of the handoffs awaited next
    Clock clock;
    float shift = 0;           // the mean of the row before the last norm, in warps that finish
    float own[OutSplit::ROWS]; // the residual's rows that this lane sums, likewise
    KeySlot key_slot;
    Rows rows; // of a round of keys
    Four<Element> head_rows[HeadSplit::UNITS];

    __device__ Decoder(const DecodeArguments &a, Shared &s)
        : a(a), s(s), reader(s), rank(cluster_rank()), warp(threadIdx.x / WARP), lane(threadIdx.x % WARP) {
        if (HEAD_HELD) load_head();
    }
    __device__ void load_head() {
#pragma unroll
        for (int i = 0; i < int(HeadSplit::UNITS); i++) {
            u32 row = min(rank * HEAD_ROWS + HeadSplit::row(0, lane), V - 1);
            head_rows[i] = reinterpret_cast<const Four<Element> *>(a.token + u64(row) * C + HeadSplit::column(warp, lane))[i];
        }
    }

    // ---- handoffs ----

    __device__ u32 base() const { return shared_address(&s); }

    // What one brings to a block.
    static __device__ constexpr u32 bytes(u32 handoff) {
        return handoff == QKV        ? D * sizeof(float) + 2 * D * sizeof(Element)
               : handoff == CORE     ? S * C * sizeof(Element) + S * H * sizeof(Mass)
               : handoff == HIDDEN   ? F * sizeof(Element)
               : handoff == LOGITS   ? V * sizeof(float)
               : handoff == POSITION ? C * sizeof(Element)
                                     : sizeof(Stream);
    }
    __device__ u32 barrier(u32 handoff) const { return handoff * sizeof(u64); }
    __device__ u32 offset(const void *p) const { return shared_address(p) - base(); }

    // Waits for a handoff and makes its barrier ready for the next.
    template <u32 HANDOFF> __device__ void await() {
        clock.worked(HANDOFF);
        barrier_await_soon(base() + barrier(HANDOFF), parities >> HANDOFF & 1);
        clock.waited(HANDOFF);
        parities ^= 1u << HANDOFF;
        if (threadIdx.x == (HANDOFF == POSITION ? THREADS - WARP : 0)) barrier_expect(base() + barrier(HANDOFF), bytes(HANDOFF));
    }

    // Sends a value for each of LANES rows, which the lanes of a warp hold again and again, to `place` and behind in COUNT blocks, from `to` on
    // each STRIDE-th.
    template <u32 HANDOFF, u32 LANES, u32 COUNT, u32 STRIDE> __device__ void deliver(float value, const float *place, u32 to) const {
        u32 at = offset(place + lane % LANES), copy = lane / LANES;
#pragma unroll
        for (u32 i = 0; i < COUNT; i += WARP / LANES) {
            u32 there = in_block(base(), to + (i + copy) * STRIDE);
            if (i + copy < COUNT) send(there + at, value, there + barrier(HANDOFF));
        }
    }
    // The same in bfloat16, two rows a word: lanes of even rows send to every other block, those of odd rows to the rest.
    template <u32 HANDOFF, u32 LANES, u32 COUNT, u32 STRIDE> __device__ void deliver(float value, const bf16 *place, u32 to) const {
        u32 odd = lane % 2, mine = from_float<bf16>(value).bits, other = __shfl_xor_sync(ALL_LANES, mine, 1);
        u32 word = odd ? mine << 16 | other : other << 16 | mine, at = offset(place + lane % LANES - odd), copy = lane / LANES * 2 + odd;
#pragma unroll
        for (u32 i = 0; i < COUNT; i += 2 * (WARP / LANES)) {
            u32 there = in_block(base(), to + (i + copy) * STRIDE);
            if (i + copy < COUNT) send(there + at, word, there + barrier(HANDOFF));
        }
    }

    // Sends the block's rows of the residual to all blocks, for a norm with these gammas.
    template <u32 HANDOFF> __device__ void send_rows(const Stream &stream, const float (&gamma)[OutSplit::ROWS]) const {
        constexpr u32 BLOCKS = OutSplit::PARTS / 2; // of a warp's stores
        static_assert(OutSplit::PARTS % 2 == 0, "half of the lanes send what is scaled");
        u32 centered = lane / OutSplit::ROW_LANES % 2, first = lane / OutSplit::ROW_LANES / 2;
#pragma unroll
        for (u32 r = 0; r < OutSplit::ROWS; r++) {
            float x = own[r] - shift, value = centered ? x : x * gamma[r];
            u32 at = offset(&stream.values[rank][centered][OutSplit::row(r, lane)]);
#pragma unroll
            for (u32 i = 0; i < N / FINISHERS; i += BLOCKS) {
                u32 there = in_block(base(), warp + (i + first) * FINISHERS);
                if (i + first < N / FINISHERS) send(there + at, value, there + barrier(HANDOFF));
            }
        }
    }

    __device__ const float *constants(u32 layer) const { return s.constants + layer * LAYER_CONSTANTS; }
    template <typename Split> __device__ float2 ab(const float *pairs, u32 i) const {
        return reinterpret_cast<const float2 *>(pairs)[Split::row(i, lane)];
    }
    // Of this lane's rows of the residual.
    __device__ void own_constants(float (&to)[OutSplit::ROWS], const float *from) const {
#pragma unroll
        for (u32 r = 0; r < OutSplit::ROWS; r++) to[r] = from[OutSplit::row(r, lane)];
    }

    __device__ void fetch_position(u32 position) const;
    __device__ void prepare(u32 step, u32 next, u32 end) const;
    __device__ void await_position();
    __device__ void embed(u32 token);
    __device__ void attention(u32 layer, u32 past);
    __device__ void leave_qkv(const float *pairs, float2 pair);
    __device__ void send_qkv(float value, u32 r) const;
    __device__ bool has_keys(u32 round, u32 past) const;
    __device__ void load_keys();
    __device__ void release_keys(float made);
    __device__ void send_core(u32 head, u32 part) const;
    __device__ void core(u32 layer, u32 past);
    __device__ void merge();
    __device__ void out(u32 layer);
    __device__ void mlp(u32 layer);
    __device__ void send_hidden(u32 layer);
    template <typename Split, u32 HANDOFF>
    __device__ void send_residual(const Sums<Split> &sums, const Stream &to, const float *bias, const float *gamma);
    __device__ u32 head(bool last);
    __device__ void send_logits() const;
    __device__ void pick();
};
