// A head's cached rows as decode_grid.cu and decode_shards.cu take them in: a warp has a group of KEYS positions in registers. Group g belongs to
// piece g % SPLITS of the head's cache, and there to warp g / SPLITS % WARPS.
#pragma once
#include "grid_model.cuh"

constexpr u32 VECTOR = 16 / sizeof(Element), VECTORS = D / VECTOR;             // elements of a load; loads of a row
__device__ constexpr u32 power_above(u32 n) { return n <= 4 ? 4 : n <= 8 ? 8 : n <= 16 ? 16 : 32; }
constexpr u32 ROW_LANES = power_above(VECTORS), ROWS_AT_ONCE = WARP / ROW_LANES; // lanes that share a row of values
#ifdef GRID_KEYS
constexpr u32 KEYS = GRID_KEYS;
#else
constexpr u32 KEYS = ROW_LANES <= (HALF ? 16 : 8) ? 16 : 8;
#endif
constexpr u32 KEY_LANES = WARP / KEYS; // of a group; lanes that share a key
constexpr u32 KEY_LOADS = divide_up(VECTORS, KEY_LANES), VALUE_LOADS = KEYS / ROWS_AT_ONCE;
static_assert(D % VECTOR == 0 && VECTORS <= 32, "heads of whole vectors");

// The sum of a vector's elements times those at `x`.
__device__ inline float dot_vector(const uint4 &v, const float *x, float sum) {
    if constexpr (HALF) return dot4(unpack4(make_uint2(v.z, v.w)), load4(x + 4), dot4(unpack4(make_uint2(v.x, v.y)), load4(x), sum));
    return dot4(make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w)), load4(x), sum);
}
__device__ inline void add_vector(float (&sum)[VECTOR], float w, const uint4 &v) {
    if constexpr (HALF) {
        float4 a = unpack4(make_uint2(v.x, v.y)), b = unpack4(make_uint2(v.z, v.w));
        float part[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
        for (u32 i = 0; i < VECTOR; i++) sum[i] = fmaf(w, part[i], sum[i]);
    } else {
        float part[4] = {__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w)};
#pragma unroll
        for (u32 i = 0; i < VECTOR; i++) sum[i] = fmaf(w, part[i], sum[i]);
    }
}

// A vector of values in the working precision.
__device__ inline uint4 rounded(float4 low, float4 high) {
    if constexpr (!HALF) return make_uint4(__float_as_uint(low.x), __float_as_uint(low.y), __float_as_uint(low.z), __float_as_uint(low.w));
    return make_uint4(pack(low.x, low.y), pack(low.z, low.w), pack(high.x, high.y), pack(high.z, high.w));
}
__device__ inline uint4 rounded(const float *x) { return rounded(load4(x), load4(x + VECTOR - 4)); }

// The cache of a layer; its addresses are read a layer ahead.
struct Cache {
    Element *keys, *values;
    __device__ Cache(const Layer &layer) : keys(layer.keys), values(layer.values) {}
};

// A group of cached rows in registers.
struct Rows {
    uint4 key[KEY_LOADS], value[VALUE_LOADS];

    __device__ static uint4 cached(const Element *rows, u32 row, u32 vector, u32 past) {
        return row < past && vector < VECTORS ? __ldcg(reinterpret_cast<const uint4 *>(rows + u64(row) * D) + vector) : make_uint4(0, 0, 0, 0);
    }
    __device__ void load(const Cache &cache, u32 head, u32 first, u32 past, u32 lane) {
        u32 row = first + lane / KEY_LANES;
        const Element *keys = cache.keys + u64(head) * CONTEXT * D, *values = cache.values + u64(head) * CONTEXT * D;
#pragma unroll
        for (u32 i = 0; i < KEY_LOADS; i++) {
            u32 vector = i * KEY_LANES + lane % KEY_LANES;
            key[i] = cached(keys, row, vector, past);
        }
#pragma unroll
        for (u32 i = 0; i < VALUE_LOADS; i++) {
            u32 row = first + i * ROWS_AT_ONCE + lane / ROW_LANES, vector = lane % ROW_LANES;
            value[i] = cached(values, row, vector, past);
        }
    }
    // Takes the newest position, `past`, from q, k and v, and writes it to the cache, where the group from `first` on has it.
    __device__ void insert(const Cache &cache, u32 head, u32 first, u32 past, const float *qkv, u32 lane) {
        u64 at = (u64(head) * CONTEXT + past) * D;
        bool mine = first + lane / KEY_LANES == past;
#pragma unroll
        for (u32 i = 0; i < KEY_LOADS; i++) {
            u32 vector = i * KEY_LANES + lane % KEY_LANES;
            uint4 newest = rounded(qkv + D + smaller(vector, VECTORS - 1) * VECTOR);
            if (mine) key[i] = newest;
            if (mine && vector < VECTORS) reinterpret_cast<uint4 *>(cache.keys + at)[vector] = newest;
        }
        u32 vector = lane % ROW_LANES, row = past - first;
        uint4 newest = rounded(qkv + 2 * D + smaller(vector, VECTORS - 1) * VECTOR);
#pragma unroll
        for (u32 i = 0; i < VALUE_LOADS; i++)
            if (row == i * ROWS_AT_ONCE + lane / ROW_LANES) value[i] = newest;
        if (lane < VECTORS) reinterpret_cast<uint4 *>(cache.values + at)[vector] = newest;
    }
    // The score of the lane's key.
    __device__ float score(const float *query, u32 lane) const {
        float part[KEY_LOADS], sum = 0;
#pragma unroll
        for (u32 i = 0; i < KEY_LOADS; i++) {
            u32 vector = i * KEY_LANES + lane % KEY_LANES;
            part[i] = VECTORS % KEY_LANES == 0 || vector < VECTORS ? dot_vector(key[i], query + vector * VECTOR, 0) : 0;
        }
#pragma unroll
        for (u32 i = 0; i < KEY_LOADS; i++) sum += part[i];
#pragma unroll
        for (u32 lanes = 1; lanes < KEY_LANES; lanes *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, lanes);
        return sum;
    }
};
