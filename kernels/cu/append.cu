// cache[b, h, past_b + t, d] = x[b, t, h D + d]: moves new keys or values behind the cached ones.
//
// One thread an element of x [B, T, C]. Positions of `context` or more are dropped. Deterministic. Launcher: src/append.rs.
#pragma once
#include "common.cuh"

struct CacheShape {
    u32 batch, time, heads, head_size, context;
};
static_assert(sizeof(CacheShape) == 20, "CacheShape is passed from Rust");

template <typename T> __device__ void append(T *cache, const T *x, const Cursor *cursor, CacheShape s) {
    release_next();
    await_previous();
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    u32 channels = s.heads * s.head_size;
    if (i >= s.batch * s.time * channels) return;
    u32 row = i / channels, channel = i % channels;
    u32 position = cursor[row / s.time].past + row % s.time;
    if (position >= s.context) return;
    u64 head = u64(row / s.time) * s.heads + channel / s.head_size;
    cache[(head * s.context + position) * s.head_size + channel % s.head_size] = x[i];
}

extern "C" __global__ void append_f32(float *cache, const float *x, const Cursor *cursor, CacheShape s) {
    append(cache, x, cursor, s);
}
extern "C" __global__ void append_bf16(bf16 *cache, const bf16 *x, const Cursor *cursor, CacheShape s) {
    append(cache, x, cursor, s);
}
