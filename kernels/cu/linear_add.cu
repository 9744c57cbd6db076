// y += x * weight^T + bias in one launch, for few rows: a linear layer and the residual addition behind it.
//
// linear_add_rows: the tiles of rows.cuh, from two rows on. linear_add, for one row and for rows that are not whole 16 bytes: one warp
// an output; grid (ceil(O / 4), R), 4 warps a block. y float32. I a multiple of 4. The weight, or its first AHEAD chunks of 128, is read
// before the previous launch has finished. Deterministic. Launcher: src/linear_add.rs.
#include "linear.cu"
#include "rows.cuh"

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

// y += sum + bias.
template <typename T> struct AddOut {
    float *y;
    const T *bias;
    u32 rows, outputs;
    __device__ float *place(u32 row, u32 column) const {
        return row < rows && column < outputs ? y + u64(row) * outputs + column : nullptr;
    }
    __device__ float2 shift(u32 column) const { return two(bias, column, outputs); }
    __device__ float2 before(u32 row, u32 column) const {
        const float *p = place(row, column);
        return p != nullptr ? *reinterpret_cast<const float2 *>(p) : make_float2(0, 0);
    }
    __device__ void put(u32 row, u32 column, float2 v, float2 before) const {
        if (float *p = place(row, column)) put2(p, make_float2(before.x + v.x, before.y + v.y));
    }
};

#define LINEAR_ADD_ROWS(T)                                                                                              \
    (float *y, const T *x, const T *weight, const T *bias, LinearShape s) {                                             \
        Stored<T> rows = {x, s.rows, s.inputs};                                                                         \
        OneMatrix<T> matrix = {weight, s.inputs, s.outputs};                                                            \
        product_stored(rows, matrix, AddOut<T>{y, bias, s.rows, s.outputs}, s.outputs);                                 \
    }
extern "C" __global__ void __launch_bounds__(256, 2) linear_add_rows_f32 LINEAR_ADD_ROWS(float)
extern "C" __global__ void __launch_bounds__(256, 2) linear_add_rows_bf16 LINEAR_ADD_ROWS(bf16)
