// Products of a block, and how their sums become values for other blocks.
#pragma once
#include "decode_warp.cuh"
#include "decode_window.cuh"

// FOURS times four neighbours, from shared memory.
template <u32 FOURS> __device__ void read(float4 (&x)[FOURS], const float *p) {
#pragma unroll
    for (int i = 0; i < int(FOURS); i++) x[i] = load4(p + 4 * i);
}
template <u32 FOURS> __device__ void read(float4 (&x)[FOURS], const bf16 *p) {
    if constexpr (FOURS % 2 == 0) {
#pragma unroll
        for (int i = 0; i < int(FOURS); i += 2) {
            uint4 raw = reinterpret_cast<const uint4 *>(p)[i / 2];
            x[i] = unpack4(make_uint2(raw.x, raw.y)), x[i + 1] = unpack4(make_uint2(raw.z, raw.w));
        }
    } else {
#pragma unroll
        for (int i = 0; i < int(FOURS); i++) x[i] = load4(p + 4 * i);
    }
}

// A lane's sums of a product, in chains of additions that are short enough not to be waited for.
template <typename Split> struct Sums {
    static constexpr int CHAINS = Split::ROWS >= 3 ? 1 : Split::ROWS >= 2 ? 2 : 4;
    float sum[Split::ROWS][CHAINS] = {};

    __device__ void add(int row, float4 w, float4 x) {
        float(&to)[CHAINS] = sum[row];
        to[0] = fmaf(w.x, x.x, to[0]), to[1 % CHAINS] = fmaf(w.y, x.y, to[1 % CHAINS]);
        to[2 % CHAINS] = fmaf(w.z, x.z, to[2 % CHAINS]), to[3 % CHAINS] = fmaf(w.w, x.w, to[3 % CHAINS]);
    }
    __device__ float total(int row) const {
        const float(&from)[CHAINS] = sum[row];
        if (CHAINS <= 2) return CHAINS == 1 ? from[0] : from[0] + from[CHAINS - 1];
        return (from[0] + from[1 % CHAINS]) + (from[2 % CHAINS] + from[CHAINS - 1]);
    }
    // Leaves the sums for all warps to see after they have met.
    __device__ void leave(float (&to)[WARPS][ROWS_MAX][WARP]) const {
#pragma unroll
        for (int r = 0; r < int(Split::ROWS); r++) to[threadIdx.x / WARP][r][threadIdx.x % WARP] = total(r);
    }
};

// Row `i` of this lane's, summed over all columns.
template <typename Split> __device__ float whole_sum(const float (&from)[WARPS][ROWS_MAX][WARP], u32 i) {
    float x[WARPS];
#pragma unroll
    for (int w = 0; w < int(WARPS); w++) x[w] = from[w][i][threadIdx.x % WARP];
#pragma unroll
    for (int half = WARPS / 2; half > 0; half /= 2)
#pragma unroll
        for (int w = 0; w < half; w++) x[w] += x[w + half];
    return sum_over<Split::ROW_LANES, WARP>(x[0]);
}

// Has a value made here, not where it is used.
__device__ inline void pin(float4 &x) { asm volatile("" : "+f"(x.x), "+f"(x.y), "+f"(x.z), "+f"(x.w)); }

// The product of a part of the window and x, in which the lane's columns are after `await_x`. The first weights are in registers before.
// The last part is not given back yet: `reader.release`, once the result is on its way.
template <u32 PRODUCT, typename Split, typename Await>
__device__ Sums<Split> product(Reader &reader, float4 (&x)[Split::FOURS], Await await_x) {
    // As many at once as there are registers for.
    constexpr u32 HELD_MAX = C > 256 ? 4 : C * sizeof(Element) > 512 ? 8 : 16;
    constexpr u32 UNITS = Split::UNITS, EACH = Window::bytes(PRODUCT) / UNIT, HELD = divisor_up_to(EACH, HELD_MAX);
    constexpr u32 BUFFERS = UNITS > HELD ? 2 : 1;
    Four<Element> held[BUFFERS][HELD];
    const Four<Element> *part;
    auto load = [&](u32 unit, Four<Element>(&to)[HELD]) {
        if (unit % EACH == 0) part = reinterpret_cast<const Four<Element> *>(reader.await<PRODUCT>()) + threadIdx.x % WARP;
#pragma unroll
        for (int i = 0; i < int(HELD); i++) to[i] = part[(unit % EACH + i) * WARP];
    };
    load(0, held[0]);
    // Unpacked now, while there is time.
    float4 first[HELD];
#pragma unroll
    for (int i = 0; i < int(HELD); i++) {
        first[i] = held[0][i].values();
        if (sizeof(Element) == 2 && C <= 256) pin(first[i]);
    }
    await_x();
    Sums<Split> sums;
#pragma unroll
    for (u32 done = 0; done < UNITS; done += HELD) {
        u32 next = done + HELD;
        Four<Element>(&now)[HELD] = held[done / HELD % BUFFERS];
        if (next % EACH == 0 && next < UNITS) reader.release<PRODUCT>(now);
        if (next < UNITS) load(next, held[next / HELD % BUFFERS]);
#pragma unroll
        for (int i = 0; i < int(HELD); i++)
            sums.add((done + i) % Split::ROWS, done == 0 ? first[i] : now[i].values(), x[(done + i) / Split::ROWS]);
    }
    return sums;
}
