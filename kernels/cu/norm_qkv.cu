// ln1, the three projections and the append to the cache in one launch, for few rows.
//
// q[r] = n Wq^T, keys[b, h, past_b + t] = n Wk^T, values[b, h, past_b + t] = n Wv^T with n = layernorm(x[r]); positions past P are dropped.
// norm_qkv_rows: the tiles of rows.cuh, from two rows on. norm_qkv, for one row and for rows that are not whole 16 bytes: one warp an
// output of 3 C, which normalises the row for itself: cheaper than a hand-over. Grid (ceil(3 C / 8), R), 8 warps a block. C a multiple of 4,
// at most ROW_MAX. Weights are read before the previous launch has finished. Deterministic. Launcher: src/norm_qkv.rs.
#pragma once
#include "append.cu"
#include "rows.cuh"

struct NormQkvShape {
    CacheShape cache;
    float eps;
};
static_assert(sizeof(NormQkvShape) == 24, "NormQkvShape is passed from Rust");

template <typename T> struct NormQkvWeights {
    const T *norm_weight, *norm_bias, *q, *k, *v;
};

template <typename T, int CHUNKS>
__device__ void norm_qkv(T *q, T *keys, T *values, const float *x, NormQkvWeights<T> w, const Cursor *cursor,
                         NormQkvShape shape) {
    CacheShape s = shape.cache;
    u32 channels = s.heads * s.head_size, row = blockIdx.y;
    u32 output = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (output >= 3 * channels) return;
    u32 part = output / channels, channel = output % channels;
    const T *matrix = part == 0 ? w.q : part == 1 ? w.k : w.v;
    Row<CHUNKS> weight = load_row<CHUNKS>(matrix + u64(channel) * channels, channels);
    Norm<CHUNKS> norm(w.norm_weight, w.norm_bias, channels, shape.eps);
    u32 position = cursor[row / s.time].past + row % s.time;
    release_next();
    await_previous();
    Row<CHUNKS> n = load_row<CHUNKS>(x + u64(row) * channels, channels);
    norm.apply(n, channels);
    float sum = dot(n, weight);
    if (threadIdx.x % WARP != 0) return;
    if (part == 0) {
        q[u64(row) * channels + channel] = from_float<T>(sum);
        return;
    }
    if (position >= s.context) return;
    u64 head = u64(row / s.time) * s.heads + channel / s.head_size;
    T *cache = part == 1 ? keys : values;
    cache[(head * s.context + position) * s.head_size + channel % s.head_size] = from_float<T>(sum);
}

#define NORM_QKV(T)                                                                                                     \
    (T * q, T * keys, T * values, const float *x, NormQkvWeights<T> w, const Cursor *cursor, NormQkvShape s) {          \
        BY_WIDTH(s.cache.heads *s.cache.head_size, norm_qkv, T, q, keys, values, x, w, cursor, s)                       \
    }
extern "C" __global__ void __launch_bounds__(256) norm_qkv_f32 NORM_QKV(float)
extern "C" __global__ void __launch_bounds__(256) norm_qkv_bf16 NORM_QKV(bf16)

// q as it is, keys and values into the cache.
template <typename T> struct QkvOut : AsItIs {
    T *q, *keys, *values;
    const Cursor *cursor;
    CacheShape s;
    __device__ QkvOut(T *q, T *keys, T *values, const Cursor *cursor, CacheShape s)
        : q(q), keys(keys), values(values), cursor(cursor), s(s) {}
    // The row's position, in the bits of a float.
    __device__ float2 before(u32 row, u32) const {
        u32 last = min(row, s.batch * s.time - 1);
        return make_float2(__uint_as_float(cursor[last / s.time].past + last % s.time), 0);
    }
    __device__ void put(u32 row, u32 column, float2 v, float2 before) const {
        u32 channels = s.heads * s.head_size, part = column / channels, channel = column - part * channels;
        if (row >= s.batch * s.time || part >= 3) return;
        if (part == 0) return put2(q + u64(row) * channels + channel, v);
        u32 position = __float_as_uint(before.x);
        u64 head = u64(row / s.time) * s.heads + channel / s.head_size;
        if (position < s.context)
            put2((part == 1 ? keys : values) + (head * s.context + position) * s.head_size + channel % s.head_size, v);
    }
};

template <typename T>
__device__ void norm_qkv_rows(T *q, T *keys, T *values, const float *x, NormQkvWeights<T> w, const Cursor *cursor, NormQkvShape shape) {
    CacheShape s = shape.cache;
    u32 channels = s.heads * s.head_size;
    NormedRows<T> rows = {x, w.norm_weight, w.norm_bias, s.batch * s.time, channels, nullptr, 1, shape.eps};
    ThreeMatrices<T> weights = {{w.q, w.k, w.v}, channels};
    product_normed(rows, weights, QkvOut<T>(q, keys, values, cursor, s), 3 * channels);
}

#define NORM_QKV_ROWS(T)                                                                                                \
    (T * q, T * keys, T * values, const float *x, NormQkvWeights<T> w, const Cursor *cursor, NormQkvShape s) {          \
        norm_qkv_rows(q, keys, values, x, w, cursor, s);                                                                \
    }
extern "C" __global__ void __launch_bounds__(256, 3) norm_qkv_rows_f32 NORM_QKV_ROWS(float)
extern "C" __global__ void __launch_bounds__(256, 3) norm_qkv_rows_bf16 NORM_QKV_ROWS(bf16)
