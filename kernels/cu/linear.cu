// y = x * weight^T + bias: x [R, I], weight [O, I], y [R, O]; `bias` may be null.
//
// linear_warp: one warp a (row, output): for few rows, where reading the weight is the cost. Any width.
// linear_tile: a block of 256 threads makes a 64 x 64 tile of y from 32-deep slices in shared memory, 4 x 4 a thread; each slice is
// summed on its own before it joins the total, so that the rounding error grows with the number of slices, not of terms.
// logits_*: the same, with a float32 result and no bias. Deterministic. Launchers: src/linear.rs.
#pragma once
#include "common.cuh"

struct LinearShape {
    u32 rows, inputs, outputs;
};
static_assert(sizeof(LinearShape) == 12, "LinearShape is passed from Rust");

template <typename T> __device__ float dot_any(const T *a, const T *b, u32 len) {
    u32 lane = threadIdx.x % WARP;
    float sum = 0;
    if (rows_of_four(len)) {
        for (u32 k = lane * 4; k < len; k += WARP * 4) sum = dot4(load4(a + k), load4(b + k), sum);
    } else {
        for (u32 k = lane; k < len; k += WARP) sum = fmaf(to_float(a[k]), to_float(b[k]), sum);
    }
    return warp_sum(sum);
}

template <typename T, typename Y>
__device__ void linear_warp(Y *y, const T *x, const T *weight, const T *bias, LinearShape s) {
    release_next();
    await_previous();
    u32 output = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, row = blockIdx.y;
    if (output >= s.outputs) return;
    float sum = dot_any(x + u64(row) * s.inputs, weight + u64(output) * s.inputs, s.inputs);
    if (bias != nullptr) sum += to_float(bias[output]);
    if (threadIdx.x % WARP == 0) y[u64(row) * s.outputs + output] = from_float<Y>(sum);
}

constexpr u32 TILE = 64, DEPTH = 32, SIDE = 4, PAD = 4;

// Copies DEPTH columns from `k` on of TILE rows from `row` on into shared memory, transposed, zero outside the matrix.
template <typename T>
__device__ void load_slice(float (*slice)[TILE + PAD], const T *matrix, u32 row, u32 rows, u32 k, u32 columns) {
    for (u32 i = threadIdx.x; i < TILE * DEPTH; i += blockDim.x) {
        u32 r = i / DEPTH, c = i % DEPTH;
        bool inside = row + r < rows && k + c < columns;
        slice[c][r] = inside ? to_float(matrix[u64(row + r) * columns + k + c]) : 0.0f;
    }
}

template <typename T, typename Y>
__device__ void linear_tile(Y *y, const T *x, const T *weight, const T *bias, LinearShape s) {
    __shared__ float xs[DEPTH][TILE + PAD], ws[DEPTH][TILE + PAD];
    release_next();
    await_previous();
    u32 row0 = blockIdx.y * TILE, output0 = blockIdx.x * TILE;
    u32 r = threadIdx.x / (TILE / SIDE) * SIDE, o = threadIdx.x % (TILE / SIDE) * SIDE;
    float total[SIDE][SIDE] = {};
    for (u32 k = 0; k < s.inputs; k += DEPTH) {
        load_slice(xs, x, row0, s.rows, k, s.inputs);
        load_slice(ws, weight, output0, s.outputs, k, s.inputs);
        __syncthreads();
        float part[SIDE][SIDE] = {};
#pragma unroll 8
        for (u32 c = 0; c < DEPTH; c++)
            for (u32 i = 0; i < SIDE; i++)
                for (u32 j = 0; j < SIDE; j++) part[i][j] = fmaf(xs[c][r + i], ws[c][o + j], part[i][j]);
        for (u32 i = 0; i < SIDE; i++)
            for (u32 j = 0; j < SIDE; j++) total[i][j] += part[i][j];
        __syncthreads();
    }
    for (u32 i = 0; i < SIDE; i++)
        for (u32 j = 0; j < SIDE; j++) {
            u32 row = row0 + r + i, output = output0 + o + j;
            if (row >= s.rows || output >= s.outputs) continue;
            float sum = total[i][j] + (bias != nullptr ? to_float(bias[output]) : 0.0f);
            y[u64(row) * s.outputs + output] = from_float<Y>(sum);
        }
}

#define LINEAR(T, Y, STRATEGY)                                                                                          \
    (Y * y, const T *x, const T *weight, const T *bias, LinearShape s) { STRATEGY<T, Y>(y, x, weight, bias, s); }
extern "C" __global__ void linear_warp_f32 LINEAR(float, float, linear_warp)
extern "C" __global__ void linear_warp_bf16 LINEAR(bf16, bf16, linear_warp)
extern "C" __global__ void logits_warp_bf16 LINEAR(bf16, float, linear_warp)
extern "C" __global__ void __launch_bounds__(256) linear_tile_f32 LINEAR(float, float, linear_tile)
extern "C" __global__ void __launch_bounds__(256) linear_tile_bf16 LINEAR(bf16, bf16, linear_tile)
extern "C" __global__ void __launch_bounds__(256) logits_tile_bf16 LINEAR(bf16, float, linear_tile)
