// Products of the sequences' inputs with a block's rows of a weight, on tensor cores: the sequences are the rows of the 16 x 16 operand.
//
// A warp sums over its columns of every row; the block's threads then add what the warps have. LayerNorm comes behind: row r of a product is
// (dot(gamma (x - shift), row r) - mean a_r) / deviation + b_r, where a_r is the product of gamma with the row, b_r that of beta, and the bias.
#pragma once
#include "batch_ring.cuh"

// The fragment of tile `tile` of 16 channels: of a lane's two sequences four channels each, those of its part of a unit.
template <typename X> __device__ void load_fragment(u32 (&a)[4], const X &x, u32 tile) {
    u32 lane = threadIdx.x % WARP, n = lane / 4, k = tile * 16 + lane % 4 * 4;
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

    // Adds the units from `first` on, tile by tile from `tile` of x on.
    template <u32 COUNT, typename X> __device__ void add(const uint2 (&w)[COUNT], u32 first, const X &x, u32 tile) {
        u32 a[4];
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) {
            u32 passed = (first + i) / EIGHTS, eight = (first + i) % EIGHTS;
            if (i == 0 || eight == 0) load_fragment(a, x, tile + passed);
            multiply(sum[passed % CHAINS][eight], a, w[i].x, w[i].y);
        }
    }
    // f(eight, half, x, y): rows 2 (l % 4) and the next of an eight, of sequence l / 4 + 8 half.
    template <typename F> __device__ void each(F f) const {
#pragma unroll
        for (u32 eight = 0; eight < EIGHTS; eight++)
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                const float *low = sum[0][eight] + half * 2, *high = sum[CHAINS - 1][eight] + half * 2;
                bool both = CHAINS > 1;
                if (threadIdx.x % WARP / 4 + half * 8 < B) f(eight, half, both ? low[0] + high[0] : low[0], both ? low[1] + high[1] : low[1]);
            }
    }
    // Leaves them for the block.
    __device__ void leave(float *partial) const {
        each([&](u32 eight, u32 half, float x, float y) {
            reinterpret_cast<float2 *>(partial + eight * 8 * B)[half * WARP + threadIdx.x % WARP] = make_float2(x, y);
        });
    }
};

// The product of x, from its tile `tile` on, with the ring's next EIGHTS eights of rows over COUNT tiles. The first weights are in registers
// before `await_x`.
template <u32 EIGHTS, u32 COUNT, typename X, typename Await>
__device__ Sums<EIGHTS> product(Ring &ring, const X &x, u32 tile, Await await_x) {
    constexpr u32 SLOTS = EIGHTS * COUNT / Ring::UNITS;
    Sums<EIGHTS> sums;
    uint2 held[2][Ring::UNITS];
    ring.read(held[0]);
    await_x();
#pragma unroll
    for (u32 i = 0; i < SLOTS; i++) {
        if (i + 1 < SLOTS) ring.read(held[(i + 1) % 2]);
        sums.add(held[i % 2], i * Ring::UNITS, x, tile);
        ring.release();
    }
    return sums;
}

// Elements 2 i and 2 i + 1 of what all warps have.
__device__ inline float2 summed(const float (&partial)[WARPS][ROWS_MAX * B], u32 i) {
    float2 sum = make_float2(0, 0);
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) {
        float2 x = reinterpret_cast<const float2 *>(partial[w])[i];
        sum.x += x.x, sum.y += x.y;
    }
    return sum;
}
