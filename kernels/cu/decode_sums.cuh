// Sums over the lanes of a warp, many at once, and LayerNorm by way of them.
#pragma once
#include "decode_layout.cuh"
#include "powers.cuh"
#include "spread.cuh"

// A row of x as a warp holds it, with its LayerNorm: row r of a product is (dot(gamma x, row r) - mean a_r) / deviation + b_r, where a_r is the
// product of gamma with the row, b_r that of beta, and the bias.
struct Row {
    float4 x[C / CHUNK];
    Moments moments;

    __device__ void read(const float *from) {
#pragma unroll
        for (int c = 0; c < int(C / CHUNK); c++) x[c] = load4(from + c * CHUNK + threadIdx.x % WARP * 4);
    }

    // Subtracts `shift`, a mean from before, which keeps the moments exact where the mean is large, and multiplies by gamma.
    __device__ void center(float shift, const float *gamma) {
        moments = {};
#pragma unroll
        for (int c = 0; c < int(C / CHUNK); c++) {
            float4 g = load4(gamma + c * CHUNK + threadIdx.x % WARP * 4);
            x[c] = make_float4(x[c].x - shift, x[c].y - shift, x[c].z - shift, x[c].w - shift);
            moments.sum += (x[c].x + x[c].y) + (x[c].z + x[c].w);
            moments.squares = dot4(x[c], x[c], moments.squares);
            x[c] = make_float4(x[c].x * g.x, x[c].y * g.y, x[c].z * g.z, x[c].w * g.w);
        }
    }

    // The rows' products from the lanes' parts of them; `shift` becomes the mean.
    template <u32 R> __device__ float normed(const float (&parts)[R], float2 ab, float eps, float &shift) {
        float dot = spread_sum(parts, moments), mean = moments.sum * (1.0f / C);
        float scale = rsqrtf(fmaxf(moments.squares * (1.0f / C) - mean * mean, 0.0f) + eps);
        shift += mean;
        return fmaf(scale, fmaf(-mean, ab.x, dot), ab.y);
    }
};
