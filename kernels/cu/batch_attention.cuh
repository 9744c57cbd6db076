// Attention of one query of one head, on tensor cores: PAIR_PARTS warps take 16 keys in turn, each TILES_AHEAD times 16 at once.
//
// Of scores, keys are the first operand: a lane's four words of a key are words of two rows, those of even columns of the other operand and
// those of odd ones, and the score is what both make. Of weighted values, the values are the first operand, a row a channel.
// So that a warp reads shared memory from all banks, a key of odd number has its channels' halves exchanged, and the query's in every other pair of
// columns; a lane's values are of channels that depend on the key, and each column of probabilities has those keys alone whose channels agree.
#pragma once
#include "batch_product.cuh"

constexpr u32 WIDE = D / 8; // channels of a lane's values
constexpr float NO_SCORE = -1e30f;

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

// Those of shared memory.
template <u32 WORDS> __device__ void copy_words(u32 (&to)[WORDS], const bf16 *from) {
    if constexpr (WORDS == 4) {
        uint4 x = *reinterpret_cast<const uint4 *>(from);
        to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
    } else {
        uint2 x = *reinterpret_cast<const uint2 *>(from);
        to[0] = x.x, to[1] = x.y;
    }
}

// Hides where an address comes from: else the compiler makes it anew for every load.
__device__ inline const bf16 *plain_address(const bf16 *p) {
    asm volatile("" : "+l"(p));
    return p;
}

// 16 keys with their values, as a warp holds them: of keys l / 4 and l / 4 + 8 the channels key_channel(j) .. + 7; of keys 2 (l % 4), that and 8,
// the next, and that and 8, the values' channels value_channel() .. + WIDE - 1.
struct Keys {
    u32 key[2][D / 32][4], value[4][WIDE / 2];

    static __device__ u32 key_index(u32 i, u32 lane) { return i * 8 + lane / 4; }
    static __device__ u32 value_index(u32 i, u32 lane) { return i % 2 * 8 + lane % 4 * 2 + i / 2; }
    static __device__ u32 key_channel(u32 j, u32 lane) { return (j ^ half(lane)) * 32 + lane % 4 * 8; }
    static __device__ u32 value_channel(u32 lane) { return (lane / 4 + lane % 4 * 2) % 8 * WIDE; }
    static __device__ u32 half(u32 lane) { return D == 64 ? lane / 4 % 2 : 0; }

    // From shared memory.
    __device__ void load_near_keys(const bf16 *keys, u32 lane) {
#pragma unroll
        for (u32 i = 0; i < 2; i++)
#pragma unroll
            for (u32 j = 0; j < D / 32; j++) copy_words(key[i][j], keys + key_index(i, lane) * D + key_channel(j, lane));
    }
    __device__ void load_near_values(const bf16 *values, u32 lane) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) copy_words(value[i], values + value_index(i, lane) * D + value_channel(lane));
    }
    // The first `count` of those at `keys`, or `values`, this lane's part of the first one; the others are 0.
    __device__ void load_keys(const bf16 *keys, int count, u32 lane) {
#pragma unroll
        for (u32 i = 0; i < 2; i++)
#pragma unroll
            for (u32 j = 0; j < D / 32; j++) {
                key[i][j][0] = key[i][j][1] = key[i][j][2] = key[i][j][3] = 0;
                if (int(key_index(i, lane)) < count) load_words(key[i][j], keys + i * 8 * D + int(key_channel(j, lane) - key_channel(0, lane)));
            }
    }
    __device__ void load_values(const bf16 *values, int count, u32 lane) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
#pragma unroll
            for (u32 w = 0; w < WIDE / 2; w++) value[i][w] = 0;
            if (int(value_index(i, lane)) < count) load_words(value[i], values + (i % 2 * 8 + i / 2) * D);
        }
    }
    // Puts the new token's in their place.
    __device__ void insert_key(u32 place, const bf16 *k, u32 lane) {
#pragma unroll
        for (u32 i = 0; i < 2; i++)
#pragma unroll
            for (u32 j = 0; j < D / 32; j++)
                if (key_index(i, lane) == place) copy_words(key[i][j], k + key_channel(j, lane));
    }
    __device__ void insert_value(u32 place, const bf16 *v, u32 lane) {
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            if (value_index(i, lane) == place) copy_words(value[i], v + value_channel(lane));
    }
};

// Loads tiles from `from` on, of `left` keys; those behind are 0.
__device__ inline void load_keys(Keys (&held)[TILES_AHEAD], const bf16 *keys, int left, u32 from) {
#pragma unroll
    for (u32 i = from; i < TILES_AHEAD; i++) held[i].load_keys(keys + i * TURN_KEYS * D, left - int(i * TURN_KEYS), thread() % WARP);
}
__device__ inline void load_values(Keys (&held)[TILES_AHEAD], const bf16 *values, int left, u32 from) {
#pragma unroll
    for (u32 i = from; i < TILES_AHEAD; i++) held[i].load_values(values + i * TURN_KEYS * D, left - int(i * TURN_KEYS), thread() % WARP);
}

