// Products of the sequences' inputs with a block's rows of a weight, on tensor cores: the sequences are the rows of the 16 x 16 operand.
//
// A warp sums over its columns of every row; the block's threads then add what the warps have. LayerNorm comes behind: row r of a product is
// (dot(gamma (x - shift), row r) - mean a_r) / deviation + b_r, where a_r is the product of gamma with the row, b_r that of beta, and the bias.
#pragma once
#include "batch_ring.cuh"

// Where the warps that compute meet, and where they await norms or noise, whose makers do not wait for them; and where those wait: the one of noise
// for the tokens picked, the one of norms for what moments are of.
constexpr u32 COMPUTED = 1, NORMED = 2, NOISY = 3, PICKED = 4, SHIFTED = 5;
constexpr u32 NORM_THREADS = WARP;
__device__ inline void meet() { asm volatile("bar.sync %0, %1;" ::"n"(COMPUTED), "n"(THREADS) : "memory"); }
template <u32 MEETING, u32 HELPERS> __device__ void meet() { asm volatile("bar.sync %0, %1;" ::"n"(MEETING), "n"(THREADS + HELPERS) : "memory"); }
template <u32 MEETING, u32 HELPERS> __device__ void help() { asm volatile("bar.arrive %0, %1;" ::"n"(MEETING), "n"(THREADS + HELPERS) : "memory"); }

// The fragment of tile `tile` of 16 channels: of a lane's two sequences four channels each, those of its part of a unit.
template <typename X> __device__ void load_fragment(u32 (&a)[4], const X &x, u32 tile, u32 lane) {
    u32 n = lane / 4, k = tile * 16 + lane % 4 * 4;
    uint2 low = *reinterpret_cast<const uint2 *>(x.at(B < 8 ? min(n, B - 1) : n, k)), high = make_uint2(0, 0);
    if (n + 8 < B) high = *reinterpret_cast<const uint2 *>(x.at(n + 8, k));
    a[0] = low.x, a[1] = high.x, a[2] = low.y, a[3] = high.y;
}

// Element `i` of a product, (row / 8, sequence, row % 8).
struct Place {
    u32 row, sequence;
    __device__ Place(u32 i) : row(i / (8 * B) * 8 + i % 8), sequence(i % (8 * B) / 8) {}
};

// Sums of EIGHTS eights of rows.
template <u32 EIGHTS> struct Sums {
    static constexpr u32 CHAINS = EIGHTS > 3 ? 1 : 2;
    float sum[CHAINS][EIGHTS][4] = {};

    // Adds units, tile by tile from `tile` of x on.
    template <u32 COUNT, typename X> __device__ void add(const uint2 (&w)[COUNT], const X &x, u32 tile) {
        u32 lane = thread() % WARP;
#pragma unroll
        for (u32 t = 0; t < COUNT / EIGHTS; t++) {
            u32 a[4];
            load_fragment(a, x, tile + t, lane);
#pragma unroll
            for (u32 e = 0; e < EIGHTS; e++) multiply(sum[t % CHAINS][e], a, w[t * EIGHTS + e].x, w[t * EIGHTS + e].y);
        }
    }
    // f(eight, sums): rows 2 (l % 4) and the next of an eight, first of sequence l / 4, then of l / 4 + 8.
    template <typename F> __device__ void each(F f) const {
#pragma unroll
        for (u32 eight = 0; eight < EIGHTS; eight++) {
            float4 all = make_float4(sum[0][eight][0], sum[0][eight][1], sum[0][eight][2], sum[0][eight][3]);
            const float *other = sum[CHAINS - 1][eight];
            if (CHAINS > 1) all = make_float4(all.x + other[0], all.y + other[1], all.z + other[2], all.w + other[3]);
            f(eight, all);
        }
    }
    // Leaves them for the block.
    __device__ void leave(float *partial) const {
        u32 lane = thread() % WARP;
        each([&](u32 eight, float4 x) {
            float2 *to = reinterpret_cast<float2 *>(partial + eight * 8 * B) + lane;
            if (has_first()) to[0] = make_float2(x.x, x.y);
            if (has_second()) to[WARP] = make_float2(x.z, x.w);
        });
    }
    // Whether there are the lane's two sequences.
    static __device__ bool has_first() { return B >= 8 || threadIdx.x % WARP / 4 < B; }
    static __device__ bool has_second() { return threadIdx.x % WARP / 4 + 8 < B; }
};

// Elements 2 i and 2 i + 1 of a product, of all parts.
template <typename S> __device__ float2 summed(const float *partial, u32 i) {
    float2 sum = make_float2(0, 0);
#pragma unroll
    for (u32 part = 0; part < S::PARTS; part++) {
        float2 x = reinterpret_cast<const float2 *>(partial + part * S::ROWS * B)[i];
        sum.x += x.x, sum.y += x.y;
    }
    return sum;
}
