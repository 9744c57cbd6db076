// A block's share of the keys and values of its head, over its lanes. Key j of the block is position j S + its part of the S.
#pragma once
#include "decode_sums.cuh"

// A lane has eight channels of a key. Keys of a warp and of the block at a time, and how often until the context is full.
constexpr u32 KEY_LANES = D / 8, WARP_KEYS = WARP / KEY_LANES, BLOCK_KEYS = WARPS * WARP_KEYS;
constexpr u32 ROUNDS = ((P + S - 1) / S + BLOCK_KEYS - 1) / BLOCK_KEYS;
// Keys that a lane has in a batch, batches of a full context, and those on the way at once: as many as it has registers for.
constexpr u32 BATCH_MAX = sizeof(Element) == 2 ? 4 : 2, BATCH = ROUNDS < BATCH_MAX ? ROUNDS : BATCH_MAX, BATCH_KEYS = BATCH * BLOCK_KEYS;
constexpr u32 BATCHES = (ROUNDS + BATCH - 1) / BATCH, AHEAD = BATCHES < 2 ? 1 : 2;

// Eight channels of a cached row, as they are stored. Read through L2, where the newest rows are.
template <typename T> struct Eight;
template <> struct Eight<float> {
    float4 raw[2] = {};
    __device__ void load(const float *p) {
        raw[0] = __ldcg(reinterpret_cast<const float4 *>(p)), raw[1] = __ldcg(reinterpret_cast<const float4 *>(p) + 1);
    }
    __device__ void round(const float *p) { raw[0] = load4(p), raw[1] = load4(p + 4); }
    __device__ float4 half(int i) const { return raw[i]; }
};
template <> struct Eight<bf16> {
    uint4 raw = {};
    __device__ void load(const bf16 *p) { raw = __ldcg(reinterpret_cast<const uint4 *>(p)); }
    __device__ void round(const float *p) {
        float4 low = load4(p), high = load4(p + 4);
        raw = make_uint4(pack(low.x, low.y), pack(low.z, low.w), pack(high.x, high.y), pack(high.z, high.w));
    }
    __device__ float4 half(int i) const { return unpack4(i == 0 ? make_uint2(raw.x, raw.y) : make_uint2(raw.z, raw.w)); }
};

// Rows of the cache that a lane holds: a batch of them, from key `first` of the block on.
struct Batch {
    Eight<Element> key[BATCH], value[BATCH];

    static __device__ u32 index(u32 first, int i) {
        return first + i * BLOCK_KEYS + threadIdx.x / WARP * WARP_KEYS + threadIdx.x % WARP / KEY_LANES;
    }
    // Loads those of the block's `old` cached keys, which begin at `keys` and `values`. Others are 0.
    __device__ void load(const Element *keys, const Element *values, u32 first, u32 old) {
        u32 channel = threadIdx.x % KEY_LANES * 8;
#pragma unroll
        for (int i = 0; i < int(BATCH); i++) {
            u32 j = index(first, i);
            key[i] = {}, value[i] = {};
            if (j >= old) continue;
            key[i].load(keys + u64(j * S) * D + channel);
            value[i].load(values + u64(j * S) * D + channel);
        }
    }
    // Puts the new token's key and value, of `qkv`, in their place: key `j` of the block.
    __device__ void insert(u32 first, u32 j, const float *qkv) {
        const float *channel = qkv + threadIdx.x % KEY_LANES * 8;
        Eight<Element> k, v;
        k.round(channel + D), v.round(channel + 2 * D);
#pragma unroll
        for (int i = 0; i < int(BATCH); i++)
            if (index(first, i) == j) key[i] = k, value[i] = v;
    }
};

// Softmax-weighted values so far: a lane has eight channels, over the keys that it saw.
struct Weighted {
    int most = NO_SCORE;
    float mass = 0, sum[8] = {};
    float4 q[2];

    // With q of the head.
    __device__ Weighted(const float *qkv) {
        const float factor = rsqrtf(float(D)) * 1.4426950408889634f; // to powers of two
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float4 x = load4(qkv + threadIdx.x % KEY_LANES * 8 + 4 * half);
            q[half] = make_float4(x.x * factor, x.y * factor, x.z * factor, x.w * factor);
        }
    }

    // Adds the keys of a batch, of which `old` are cached and the next, up to `count`, is the new token's in `qkv`: q, k and v.
    __device__ void add(Batch &batch, u32 first, u32 old, u32 count, const float *qkv) {
        u32 base = first + threadIdx.x / WARP * WARP_KEYS;
        if (base >= count) return;
        if (old < count && (old - base) % BLOCK_KEYS < WARP_KEYS) batch.insert(first, old, qkv);
        float score[BATCH], largest = MINUS_INFINITY;
#pragma unroll
        for (int i = 0; i < int(BATCH); i++) {
            float dot = dot4(q[0], batch.key[i].half(0), 0.0f) + dot4(q[1], batch.key[i].half(1), 0.0f);
#pragma unroll
            for (int lanes = KEY_LANES / 2; lanes > 0; lanes /= 2) dot += __shfl_xor_sync(ALL_LANES, dot, lanes);
            score[i] = Batch::index(first, i) < count ? dot : MINUS_INFINITY;
            largest = fmaxf(largest, score[i]);
        }
        rescale(__reduce_max_sync(ALL_LANES, score_bound(largest)));
#pragma unroll
        for (int i = 0; i < int(BATCH); i++)
            add(power_of_two(score[i] - float(most)), batch.value[i].half(0), batch.value[i].half(1));
    }

    // Makes the sums relative to the larger bound.
    __device__ void rescale(int bound) {
        bound = max(most, bound);
        float shrink = whole_power(most - bound);
        most = bound;
        if (BATCHES == 1) return;
        mass *= shrink;
#pragma unroll
        for (int c = 0; c < 8; c++) sum[c] *= shrink;
    }
    __device__ void add(float p, float4 low, float4 high) {
        mass += p;
        sum[0] = fmaf(p, low.x, sum[0]), sum[1] = fmaf(p, low.y, sum[1]), sum[2] = fmaf(p, low.z, sum[2]), sum[3] = fmaf(p, low.w, sum[3]);
        sum[4] = fmaf(p, high.x, sum[4]), sum[5] = fmaf(p, high.y, sum[5]), sum[6] = fmaf(p, high.z, sum[6]), sum[7] = fmaf(p, high.w, sum[7]);
    }

    // Sums over the warp's keys and leaves the D channels at `part`, and their mass.
    __device__ void leave(float *part, Mass &to) {
        u32 lane = threadIdx.x % WARP;
#pragma unroll
        for (int step = 1; 1 << step <= int(WARP_KEYS); step++) {
            // Of lanes with the same channels, each keeps half of what it holds, until one channel is left.
            const int lanes = WARP >> step, half = 8 >> step;
            bool upper = lane & lanes;
            mass += __shfl_xor_sync(ALL_LANES, mass, lanes);
#pragma unroll
            for (int c = 0; c < half; c++) {
                float low = sum[c], high = sum[c + half];
                sum[c] = (upper ? high : low) + __shfl_xor_sync(ALL_LANES, upper ? low : high, lanes);
            }
        }
        constexpr u32 KEPT = 8 / WARP_KEYS;
#pragma unroll
        for (int c = 0; c < int(KEPT); c++) part[lane % KEY_LANES * 8 + lane / KEY_LANES * KEPT + c] = sum[c];
        if (lane == 0) to = {most, mass};
    }
};
