// A layer's parameters as the packers take them, and the sums of rows behind a norm. Included behind a layout, which says what C is.
#pragma once
#include "common.cuh"

template <typename T> struct WeightsOf {
    const T *norm_1, *norm_1_bias, *q, *k, *v, *out, *out_bias, *norm_2, *norm_2_bias, *up, *up_bias, *down, *down_bias;
};
static_assert(sizeof(WeightsOf<float>) == 8 * 13, "LayerWeights are laid out in Rust");

// Row `r` of the rows of q, then k, then v.
template <typename T> __device__ const T *qkv_row(const WeightsOf<T> &w, u32 r) {
    return (r < C ? w.q : r < 2 * C ? w.k : w.v) + u64(r % C) * C;
}

// The products of a row with a norm's gamma, a, and with its beta, b: a warp.
template <typename T> __device__ float2 norm_sums(const T *row, const T *gamma, const T *beta) {
    float a = 0, b = 0;
    for (u32 i = threadIdx.x % WARP; i < C; i += WARP) {
        float w = to_float(row[i]);
        a = fmaf(w, to_float(gamma[i]), a), b = fmaf(w, to_float(beta[i]), b);
    }
    a = warp_sum(a), b = warp_sum(b);
    return make_float2(a, b);
}
// The same, left at `ab` with the row's bias in b.
template <typename T> __device__ void norm_row(float *ab, const T *row, const T *gamma, const T *beta, float bias) {
    float2 sums = norm_sums(row, gamma, beta);
    if (threadIdx.x % WARP == 0) ab[0] = sums.x, ab[1] = sums.y + bias;
}
// The mean of each token's embedding: a block of 256 threads.
template <typename T> __device__ void token_means(float *means, const T *token, u32 vocab) {
    for (u32 i = threadIdx.x / WARP; i < vocab; i += 256 / WARP) {
        float sum = 0;
        for (u32 k = threadIdx.x % WARP; k < C; k += WARP) sum += to_float(token[u64(i) * C + k]);
        sum = warp_sum(sum);
        if (threadIdx.x % WARP == 0) means[i] = sum * (1.0f / C);
    }
}
