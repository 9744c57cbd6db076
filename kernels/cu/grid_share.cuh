// Who computes what in decode_grid.cu.
//
// Constants besides those of grid_model.cuh: GRID_FINISHERS, warps of a block that finish, 2 or 3. GRID_BLOCKS is any number from 1 on, GRID_WARPS 8,
// or a multiple of 4 above; with 8 nothing spills. A block multiplies whole rows of a matrix; its warps share the columns of each row. Rows
// are dealt in words, the unit of exchange: as many rows as 12 bytes hold.
#pragma once
#include "grid_model.cuh"

constexpr u32 FINISHERS = GRID_FINISHERS;          // warps that add up what the multiplying warps found
constexpr u32 THREADS = (WARPS + FINISHERS + 1) * WARP; // and one that fetches weights
constexpr u32 GROUP_BYTES = 64, GROUP = GROUP_BYTES / sizeof(Element); // columns multiplied at a time
static_assert(WARPS >= 8 && WARPS % 4 == 0, "sampling takes 256 threads, sums are read four at a time");

// Values that 12 bytes hold: of the residual stream, and of activations in the working precision.
constexpr u32 WIDE = 3, PACK = HALF ? 6 : 3;
constexpr u32 HEAD_WORDS = divide_up(D, PACK);

__device__ constexpr bool normed(Stage s) { return s == QKV || s == UP || s == HEAD; }
__device__ constexpr u32 rows_a_word(Stage s) { return s == HEAD ? 1 : s == OUT || s == DOWN ? WIDE : PACK; }
// Words of q, k and v follow each other head by head.
__device__ constexpr u32 words(Stage s) {
    return s == QKV ? 3 * H * HEAD_WORDS : s == UP ? divide_up(F, PACK) : s == HEAD ? VOCAB : divide_up(C, WIDE);
}
__device__ constexpr u32 rows_max(Stage s) { return divide_up(words(s), BLOCKS) * rows_a_word(s); }

// The words of a block.
struct Share {
    u32 first, count;
};
__device__ inline Share share(Stage s, u32 block) {
    u32 first = block * words(s) / BLOCKS;
    return {first, (block + 1) * words(s) / BLOCKS - first};
}
__device__ inline u32 rows_of(Stage s, u32 block) { return share(s, block).count * rows_a_word(s); }

// The columns of a warp: groups, the last of which may end early, and columns. The last warp has as many groups as any.
struct Slice {
    u32 first, count, from, to;
    __device__ Slice(u32 columns, u32 warp) {
        u32 groups = divide_up(columns, GROUP);
        first = groups % WARPS == 0 ? groups / WARPS * warp : groups * warp / WARPS;
        count = groups % WARPS == 0 ? groups / WARPS : groups * (warp + 1) / WARPS - first;
        from = first * GROUP, to = smaller(from + count * GROUP, columns);
    }
};
__device__ constexpr u32 groups_max(u32 columns) { return divide_up(divide_up(columns, GROUP), WARPS); }