// put(tile, place in it) for the one of COUNT tiles that has key `newest`, if there is one; the first begins at key `first`.
template <u32 COUNT, typename Put> __device__ void with_newest(Keys (&keys)[TILES_AHEAD], u32 first, u32 newest, Put put) {
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) {
        u32 tile = first + i * TURN_KEYS;
        if (tile <= newest && newest < tile + TILE_KEYS) put(keys[i], newest - tile);
    }
}

// What lanes with different keys have, joined.
template <typename Join> __device__ float over_keys(float x, Join join) {
    if (D == 64) x = join(x, __shfl_xor_sync(ALL_LANES, x, 1));
#pragma unroll
    for (int lanes = 4; lanes < WARP; lanes *= 2) x = join(x, __shfl_xor_sync(ALL_LANES, x, lanes));
    return x;
}

// Softmax-weighted values of a warp's keys so far.
struct Weighted {
    float most = NO_SCORE, mass = 0; // of these lanes' keys
    float sum[WIDE / 2][4] = {};

    // Of each key of COUNT tiles: its two parts are in 0 and 3.
    template <u32 COUNT> __device__ void score(float (&score)[TILES_AHEAD * 2][4], const Keys (&keys)[TILES_AHEAD], const bf16 *q, u32 lane) const {
        u32 row = lane / 4;
        const u32 *words = reinterpret_cast<const u32 *>(q) + lane % 4 * 4 + row % 2;
#pragma unroll
        for (u32 i = 0; i < COUNT * 2; i++) score[i][0] = score[i][1] = score[i][2] = score[i][3] = 0;
#pragma unroll
        for (u32 j = 0; j < D / 32; j++) {
            const u32 *b = words + (j ^ (D == 64 ? row / 2 % 2 : 0)) * 16;
#pragma unroll
            for (u32 i = 0; i < COUNT * 2; i++) multiply(score[i], keys[i / 2].key[i % 2][j], b[0], b[2]);
        }
    }

    // Adds COUNT tiles' values of keys up to `newest`; tile i begins at key first + i TURN_KEYS.
    template <u32 COUNT>
    __device__ void add(const float (&score)[TILES_AHEAD * 2][4], const Keys (&keys)[TILES_AHEAD], u32 first, u32 newest, u32 lane) {
        const float factor = rsqrtf(float(D)) * 1.4426950408889634f; // to powers of two
        float p[COUNT * 2], largest = most;
        // Of the columns that a lane has, these are of its key's order.
        bool agrees = D != 64 || lane / 4 % 2 == lane % 2;
        int last = agrees ? int(newest) - int(first) : -1;
#pragma unroll
        for (u32 i = 0; i < COUNT * 2; i++) {
            bool there = int(i / 2 * TURN_KEYS + Keys::key_index(i % 2, lane)) <= last;
            p[i] = there ? (score[i][0] + score[i][3]) * factor : 2 * NO_SCORE;
            largest = fmaxf(largest, p[i]);
        }
        largest = over_keys(largest, [](float a, float b) { return fmaxf(a, b); });
        float shrink = power_of_two(most - largest);
        mass *= shrink, most = largest;
#pragma unroll
        for (u32 i = 0; i < WIDE / 2; i++) sum[i][0] *= shrink, sum[i][1] *= shrink, sum[i][2] *= shrink, sum[i][3] *= shrink;
#pragma unroll
        for (u32 i = 0; i < COUNT * 2; i++) p[i] = power_of_two(p[i] - largest), mass += p[i];
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) {
            u32 both = pack(p[2 * i], p[2 * i + 1]), from = lane % 4 * 8;
            u32 p0 = __shfl_sync(ALL_LANES, both, from), p1 = __shfl_sync(ALL_LANES, both, from + (D == 64 ? 5 : 4));
            if (lane / 4 % 4 != lane % 4) p0 = p1 = 0;
            const auto &value = keys[i].value;
#pragma unroll
            for (u32 c = 0; c < WIDE / 2; c++) {
                u32 a[4] = {__byte_perm(value[0][c], value[1][c], 0x5410), __byte_perm(value[0][c], value[1][c], 0x7632),
                            __byte_perm(value[2][c], value[3][c], 0x5410), __byte_perm(value[2][c], value[3][c], 0x7632)};
                multiply(sum[c], a, p0, p1);
            }
        }
    }

    // Leaves them: column c of the sums, for c < 4, is of the keys of lanes c of the quads.
    __device__ void leave(float (*part)[D], Mass &to, u32 lane) {
        mass = over_keys(mass, [](float a, float b) { return a + b; });
        if (lane == 0) to = {most, mass};
        if (lane % 4 >= 2) return;
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            u32 column = lane % 4 * 2 + i;
            float *at = part[column] + (lane / 4 + column * 2) % 8 * WIDE;
#pragma unroll
            for (u32 c = 0; c < WIDE / 2; c += 2)
                *reinterpret_cast<float4 *>(at + c * 2) = make_float4(sum[c][i], sum[c][2 + i], sum[c + 1][i], sum[c + 1][2 + i]);
        }
    }
};
