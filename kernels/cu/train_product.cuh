// Products of a block of decode_train.cu, on tensor cores: weights are the 16 x 16 operand, and what they multiply is the same in all eight columns
// of the other.
//
// A warp has an eighth of the columns of all the block's rows, a lane of a group of four a quarter of those: it takes them in their order, four a
// step, whichever columns the instruction means, since weights are packed alike.
#pragma once
#include "decode_sums.cuh"

// The lane's columns of a product's input.
template <u32 K> struct Input {
    static constexpr u32 COLUMNS = K / WARPS / 4, STEPS = COLUMNS / 4;
    uint2 step[STEPS];

    static __device__ u32 column(u32 warp, u32 lane) { return warp * (K / WARPS) + lane % 4 * COLUMNS; }
    // From the whole row.
    __device__ void read(const bf16 *row) {
        const bf16 *from = row + column(threadIdx.x / WARP, threadIdx.x % WARP);
        if constexpr (STEPS % 2 == 0) {
#pragma unroll
            for (int i = 0; i < int(STEPS); i += 2) {
                uint4 raw = reinterpret_cast<const uint4 *>(from)[i / 2];
                step[i] = make_uint2(raw.x, raw.y), step[i + 1] = make_uint2(raw.z, raw.w);
            }
        } else {
#pragma unroll
            for (int i = 0; i < int(STEPS); i++) step[i] = reinterpret_cast<const uint2 *>(from)[i];
        }
    }
};

// A warp's weights of a block's R rows: tiles of sixteen, and of eight rows that are left, two steps as one tile.
template <u32 R, u32 K> struct Weights {
    static constexpr u32 STEPS = Input<K>::STEPS, WHOLE = R / 16, PAIRS = R % 16 == 0 ? 0 : STEPS / 2, LAST = R % 16 == 0 ? 0 : STEPS % 2;
    static constexpr u32 TILES = WHOLE * STEPS + PAIRS + LAST;
    u32 tile[TILES][4];

    // From where a block's lie as they are packed: all, or a part of the tiles.
    template <u32 FROM = 0, u32 TO = TILES> __device__ void load(const char *block) {
        const char *mine = block + threadIdx.x / WARP * (R * K / WARPS * sizeof(Element));
        const uint4 *from = reinterpret_cast<const uint4 *>(mine) + threadIdx.x % WARP;
#pragma unroll
        for (int i = FROM; i < int(smaller(TO, TILES - LAST)); i++) set(i, from[i * WARP]);
        if (LAST && TO == TILES) set_last(*(reinterpret_cast<const uint2 *>(mine + (TILES - LAST) * WARP * sizeof(uint4)) + threadIdx.x % WARP));
    }
    __device__ void set(u32 i, uint4 x) { tile[i][0] = x.x, tile[i][1] = x.y, tile[i][2] = x.z, tile[i][3] = x.w; }
    __device__ void set_last(uint2 x) { set(TILES - 1, make_uint4(x.x, 0, x.y, 0)); }

    // Where element `i` of a warp's stands in the matrix: row and column.
    static __device__ uint2 place(u32 warp, u32 i) {
        bool last = i >= (TILES - LAST) * WARP * 8;
        u32 j = last ? i - (TILES - LAST) * WARP * 8 : i, each = last ? 4 : 8, lane = j / each % WARP, word = j % each / 2;
        u32 unit = last ? TILES - 1 : j / each / WARP, lower = word % 2, upper = word / 2, half = unit - WHOLE * STEPS;
        if (last) lower = 0, upper = word;
        bool whole = unit < WHOLE * STEPS;
        u32 row = (whole ? unit / STEPS * 16 + lower * 8 : WHOLE * 16) + lane / 4, step = whole ? unit % STEPS : 2 * half + lower;
        return make_uint2(row, Input<K>::column(warp, lane) + step * 4 + upper * 2 + j % 2);
    }
};

// Leaves rows by eights, of which four lanes each have one row of all: each of them leaves every fourth eight.
template <u32 EIGHTS> __device__ void leave_eights(const float (&eight)[EIGHTS], float *to) {
    u32 lane = threadIdx.x % WARP, quarter = lane % 4;
#pragma unroll
    for (int e = 0; e < int(EIGHTS); e += 4) {
        auto of = [&](u32 i) { return eight[smaller(e + i, EIGHTS - 1)]; };
        float low = quarter & 1 ? of(1) : of(0), high = quarter & 1 ? of(3) : of(2);
        if (e + quarter < EIGHTS) to[(e + quarter) * 8 + lane / 4] = quarter & 2 ? high : low;
    }
}

// Leaves a product's sums over the warp's columns for all warps to see after they have met: partial[warp][row].
template <u32 R, u32 K, u32 ROOM> __device__ void leave_product(const Weights<R, K> &w, const Input<K> &x, float (&partial)[WARPS][ROOM]) {
    constexpr u32 WHOLE = R / 16, STEPS = Input<K>::STEPS, EIGHTS = R / 8, HALVES = Weights<R, K>::PAIRS + Weights<R, K>::LAST;
    // Chains of additions that are short enough not to be waited for.
    constexpr u32 CHAINS = WHOLE >= 4 ? 1 : STEPS % 4 == 0 ? 4 : STEPS % 3 == 0 ? 3 : 2, HALF_CHAINS = HALVES % 3 == 0 ? 3 : 2;
    float sum[CHAINS][WHOLE > 0 ? WHOLE : 1][4] = {}, half[HALF_CHAINS][4] = {}, eight[EIGHTS] = {};
#pragma unroll
    for (int i = 0; i < int(STEPS); i++) {
#pragma unroll
        for (int t = 0; t < int(WHOLE); t++) multiply(sum[i % CHAINS][t], w.tile[t * STEPS + i], x.step[i].x, x.step[i].y);
        if (i % 2 > 0 || i / 2 >= int(HALVES)) continue;
        // Even columns have this step, odd ones the next, which is what their rows of eight are to be multiplied with.
        uint2 next = x.step[smaller(i + 1, STEPS - 1)];
        bool odd = threadIdx.x / 4 % 2;
        multiply(half[i / 2 % HALF_CHAINS], w.tile[WHOLE * STEPS + i / 2], odd ? next.x : x.step[i].x, odd ? next.y : x.step[i].y);
    }
#pragma unroll
    for (int e = 0; e < int(2 * WHOLE); e++)
#pragma unroll
        for (int c = 0; c < int(CHAINS); c++) eight[e] += sum[c][e / 2][e % 2 * 2];
#pragma unroll
    for (int c = 0; HALVES > 0 && c < int(HALF_CHAINS); c++) eight[EIGHTS - 1] += half[c][0] + half[c][3];
    leave_eights<EIGHTS>(eight, partial[threadIdx.x / WARP]);
}

// Row `r`, summed over all columns.
template <u32 ROOM> __device__ float whole_row(const float (&partial)[WARPS][ROOM], u32 r) {
    float x[WARPS];
#pragma unroll
    for (int w = 0; w < int(WARPS); w++) x[w] = partial[w][r];
    return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}
