// A block's share of the keys and values of its head, over its lanes. Key j of the block is position j S + its part of the S.
#pragma once
#include "decode_sums.cuh"

// A lane has eight channels of a key. Keys of a warp and of the block at a time, and how often until the context is full.
constexpr u32 KEY_LANES = D / 8, WARP_KEYS = WARP / KEY_LANES, BLOCK_KEYS = WARPS * WARP_KEYS;
constexpr u32 ROUNDS = ((P + S - 1) / S + BLOCK_KEYS - 1) / BLOCK_KEYS;
// Keys that a lane has on the way at once: as many as it has registers for.
constexpr u32 BATCH_MAX = sizeof(Element) == 2 ? 4 : C <= 256 ? 3 : 2, BATCH = ROUNDS < BATCH_MAX ? ROUNDS : BATCH_MAX;

// Eight channels of a cached row, as they are stored. Read through L2, where the newest rows are.
template <typename T> struct Eight;
template <> struct Eight<float> {
    float4 raw[2];
    __device__ void load(const float *p) {
        raw[0] = __ldcg(reinterpret_cast<const float4 *>(p)), raw[1] = __ldcg(reinterpret_cast<const float4 *>(p) + 1);
    }
    __device__ float4 half(int i) const { return raw[i]; }
};
template <> struct Eight<bf16> {
    uint4 raw;
    __device__ void load(const bf16 *p) { raw = __ldcg(reinterpret_cast<const uint4 *>(p)); }
    __device__ float4 half(int i) const { return unpack4(i == 0 ? make_uint2(raw.x, raw.y) : make_uint2(raw.z, raw.w)); }
};

// Four values rounded as the cache rounds them.
__device__ inline float4 rounded4(const float *p) {
    return make_float4(to_float(from_float<Element>(p[0])), to_float(from_float<Element>(p[1])), to_float(from_float<Element>(p[2])),
                       to_float(from_float<Element>(p[3])));
}

// Rows of the cache that a lane holds: a batch of them, from key `first` of the block on.
struct Batch {
    Eight<Element> key[BATCH], value[BATCH];

    static __device__ u32 index(u32 first, int i) {
        return first + i * BLOCK_KEYS + threadIdx.x / WARP * WARP_KEYS + threadIdx.x % WARP / KEY_LANES;
    }
    // Loads those of the block's `old` cached keys, which begin at `keys` and `values`.
    __device__ void load(const Element *keys, const Element *values, u32 first, u32 old) {
        u32 channel = threadIdx.x % KEY_LANES * 8;
#pragma unroll
        for (int i = 0; i < int(BATCH); i++) {
            u32 j = index(first, i);
            if (j >= old) continue;
            key[i].load(keys + u64(j * S) * D + channel);
            value[i].load(values + u64(j * S) * D + channel);
        }
    }
};

// Softmax-weighted values so far: a lane has eight channels, over the keys that it saw.
struct Weighted {
    float most = MINUS_INFINITY, mass = 0, sum[8] = {};

    // Adds the keys of a batch, of which `old` are cached and the next, up to `count`, is the new token's in `qkv`: q, k and v.
    __device__ void add(const Batch &batch, u32 first, u32 old, u32 count, const float *qkv) {
        const float factor = rsqrtf(float(D)) * 1.4426950408889634f; // to powers of two
        const float *channel = qkv + threadIdx.x % KEY_LANES * 8;
        float4 q[2] = {load4(channel), load4(channel + 4)};
        float score[BATCH], largest = most;
#pragma unroll
        for (int i = 0; i < int(BATCH); i++) {
            u32 j = Batch::index(first, i);
            float4 low = batch.key[i].half(0), high = batch.key[i].half(1);
            if (j == old) low = rounded4(channel + D), high = rounded4(channel + D + 4);
            float dot = dot4(q[0], low, dot4(q[1], high, 0.0f));
#pragma unroll
            for (int lanes = KEY_LANES / 2; lanes > 0; lanes /= 2) dot += __shfl_xor_sync(ALL_LANES, dot, lanes);
            score[i] = j < count ? dot * factor : MINUS_INFINITY;
            largest = fmaxf(largest, score[i]);
        }
        largest = largest_of_warp(largest);
        if (largest == MINUS_INFINITY) return;
        rescale(largest);
#pragma unroll
        for (int i = 0; i < int(BATCH); i++) {
            u32 j = Batch::index(first, i);
            if (j >= count) continue;
            float4 low = batch.value[i].half(0), high = batch.value[i].half(1);
            if (j == old) low = rounded4(channel + 2 * D), high = rounded4(channel + 2 * D + 4);
            add(power_of_two(score[i] - most), low, high);
        }
    }

    __device__ void rescale(float largest) {
        float shrink = power_of_two(most - largest);
        most = largest, mass *= shrink;
#pragma unroll
        for (int c = 0; c < 8; c++) sum[c] *= shrink;
    }
    __device__ void add(float p, float4 low, float4 high) {
        mass += p;
        sum[0] = fmaf(p, low.x, sum[0]), sum[1] = fmaf(p, low.y, sum[1]), sum[2] = fmaf(p, low.z, sum[2]), sum[3] = fmaf(p, low.w, sum[3]);
        sum[4] = fmaf(p, high.x, sum[4]), sum[5] = fmaf(p, high.y, sum[5]), sum[6] = fmaf(p, high.z, sum[6]), sum[7] = fmaf(p, high.w, sum[7]);
    }

    // Sums over the warp's keys and leaves the D channels at `part`; mass and most are the same in all lanes then.
    __device__ void leave(float *part) {
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
    }

    static __device__ float largest_of_warp(float x) {
        u32 key = __reduce_max_sync(ALL_LANES, sort_key(x));
        return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
    }
};
