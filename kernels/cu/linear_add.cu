// y += x * weight^T + bias in one launch, for few rows: a linear layer and the residual addition behind it.
//
// One warp an output; grid (ceil(O / 4), R), 4 warps a block. y float32. I a multiple of 4. The weight, or its first AHEAD chunks of 128, is
// read before the previous launch has finished. Deterministic. Launcher: src/linear_add.rs.
#include "linear.cu"
#include "row.cuh"

template <typename T, int AHEAD>
__device__ void linear_add(float *y, const T *x, const T *weight, const T *bias, LinearShape s) {
    u32 output = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, row = blockIdx.y;
    if (output >= s.outputs) return;
    weight += u64(output) * s.inputs;
    x += u64(row) * s.inputs;
    y += u64(row) * s.outputs + output;
    Row<AHEAD> ahead = load_row<AHEAD>(weight, s.inputs);
    float shift = to_float(bias[output]);
    release_next();
    await_previous();
    float before = *y, sum = 0;
    Row<AHEAD> front = load_row<AHEAD>(x, s.inputs);
#pragma unroll
    for (int i = 0; i < AHEAD; i++) sum = dot4(front.chunk[i], ahead.chunk[i], sum);
#pragma unroll 4
    for (u32 k = chunk_start(AHEAD); k < s.inputs; k += WARP * 4) sum = dot4(load4(x + k), load4(weight + k), sum);
    sum = warp_sum(sum) + shift;
    if (threadIdx.x % WARP == 0) *y = before + sum;
}

template <typename T> __device__ void linear_add_any(float *y, const T *x, const T *weight, const T *bias, LinearShape s) {
    if (s.inputs > ROW_MAX) linear_add<T, 16>(y, x, weight, bias, s);
    else BY_WIDTH(s.inputs, linear_add, T, y, x, weight, bias, s)
}

extern "C" __global__ void linear_add_f32(float *y, const float *x, const float *weight, const float *bias,
                                          LinearShape s) {
    linear_add_any(y, x, weight, bias, s);
}
extern "C" __global__ void linear_add_bf16(float *y, const bf16 *x, const bf16 *weight, const bf16 *bias,
                                           LinearShape s) {
    linear_add_any(y, x, weight, bias, s);
}
