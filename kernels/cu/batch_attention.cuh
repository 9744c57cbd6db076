// Attention of one query of one head, on tensor cores: PAIR_PARTS warps take 16 keys in turn, each TILES_AHEAD times 16 at once.
//
// Of scores, keys are the first operand: a lane's four words of a key are words of two rows, those of even columns of the other operand and
// those of odd ones, and the score is what both make. Of weighted values, probabilities are the first operand, in eight equal rows.
#pragma once
#include "batch_product.cuh"

constexpr u32 TILE_KEYS = 16, TILES_AHEAD = 4, AHEAD_KEYS = TILES_AHEAD * PAIR_PARTS * TILE_KEYS;
constexpr u32 WIDE = D / 8; // channels of a lane's values
constexpr float NO_SCORE = -1e30f;

__device__ inline float quad_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// Words of the cache, read through L2, where the newest rows are.
template <u32 WORDS> __device__ void load_words(u32 (&to)[WORDS], const bf16 *from) {
    if constexpr (WORDS == 4) {
        uint4 x = __ldcg(reinterpret_cast<const uint4 *>(from));
        to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
    } else {
        uint2 x = __ldcg(reinterpret_cast<const uint2 *>(from));
        to[0] = x.x, to[1] = x.y;
    }
}

// Hides where an address comes from: else the compiler makes it anew for every load.
__device__ inline const bf16 *plain_address(const bf16 *p) {
    asm volatile("" : "+l"(p));
    return p;
}

// 16 keys with their values, as a warp holds them: of keys l / 4 and l / 4 + 8 the channels 32 j + 8 (l % 4) .. + 7; of keys 2 (l % 4), that and 8,
// the next, and that and 8, the values' channels WIDE (l / 4) .. + WIDE - 1.
struct Keys {
    u32 key[2][D / 32][4], value[4][WIDE / 2];

    static __device__ u32 key_index(u32 i) { return i * 8 + threadIdx.x % WARP / 4; }
    static __device__ u32 value_index(u32 i) { return i % 2 * 8 + threadIdx.x % 4 * 2 + i / 2; }

    // The first `count` of those at `keys`, or `values`, this lane's part of the first one; the others are 0.
    __device__ void load_keys(const bf16 *keys, int count) {
#pragma unroll
        for (u32 i = 0; i < 2; i++)
#pragma unroll
            for (u32 j = 0; j < D / 32; j++) {
                key[i][j][0] = key[i][j][1] = key[i][j][2] = key[i][j][3] = 0;
                if (int(key_index(i)) < count) load_words(key[i][j], keys + i * 8 * D + j * 32);
            }
    }
    __device__ void load_values(const bf16 *values, int count) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
#pragma unroll
            for (u32 w = 0; w < WIDE / 2; w++) value[i][w] = 0;
            if (int(value_index(i)) < count) load_words(value[i], values + (i % 2 * 8 + i / 2) * D);
        }
    }
    // Puts the new token's in their place.
    __device__ void insert(u32 place, const bf16 *k, const bf16 *v) {
        u32 lane = threadIdx.x % WARP;
#pragma unroll
        for (u32 i = 0; i < 2; i++)
#pragma unroll
            for (u32 j = 0; j < D / 32; j++)
#pragma unroll
                for (u32 w = 0; w < 4; w++)
                    if (key_index(i) == place) key[i][j][w] = reinterpret_cast<const u32 *>(k + j * 32 + lane % 4 * 8)[w];
#pragma unroll
        for (u32 i = 0; i < 4; i++)
#pragma unroll
            for (u32 w = 0; w < WIDE / 2; w++)
                if (value_index(i) == place) value[i][w] = reinterpret_cast<const u32 *>(v + lane / 4 * WIDE)[w];
    }
};

// Softmax-weighted values of a warp's keys so far.
struct Weighted {
    float most = NO_SCORE, mass = 0; // of these lanes' keys
    float sum[WIDE][4] = {};

    // Adds tiles of keys up to `newest`; tile i begins at key first + i PAIR_PARTS TILE_KEYS.
    __device__ void add(const Keys (&keys)[TILES_AHEAD], const bf16 *q, u32 first, u32 newest) {
        const float factor = rsqrtf(float(D)) * 1.4426950408889634f; // to powers of two
        u32 lane = threadIdx.x % WARP;
        const u32 *words = reinterpret_cast<const u32 *>(q) + lane % 4 * 4 + lane / 4 % 2;
        float score[TILES_AHEAD * 2][4] = {}, p[TILES_AHEAD * 2], largest = most;
#pragma unroll
        for (u32 j = 0; j < D / 32; j++)
#pragma unroll
            for (u32 i = 0; i < TILES_AHEAD * 2; i++) multiply(score[i], keys[i / 2].key[i % 2][j], words[j * 16], words[j * 16 + 2]);
        int last = int(newest) - int(first);
#pragma unroll
        for (u32 i = 0; i < TILES_AHEAD * 2; i++) {
            bool there = int(i / 2 * PAIR_PARTS * TILE_KEYS + Keys::key_index(i % 2)) <= last;
            p[i] = there ? (score[i][0] + score[i][3]) * factor : 2 * NO_SCORE;
            largest = fmaxf(largest, p[i]);
        }
#pragma unroll
        for (int lanes = 4; lanes < WARP; lanes *= 2) largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, lanes));
        float shrink = power_of_two(most - largest);
        mass *= shrink, most = largest;
#pragma unroll
        for (u32 i = 0; i < WIDE; i++) sum[i][0] *= shrink, sum[i][1] *= shrink;
#pragma unroll
        for (u32 i = 0; i < TILES_AHEAD * 2; i++) p[i] = power_of_two(p[i] - largest), mass += p[i];
#pragma unroll
        for (u32 i = 0; i < TILES_AHEAD; i++) {
            u32 both = pack(p[2 * i], p[2 * i + 1]), from = lane % 4 * 8;
            u32 a[4] = {__shfl_sync(ALL_LANES, both, from), 0, __shfl_sync(ALL_LANES, both, from + 4), 0};
#pragma unroll
            for (u32 c = 0; c < WIDE; c++) {
                u32 half = c % 2 ? 0x7632 : 0x5410;
                multiply(sum[c], a, __byte_perm(keys[i].value[0][c / 2], keys[i].value[1][c / 2], half),
                         __byte_perm(keys[i].value[2][c / 2], keys[i].value[3][c / 2], half));
            }
        }
    }

    // Leaves them: each lane below 4 has D / 4 channels.
    __device__ void leave(float *part, Mass &to) {
        u32 lane = threadIdx.x % WARP;
#pragma unroll
        for (int lanes = 4; lanes < WARP; lanes *= 2) mass += __shfl_xor_sync(ALL_LANES, mass, lanes);
        if (lane == 0) to = {most, mass};
        if (lane >= 4) return;
#pragma unroll
        for (u32 c = 0; c < D / 4; c++) part[lane * (D / 4) + c] = sum[c % WIDE][c / WIDE];
    }
};
