// Blocks of a cluster of decode_batch.cu: how they hand over, and the residual with its norms.
//
// Of the residual travels what the next norm needs: gamma (x - shift), in the working precision, and then the block's moments; the sum itself
// stays with the thread that made it.
#pragma once
#include "batch_attention.cuh"

struct BatchArguments {
    const char *stream;                      // decode_batch_pack.cu
    const float *constants;                  // [N][CONSTANTS]
    const float *token_mean, *position_mean; // [V], [P]
    const bf16 *token, *position;
    bf16 *keys[LAYERS], *values[LAYERS]; // [batch, H, P, D]
    float *logits;                       // [batch, V]
    u32 *tokens;                         // [batch]
    Cursor *cursor;                      // [batch]
    volatile u64 *outbox;                // [slots, batch]
    OutboxState *state;
    u32 slots, steps, batch;
    float eps;
};
static_assert(sizeof(BatchArguments) == 8 * (13 + 2 * LAYERS), "BatchArguments are laid out in Rust");

// What a thread that computes keeps from stage to stage, and how blocks hand over.
struct Block {
    const BatchArguments &a;
    Shared &s;
    const u32 rank, warp, lane;
    Ring ring;
    u32 parities = 0; // of the handoffs awaited next
    Clock clock;
    float own = 0; // an element of the residual: that of Place(threadIdx.x)

    __device__ Block(const BatchArguments &a, Shared &s)
        : a(a), s(s), rank(uniform(cluster_rank())), warp(uniform(threadIdx.x / WARP)), lane(threadIdx.x % WARP), ring(s) {}

    // ---- handoffs ----

    __device__ u32 base() const { return shared_address(&s); }
    // What one brings to block `rank`.
    static __device__ u32 bytes(u32 handoff, u32 rank) {
        switch (handoff) {
        case QKV: return min(PAIRS - min(rank * PAIRS_HERE, PAIRS), PAIRS_HERE) * 3 * D * sizeof(bf16);
        case CORE: return B * C * sizeof(bf16);
        case DOWN: return sizeof(Shared::down);
        case LOGITS: return sizeof(Shared::logits);
        case RESIDUAL_MOMENTS:
        case MIDDLE_MOMENTS: return sizeof(NormInput::moments);
        default: return sizeof(NormInput::eight);
        }
    }
    __device__ u32 barrier(u32 handoff) const { return handoff * sizeof(u64); }
    __device__ u32 offset(const void *p) const { return shared_address(p) - base(); }

    // Waits for a handoff and makes its barrier ready for the next.
    template <u32 HANDOFF> __device__ void await() {
        clock.worked(HANDOFF);
        barrier_await_together(base() + barrier(HANDOFF), parities >> HANDOFF & 1);
        clock.waited(HANDOFF);
        parities ^= 1u << HANDOFF;
        if (thread() == 0) barrier_expect(base() + barrier(HANDOFF), bytes(HANDOFF, rank));
    }

    // ---- the residual ----

    // Sends what the next norm needs of the residual: all blocks get it.
    template <u32 HANDOFF> __device__ void publish(NormInput &to, const float *gamma) {
        u32 t = thread();
        Place place(min(t, OUTS - 1));
        float x = own - s.shift[place.sequence];
        if (t < OUTS) s.outgoing[t] = from_float<bf16>(x * gamma[place.row]), s.shifted[t] = x;
        help<SHIFTED, NORM_THREADS>();
        meet();
        constexpr u32 VECTORS = OUTS / 8;
#pragma unroll
        for (u32 i = 0; i < (VECTORS + WARP - 1) / WARP; i++) {
            u32 v = i * WARP + thread() % WARP;
            if (v >= VECTORS) continue;
            uint4 x = reinterpret_cast<const uint4 *>(s.outgoing)[v];
#pragma unroll
            for (u32 j = 0; j < N; j += WARPS) {
                u32 there = in_block(base(), j + warp);
                send(there + offset(to.eight[rank * (OUT_ROWS / 8)]) + v * 16, x, there + barrier(HANDOFF));
            }
        }
    }

    // The warp's share of a product, left for the block; its weights come in one part or more.
    template <typename S, typename X, typename... W> __device__ void product(const X &x, const W &...weights) const {
        u32 tile = S::first_tile(warp);
        Sums<S::EIGHTS> sums;
        ((sums.add(weights, x, tile), tile += sizeof(weights) / sizeof(weights[0]) / S::EIGHTS), ...);
        sums.leave(s.partial + S::place(warp) * B);
    }

    // Elements 2 i and 2 i + 1 of a product behind it.
    template <typename S> __device__ float2 normed(const float *ab, u32 i) const {
        Place place(2 * i);
        Norm n = s.norm[place.sequence];
        float4 x = *reinterpret_cast<const float4 *>(ab + 2 * place.row);
        float2 dot = summed<S>(s.partial, i);
        return make_float2(fmaf(n.scale, fmaf(-n.mean, x.x, dot.x), x.y), fmaf(n.scale, fmaf(-n.mean, x.z, dot.y), x.w));
    }

    // f(i, elements 2 i and 2 i + 1) for the thread's elements of so many rows; all are read before the first is used.
    template <typename S, typename F> __device__ void each_normed(const float *ab, F f) const {
        constexpr u32 COUNT = S::ROWS * B / 2, EACH = (COUNT + THREADS - 1) / THREADS;
        u32 t = thread();
        float2 x[EACH];
#pragma unroll
        for (u32 j = 0; j < EACH; j++) x[j] = normed<S>(ab, min(j * THREADS + t, COUNT - 1));
#pragma unroll
        for (u32 j = 0; j < EACH; j++)
            if (j * THREADS + t < COUNT) f(j * THREADS + t, x[j]);
    }

    __device__ const float *constants(u32 layer) const { return s.constants + layer * LAYER_CONSTANTS; }
};
