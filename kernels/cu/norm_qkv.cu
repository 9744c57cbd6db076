// ln1, the three projections and the append to the cache in one launch, for few rows.
//
// q[r] = n Wq^T, keys[b, h, past_b + t] = n Wk^T, values[b, h, past_b + t] = n Wv^T with n = layernorm(x[r]). One warp an output of 3 C, which
// normalises the row for itself: cheaper than a hand-over. Grid (ceil(3 C / 8), R), 8 warps a block. C a multiple of 4, at most ROW_MAX.
// Weights are read before the previous launch has finished. Deterministic. Launcher: src/norm_qkv.rs.
#include "append.cu"
#include "row.cuh"

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
