// Attention of one query of one head, on tensor cores: PAIR_PARTS warps take 16 keys in turn, each up to TILES_AHEAD times 16 at once.
//
// The query fills eight equal rows of the first operand, so that a lane gets the scores of the keys whose probabilities the next product wants of
// it, as in flash attention.
#pragma once
#include "batch_product.cuh"

constexpr u32 TILE_KEYS = 16, TILES_AHEAD = 4, AHEAD_KEYS = TILES_AHEAD * PAIR_PARTS * TILE_KEYS;
constexpr u32 WIDE = D / 8; // channels of a lane's values
constexpr float NO_SCORE = -1e30f;

__device__ inline float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ inline float quad_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}
__device__ inline float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
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

// 16 keys with their values, as a warp holds them: of keys l / 4 and l / 4 + 8 the channels 32 j + 8 (l % 4) .. + 7; of keys 2 (l % 4), the next,
// and the same 8 further on the values' channels WIDE (l / 4) .. + WIDE - 1.
struct Keys {
    u32 key[2][D / 32][4], value[4][WIDE / 2];

    static __device__ u32 key_index(u32 i) { return i * 8 + threadIdx.x % WARP / 4; }
    static __device__ u32 value_index(u32 i) { return i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2; }

    // Those from `first` on, up to `count`; others are 0.
    __device__ void load(const bf16 *keys, const bf16 *values, u32 first, u32 count) {
        u32 lane = threadIdx.x % WARP;
#pragma unroll
        for (u32 i = 0; i < 2; i++)
#pragma unroll
            for (u32 j = 0; j < D / 32; j++) {
                u32 k = first + key_index(i);
                key[i][j][0] = key[i][j][1] = key[i][j][2] = key[i][j][3] = 0;
                if (k < count) load_words(key[i][j], keys + u64(k) * D + j * 32 + lane % 4 * 8);
            }
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 k = first + value_index(i);
#pragma unroll
            for (u32 w = 0; w < WIDE / 2; w++) value[i][w] = 0;
            if (k < count) load_words(value[i], values + u64(k) * D + lane / 4 * WIDE);
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
        float score[TILES_AHEAD][2][4] = {};
#pragma unroll
        for (u32 j = 0; j < D / 32; j++) {
            uint4 x = *reinterpret_cast<const uint4 *>(q + j * 32 + lane % 4 * 8);
            u32 low[4] = {x.x, 0, x.y, 0}, high[4] = {x.z, 0, x.w, 0};
#pragma unroll
            for (u32 i = 0; i < TILES_AHEAD; i++) {
                if (first + i * PAIR_PARTS * TILE_KEYS > newest) continue;
#pragma unroll
                for (u32 half = 0; half < 2; half++) multiply(score[i][half], low, keys[i].key[half][j][0], keys[i].key[half][j][1]);
#pragma unroll
                for (u32 half = 0; half < 2; half++) multiply(score[i][half], high, keys[i].key[half][j][2], keys[i].key[half][j][3]);
            }
        }
        float largest = most;
#pragma unroll
        for (u32 i = 0; i < TILES_AHEAD * 4; i++) {
            float &s = score[i / 4][i / 2 % 2][i % 2];
            s = first + i / 4 * PAIR_PARTS * TILE_KEYS + Keys::value_index(i % 4) <= newest ? s * factor : 2 * NO_SCORE;
            largest = fmaxf(largest, s);
        }
        largest = quad_max(largest);
        float shrink = power_of_two(most - largest);
        mass *= shrink, most = largest;
#pragma unroll
        for (u32 i = 0; i < WIDE; i++) sum[i][0] *= shrink, sum[i][1] *= shrink;
#pragma unroll
        for (u32 i = 0; i < TILES_AHEAD; i++) {
            if (first + i * PAIR_PARTS * TILE_KEYS > newest) continue;
            float p[4];
#pragma unroll
            for (u32 j = 0; j < 4; j++) p[j] = power_of_two(score[i][j / 2][j % 2] - largest);
            mass += (p[0] + p[1]) + (p[2] + p[3]);
            u32 a[4] = {pack(p[0], p[1]), 0, pack(p[2], p[3]), 0};
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
        mass = quad_sum(mass);
        if (lane == 0) to = {most, mass};
        if (lane >= 4) return;
#pragma unroll
        for (u32 c = 0; c < D / 4; c++) part[lane * (D / 4) + c] = sum[c % WIDE][c / WIDE];
    }
};
