// A row of activations held by one warp in registers, and its product with a row of a weight.
//
// Lane l holds elements 128 i + 4 l .. + 3 for i < CHUNKS. Rows are multiples of four, at most 128 CHUNKS elements long. How many chunks
// a kernel unrolls follows the row's width (BY_WIDTH), because with few warps on an SM every instruction is latency.
#pragma once
#include "common.cuh"

constexpr u32 ROW_MAX = 1024;

// Calls F<T, chunks>(…) for a row of `columns` elements, at most ROW_MAX.
#define BY_WIDTH(columns, F, T, ...)                                                                                    \
    if ((columns) <= 128) F<T, 1>(__VA_ARGS__);                                                                         \
    else if ((columns) <= 256) F<T, 2>(__VA_ARGS__);                                                                    \
    else if ((columns) <= 512) F<T, 4>(__VA_ARGS__);                                                                    \
    else F<T, 8>(__VA_ARGS__);

template <int CHUNKS> struct Row {
    float4 chunk[CHUNKS];
};

__device__ inline u32 chunk_start(int i) { return (u32(i) * WARP + threadIdx.x % WARP) * 4; }

template <int CHUNKS, typename T> __device__ Row<CHUNKS> load_row(const T *row, u32 columns) {
    Row<CHUNKS> out;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        u32 k = chunk_start(i);
        out.chunk[i] = k < columns ? load4(row + k) : make_float4(0, 0, 0, 0);
    }
    return out;
}

template <int CHUNKS> __device__ float dot(const Row<CHUNKS> &a, const Row<CHUNKS> &b) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) sum = dot4(a.chunk[i], b.chunk[i], sum);
    return warp_sum(sum);
}

// LayerNorm's parameters in registers, and what depends on the width alone: ready before the row is.
template <int CHUNKS> struct Norm {
    Row<CHUNKS> weight, bias;
    float inverse, eps; // 1 / columns

    template <typename T>
    __device__ Norm(const T *weight, const T *bias, u32 columns, float eps)
        : weight(load_row<CHUNKS>(weight, columns)), bias(load_row<CHUNKS>(bias, columns)), inverse(1.0f / columns), eps(eps) {}

    // Normalises x. The mean is corrected once by the mean of the residuals, so that a row whose mean is large against its spread keeps
    // its accuracy; the reciprocal root is the approximation and one step of Newton's.
    __device__ void apply(Row<CHUNKS> &x, u32 columns) const {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) sum += (x.chunk[i].x + x.chunk[i].y) + (x.chunk[i].z + x.chunk[i].w);
        float mean = warp_sum(sum) * inverse, residual = 0, square = 0;
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            float4 &c = x.chunk[i];
            c = make_float4(c.x - mean, c.y - mean, c.z - mean, c.w - mean);
            if (chunk_start(i) >= columns) c = make_float4(0, 0, 0, 0);
            residual += (c.x + c.y) + (c.z + c.w);
            square = dot4(c, c, square);
        }
        float shift = warp_sum(residual) * inverse;
        float variance = fmaxf(fmaf(warp_sum(square), inverse, -shift * shift), 0.0f) + eps;
        float scale = rsqrtf(variance);
        scale = fmaf(0.5f * scale, fmaf(-variance * scale, scale, 1.0f), scale);
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            float4 &c = x.chunk[i];
            const float4 &w = weight.chunk[i], &b = bias.chunk[i];
            c = make_float4(fmaf((c.x - shift) * scale, w.x, b.x), fmaf((c.y - shift) * scale, w.y, b.y),
                            fmaf((c.z - shift) * scale, w.z, b.z), fmaf((c.w - shift) * scale, w.w, b.w));
        }
    }
};
