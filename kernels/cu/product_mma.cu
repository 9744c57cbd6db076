// Matrix products through tensor cores from Ampere on: y = f(x * weight^T), x [R, I], weight [O, I], bfloat16, float32 sums.
//
// A block of 8 warps makes a tile of 64 rows x 64 outputs, 16 x 32 a warp, from slices of 64 inputs that asynchronous copies bring into a
// ring of five in shared memory, which hides the way to L2. Grid (tiles of outputs, tiles of rows). The weights of the first slices are read
// before the previous launch has finished. I a multiple of eight, O too. Deterministic: no sum is split. Launchers: src/product.rs.
#pragma once
#include "finish.cuh"

constexpr u32 MMA_TILE = 64, MMA_SLICE = 64, MMA_STAGES = 5, MMA_TILE_BYTES = MMA_TILE * 128;

// Asks for 64 columns from `column` on of 64 rows from `row` on.
__device__ inline void ask_tile(u32 to, const bf16 *matrix, u32 row, u32 rows, u32 column, u32 columns) {
    for (u32 i = threadIdx.x; i < MMA_TILE * 8; i += blockDim.x) {
        u32 r = i / 8, piece = i % 8;
        bool there = row + r < rows && column + piece * 8 < columns;
        copy16(to + swizzled(r, piece), there ? matrix + u64(row + r) * columns + column + piece * 8 : matrix, there);
    }
}

// The fragment of 16 x 16 elements at (row, piece), as `multiply` takes its first operand.
__device__ inline void fragment(u32 (&m)[4], u32 tile, u32 row, u32 piece) {
    u32 lane = threadIdx.x % WARP;
    load_matrices(m, tile + swizzled(row + lane % 16, piece + lane / 16));
}
// The fragments of two times eight rows, as it takes its second: m[0], m[1] and m[2], m[3].
__device__ inline void fragment_pair(u32 (&m)[4], u32 tile, u32 row, u32 piece) {
    u32 lane = threadIdx.x % WARP;
    load_matrices(m, tile + swizzled(row + lane / 16 * 8 + lane % 8, piece + lane / 8 % 2));
}

template <typename Store>
__device__ void product_mma(const bf16 *x, const bf16 *weight, u32 rows, u32 inputs, u32 outputs, u32 row0, u32 output0, Store store) {
    extern __shared__ __align__(1024) char shared[];
    u32 ring = shared_address(shared), slices = (inputs + MMA_SLICE - 1) / MMA_SLICE;
    auto x_tile = [&](u32 slice) { return ring + slice % MMA_STAGES * 2 * MMA_TILE_BYTES; };
    auto ask_weight = [&](u32 slice) { ask_tile(x_tile(slice) + MMA_TILE_BYTES, weight, output0, outputs, slice * MMA_SLICE, inputs); };
    auto ask_x = [&](u32 slice) { ask_tile(x_tile(slice), x, row0, rows, slice * MMA_SLICE, inputs); };
    release_next();
    for (u32 slice = 0; slice < MMA_STAGES - 1; slice++) ask_weight(slice);
    await_previous();
    for (u32 slice = 0; slice < MMA_STAGES - 1; slice++) ask_x(slice), commit_copies();
    u32 warp = threadIdx.x / WARP, row = warp / 2 * 16, column = warp % 2 * 32;
    float sum[16] = {};
    for (u32 slice = 0; slice < slices; slice++) {
        await_copies<MMA_STAGES - 2>();
        __syncthreads();
        u32 next = slice + MMA_STAGES - 1;
        if (next < slices) ask_weight(next), ask_x(next);
        commit_copies();
#pragma unroll
        for (u32 k = 0; k < MMA_SLICE / 16; k++) {
            u32 a[4], b[2][4], weights = x_tile(slice) + MMA_TILE_BYTES;
            fragment(a, x_tile(slice), row, k * 2);
            fragment_pair(b[0], weights, column, k * 2), fragment_pair(b[1], weights, column + 16, k * 2);
#pragma unroll
            for (int j = 0; j < 4; j++) multiply(sum + j * 4, a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
    }
    store(sum, row0 + row, output0 + column);
}

template <typename Out>
__device__ void linear_mma(const Out &out, const bf16 *x, const bf16 *weight, LinearShape s) {
    auto store = [&](const float *sum, u32 row, u32 column) { finish<4>(out, sum, row, column); };
    product_mma(x, weight, s.rows, s.inputs, s.outputs, blockIdx.y * MMA_TILE, blockIdx.x * MMA_TILE, store);
}

extern "C" __global__ void __launch_bounds__(256) linear_mma_bf16(bf16 *y, const bf16 *x, const bf16 *weight, const bf16 *bias,
                                                                  LinearShape s) {
    linear_mma(Dense<false>{y, bias, s.rows, s.outputs}, x, weight, s);
}
extern "C" __global__ void __launch_bounds__(256) linear_gelu_mma_bf16(bf16 *y, const bf16 *x, const bf16 *weight, const bf16 *bias,
                                                                       LinearShape s) {
    linear_mma(Dense<true>{y, bias, s.rows, s.outputs}, x, weight, s);
}
extern "C" __global__ void __launch_bounds__(256) linear_add_mma_bf16(float *y, const bf16 *x, const bf16 *weight, const bf16 *bias,
                                                                      LinearShape s) {
    linear_mma(Residual{y, bias, s.rows, s.outputs}, x, weight, s);
}

// The three projections, and where their results go.
struct Projections {
    const bf16 *weight[3];
    bf16 *place[3];
};
extern "C" __global__ void __launch_bounds__(256) qkv_mma_bf16(Projections p, const bf16 *x, const Cursor *cursor, CacheShape s) {
    u32 channels = s.heads * s.head_size, tiles = (channels + MMA_TILE - 1) / MMA_TILE, part = blockIdx.x / tiles;
    const bf16 *weight = part == 0 ? p.weight[0] : part == 1 ? p.weight[1] : p.weight[2];
    Append out = {part == 0 ? p.place[0] : part == 1 ? p.place[1] : p.place[2], part > 0, cursor, s};
    auto store = [&](const float *sum, u32 row, u32 column) { finish<4>(out, sum, row, column); };
    product_mma(x, weight, s.batch * s.time, channels, channels, blockIdx.y * MMA_TILE, (blockIdx.x - part * tiles) * MMA_TILE, store);
}
