// What a warp of decode.cu knows, however the model is spread, and how it awaits what others hand over.
#pragma once
#include "decode_product.cuh"
#include "gelu_rounded.cuh"

__device__ inline float gelu(float x) {
    return sizeof(Element) == 2 ? gelu_rounded(x) : 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
}

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
struct Worker {
    const DecodeArguments &a;
    Shared &s;
    Reader reader;
    const u32 block, stage, rank, warp;
    u32 lane; // the cluster's blocks come team by team; rank: of those that share a layer
    u32 parities = 0;           // of the handoffs awaited next
    Clock clock;
    Four<Element> head_rows[HeadSplit::UNITS];

    __device__ Worker(const DecodeArguments &a, Shared &s)
        : a(a), s(s), reader(s), block(uniform(cluster_rank())), stage(STAGED ? block / TEAM : 0), rank(STAGED ? block % TEAM : block),
          warp(uniform(threadIdx.x / WARP)), lane(threadIdx.x % WARP) {
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

    __device__ const float *constants(u32 layer) const { return s.constants + layer / STAGES * LAYER_CONSTANTS; }
    template <typename Split> __device__ float2 ab(const float *pairs, u32 i) const {
        return reinterpret_cast<const float2 *>(pairs)[Split::row(i, lane)];
    }
    __device__ void fetch_position(u32 position) const;
    __device__ void prepare(u32 step, u32 next, u32 end) const;
    __device__ void await_position();
    __device__ u32 head(const float4 (&x)[HeadSplit::FOURS], float moments);
    __device__ void send_logits() const;
    __device__ void pick();
};
