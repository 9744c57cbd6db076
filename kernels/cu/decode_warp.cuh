// What a warp of decode.cu or decode_train.cu knows, how it awaits what others hand over, and what every layout does alike: picks, and all around.
#pragma once
#include "decode_sums.cuh"
#include "gelu_rounded.cuh"

__device__ inline float gelu(float x) {
    return sizeof(Element) == 2 ? gelu_rounded(x) : 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
}

struct DecodeArguments {
    const char *stream;     // decode_pack.cu, decode_train_pack.cu
    const float *constants; // [CLUSTERS N][CONSTANTS]
    const Element *token, *position;
    Element *keys[LAYERS], *values[LAYERS]; // [H, P, D]
    float *logits;
    u32 *tokens;
    Cursor *cursor;
    volatile u64 *outbox;
    OutboxState *state;
    u32 slots, steps;
    float eps;
#if CLUSTERS > 1
    uint4 *exchange; // zero before the first launch: a word that stays between launches, and those of each cluster
#endif
};
static_assert(sizeof(DecodeArguments) == 8 * (11 + (CLUSTERS > 1) + 2 * LAYERS), "DecodeArguments are laid out in Rust");

// The warps that compute meet.
__device__ inline void meet() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }

// The warps' parts of a channel, summed, with their mass.
struct BlockPart {
    int most = NO_SCORE;
    float sum, mass;

    __device__ BlockPart(const Shared &s, u32 channel) {
        Mass theirs[WARPS];
        float x[WARPS], weight[WARPS];
#pragma unroll
        for (int i = 0; i < int(WARPS); i += 2) {
            int4 two = *reinterpret_cast<const int4 *>(s.part_mass + i);
            theirs[i] = {two.x, __int_as_float(two.y)}, theirs[i + 1] = {two.z, __int_as_float(two.w)};
        }
#pragma unroll
        for (int i = 0; i < int(WARPS); i++) x[i] = s.part[i][channel];
#pragma unroll
        for (int i = 0; i < int(WARPS); i += 2) most = max(most, max(theirs[i].most, theirs[i + 1].most));
#pragma unroll
        for (int i = 0; i < int(WARPS); i++) weight[i] = whole_power(theirs[i].most - most);
        float sums[2] = {}, masses[2] = {};
#pragma unroll
        for (int i = 0; i < int(WARPS); i++) {
            sums[i % 2] = fmaf(weight[i], x[i], sums[i % 2]);
            masses[i % 2] = fmaf(weight[i], theirs[i].mass, masses[i % 2]);
        }
        sum = sums[0] + sums[1], mass = masses[0] + masses[1];
    }
};

// A warp that computes.
struct Warp {
    const DecodeArguments &a;
    Shared &s;
    const u32 block, rank, warp; // of the cluster, of the blocks that share a layer, of the block
    u32 lane;
    u32 parities = 0; // of the handoffs awaited next
    Clock clock;

    __device__ Warp(const DecodeArguments &a, Shared &s)
        : a(a), s(s), block(uniform(cluster_rank())), rank(TEAM < N ? block % TEAM : block), warp(uniform(threadIdx.x / WARP)),
          lane(threadIdx.x % WARP) {}

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

    // Waits for a handoff and makes its barrier ready for the next, which brings so many bytes.
    template <u32 HANDOFF> __device__ void await(u32 next = bytes(HANDOFF)) {
        clock.worked(HANDOFF);
        barrier_await_soon(base() + barrier(HANDOFF), parities >> HANDOFF & 1);
        clock.waited(HANDOFF);
        parities ^= 1u << HANDOFF;
        if (threadIdx.x == (HANDOFF == POSITION ? THREADS - WARP : 0)) barrier_expect(base() + barrier(HANDOFF), next);
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

    __device__ void fetch_position(u32 position) const;
    __device__ void prepare(u32 step, u32 next, u32 end) const;
    __device__ void await_position();
    __device__ void send_core(u32 head, u32 part) const;
    __device__ void pick();
};

// Waits for the next token's position, by one warp for all that meet it later.
__device__ void Warp::await_position() {
    if (warp < WARPS - 1) return;
    float sum = 0;
    await<POSITION>();
#pragma unroll
    for (u32 k = lane; k < C; k += WARP) sum += to_float(s.position[k]);
    sum = warp_sum(sum);
    if (lane == 0) s.position_mean = sum * (1.0f / C);
}

// One thread has a row of the position embedding fetched for the next token.
__device__ void Warp::fetch_position(u32 position) const {
    if (threadIdx.x > 0) return;
    fetch(shared_address(s.position), a.position + u64(position) * C, C * sizeof(Element), base() + barrier(POSITION));
}

// What this token's pick and the next token need, where there is time for it.
__device__ void Warp::prepare(u32 step, u32 next, u32 end) const {
    if (next < end) fetch_position(next);
    u32 noisy = THREADS - 1 - threadIdx.x; // by the warps that do not finish
    if (!s.rule.greedy && noisy < V) s.noise[noisy] = gumbel(noisy, step, s.rule);
}

// The warps' parts of a head's result, summed: each warp takes a lane's worth of channels to some of the blocks.
__device__ void Warp::send_core(u32 head, u32 part) const {
    constexpr u32 SHARES = D / WARP, COUNT = N * SHARES / FINISHERS, STRIDE = FINISHERS / SHARES;
    u32 channel = warp % SHARES * WARP;
    BlockPart whole(s, channel + lane);
    deliver<CORE, WARP, COUNT, STRIDE>(whole.sum, s.core[part] + head * D + channel, warp / SHARES);
    if (channel == 0 && lane < COUNT) {
        u32 there = in_block(base(), warp / SHARES + lane * STRIDE);
        send(there + offset(&s.core_mass[part][head]), __int_as_float(whole.most), whole.mass, there + barrier(CORE));
    }
}

// Picks the next token: one warp.
__device__ void Warp::pick() {
    constexpr u32 EACH = (V + WARP - 1) / WARP;
    Sampling rule = s.rule;
    Scores<EACH, WholeWarp> scores(rule, {}, [&](u32 token) { return s.noise[token]; });
    await<LOGITS>();
    scores.read(s.logits);
    u32 token = scores.pick_by_warp();
    if (lane == 0) s.token = token;
#pragma unroll
    for (u32 v = lane; v < V; v += WARP)
        if (rank == 0) a.logits[v] = s.logits[v];
}
