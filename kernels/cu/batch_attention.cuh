// Attention of one query of one head, on tensor cores: PAIR_PARTS warps take tiles of 16 keys in turn, each up to TILES_AHEAD at once.
//
// Of scores, keys are the first operand: a lane's four words of a key are the words of two rows, those of even columns of the other operand and those of
// odd ones, and the score is what both make. Of weighted values, probabilities are the first operand.
// So that a warp reads tiles over all banks, a key of odd number has its channels' halves exchanged, and the query's in every other pair of columns;
// a lane's values are of channels that depend on the key, and each row of probabilities has those keys alone whose channels agree.
#pragma once
#include "batch_product.cuh"

constexpr u32 TILES_AHEAD = 4, AHEAD_KEYS = TILES_AHEAD * PAIR_PARTS * TILE_KEYS;
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

template <u32 WORDS> __device__ void load_words(u32 (&to)[WORDS], const bf16 *from) {
    if constexpr (WORDS == 4) {
        uint4 x = *reinterpret_cast<const uint4 *>(from);
        to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
    } else {
        uint2 x = *reinterpret_cast<const uint2 *>(from);
        to[0] = x.x, to[1] = x.y;
    }
}

// 16 keys with their values, as a warp holds them: of keys l / 4 and l / 4 + 8 the channels 32 j + 8 (l % 4) .. + 7, of keys 2 (l % 4), that and 8,
// the next, and that and 8, the values' channels WIDE ((l / 4 + 2 (l % 4)) % 8) .. + WIDE - 1.
struct Keys {
    u32 key[2][D / 32][4], value[4][WIDE / 2];

    static __device__ u32 key_index(u32 i) { return i * 8 + threadIdx.x % WARP / 4; }
    static __device__ u32 value_index(u32 i) { return i % 2 * 8 + threadIdx.x % 4 * 2 + i / 2; }
    // Where the lane's part of a key begins, or of a value.
    static __device__ u32 key_channel(u32 j) { return (j ^ half()) * 32 + threadIdx.x % 4 * 8; }
    static __device__ u32 value_channel() { return (threadIdx.x % WARP / 4 + threadIdx.x % 4 * 2) % 8 * WIDE; }
    static __device__ u32 half() { return D == 64 ? threadIdx.x / 4 % 2 : 0; }

    // The first `count` of a tile; the values of others are 0.
    __device__ void load(const bf16 *keys, const bf16 *values, int count) {
#pragma unroll
        for (u32 i = 0; i < 2; i++)
#pragma unroll
            for (u32 j = 0; j < D / 32; j++) load_words(key[i][j], keys + key_index(i) * D + key_channel(j));
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            load_words(value[i], values + value_index(i) * D + value_channel());
#pragma unroll
            for (u32 w = 0; w < WIDE / 2; w++) value[i][w] = int(value_index(i)) < count ? value[i][w] : 0;
        }
    }
    __device__ void clear() {
#pragma unroll
        for (u32 i = 0; i < 4; i++)
#pragma unroll
            for (u32 w = 0; w < WIDE / 2; w++) value[i][w] = 0, key[i / 2][i % (D / 32)][w] = 0;
    }
    // Of what was loaded.
    __device__ u32 bits() const {
        u32 all = 0;
#pragma unroll
        for (u32 i = 0; i < 2; i++)
#pragma unroll
            for (u32 j = 0; j < D / 32; j++) all |= key[i][j][0] | key[i][j][1] | key[i][j][2] | key[i][j][3];
#pragma unroll
        for (u32 i = 0; i < 4; i++)
#pragma unroll
            for (u32 w = 0; w < WIDE / 2; w++) all |= value[i][w];
        return all;
    }
    // Puts the new token's in their place.
    __device__ void insert(u32 place, const bf16 *k, const bf16 *v) {
#pragma unroll
        for (u32 i = 0; i < 2; i++)
#pragma unroll
            for (u32 j = 0; j < D / 32; j++)
                if (key_index(i) == place) load_words(key[i][j], k + key_channel(j));
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            if (value_index(i) == place) load_words(value[i], v + value_channel());
    }
};

