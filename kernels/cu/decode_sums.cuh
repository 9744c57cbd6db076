// Sums over the lanes of a warp and over the warps, and LayerNorm by way of them.
#pragma once
#if CLUSTERS > 1
#include "train_layout.cuh"
#else
#include "decode_layout.cuh"
#endif

// The sum over the lanes that differ in bits from `FIRST` up to below `LAST`.
template <u32 FIRST, u32 LAST> __device__ float sum_over(float x) {
#pragma unroll
    for (u32 lanes = FIRST; lanes < LAST; lanes *= 2) x += __shfl_xor_sync(ALL_LANES, x, lanes);
    return x;
}

// LayerNorm. Row r of a product behind it is (dot(gamma x, row r) - mean a_r) / deviation + b_r, where a_r is the product of gamma with the row, b_r
// that of beta, and the bias; x is less a shift, which keeps the moments exact where the mean is large.
struct Norm {
    float mean, scale;

    // Leaves the sum of x over the columns of a warp, which half of the lanes have, and that of its squares, which the others have, for all warps to
    // see after they have met.
    static __device__ void leave(Shared &s, float moments) {
        u32 lane = threadIdx.x % WARP;
        if (lane % (WARP / 2) == 0) reinterpret_cast<float *>(s.moments + threadIdx.x / WARP)[lane / (WARP / 2)] = moments;
    }
    // From those of all warps.
    __device__ Norm(const Shared &s, float eps) {
        float4 two[WARPS / 2];
#pragma unroll
        for (int i = 0; i < int(WARPS / 2); i++) two[i] = *reinterpret_cast<const float4 *>(s.moments + 2 * i);
        static_assert(WARPS == 8, "as many sums");
        float sum = ((two[0].x + two[0].z) + (two[1].x + two[1].z)) + ((two[2].x + two[2].z) + (two[3].x + two[3].z));
        float squares = ((two[0].y + two[0].w) + (two[1].y + two[1].w)) + ((two[2].y + two[2].w) + (two[3].y + two[3].w));
        *this = Norm(sum, squares, eps);
    }
    __device__ Norm(float sum, float squares, float eps) : mean(sum * (1.0f / C)) {
        scale = reciprocal_root(fmaxf(fmaf(-mean, mean, fmaf(squares, 1.0f / C, eps)), eps));
    }
    __device__ float apply(float dot, float2 ab) const { return fmaf(scale, fmaf(-mean, ab.x, dot), ab.y); }
};