// Softmax-weighted values of a warp's keys so far.
struct Weighted {
    float most = NO_SCORE, mass = 0; // of these lanes' keys
    float sum[WIDE][4] = {};

    // Adds tiles of keys up to `newest`; tile i begins at key first + i PAIR_PARTS TILE_KEYS.
    __device__ void add(const Keys (&keys)[TILES_AHEAD], const bf16 *q, u32 first, u32 newest) {
        const float factor = rsqrtf(float(D)) * 1.4426950408889634f; // to powers of two
        u32 lane = threadIdx.x % WARP, row = lane / 4;
        const u32 *words = reinterpret_cast<const u32 *>(q) + lane % 4 * 4 + row % 2;
        float score[TILES_AHEAD * 2][4] = {}, p[TILES_AHEAD * 2], largest = most;
#pragma unroll
        for (u32 j = 0; j < D / 32; j++) {
            const u32 *b = words + (j ^ (D == 64 ? row / 2 % 2 : 0)) * 16;
#pragma unroll
            for (u32 i = 0; i < TILES_AHEAD * 2; i++) multiply(score[i], keys[i / 2].key[i % 2][j], b[0], b[2]);
        }
        // Of the columns that a lane has, these are of its key's order.
        bool agrees = D != 64 || row % 2 == lane % 2;
        int last = agrees ? int(newest) - int(first) : -1;
#pragma unroll
        for (u32 i = 0; i < TILES_AHEAD * 2; i++) {
            bool there = int(i / 2 * PAIR_PARTS * TILE_KEYS + Keys::key_index(i % 2)) <= last;
            p[i] = there ? (score[i][0] + score[i][3]) * factor : 2 * NO_SCORE;
            largest = fmaxf(largest, p[i]);
        }
#pragma unroll
        for (int lanes = D == 64 ? 1 : 4; lanes < WARP; lanes *= lanes == 1 ? 4 : 2) largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, lanes));
        float shrink = power_of_two(most - largest);
        mass *= shrink, most = largest;
#pragma unroll
        for (u32 i = 0; i < WIDE; i++) sum[i][0] *= shrink, sum[i][1] *= shrink;
#pragma unroll
        for (u32 i = 0; i < TILES_AHEAD * 2; i++) p[i] = power_of_two(p[i] - largest), mass += p[i];
#pragma unroll
        for (u32 i = 0; i < TILES_AHEAD; i++) {
            u32 both = pack(p[2 * i], p[2 * i + 1]), from = lane % 4 * 8;
            u32 even = __shfl_sync(ALL_LANES, both, from), odd = __shfl_sync(ALL_LANES, both, from + (D == 64 ? 5 : 4));
            u32 a[4] = {row == lane % 4 ? even : 0, 0, row == lane % 4 ? odd : 0, 0};
#pragma unroll
            for (u32 c = 0; c < WIDE; c++) {
                u32 half = c % 2 ? 0x7632 : 0x5410;
                multiply(sum[c], a, __byte_perm(keys[i].value[0][c / 2], keys[i].value[1][c / 2], half),
                         __byte_perm(keys[i].value[2][c / 2], keys[i].value[3][c / 2], half));
            }
        }
    }

    // Leaves them: row r of the sums has columns 2 (l % 4) and the next of lanes 4 r .. + 3, whose channels begin 2 r eighths further on.
    __device__ void leave(float (*part)[D], Mass &to) {
        u32 lane = threadIdx.x % WARP, row = lane / 4;
#pragma unroll
        for (int lanes = D == 64 ? 1 : 4; lanes < WARP; lanes *= lanes == 1 ? 4 : 2) mass += __shfl_xor_sync(ALL_LANES, mass, lanes);
        if (lane == 0) to = {most, mass};
        if (row >= PART_ROWS) return;
#pragma unroll
        for (u32 c = 0; c < D / 4; c++) part[row][(lane % 4 + row) % 4 * (D / 4) + c] = sum[c % WIDE][c / WIDE];
    }
};
