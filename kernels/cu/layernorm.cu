// y = (x - mean) / sqrt(var + eps) * weight + bias over rows of `columns`, var the biased variance.
//
// One warp a row, four rows a block. Row i of y is made from row i of x, or with cursors from the last of sequence i. The mean is
// corrected once by the mean of the residuals (see row.cuh). Deterministic. Launcher: src/layernorm.rs.
//
// layernorm: any width. layernorm_row: the row is held in registers and read once, and the parameters are read before the previous launch
// has finished; bfloat16, multiples of four up to 2048.
#include "row.cuh"

struct LayernormShape {
    u32 count, time, columns;
    float eps;
};
static_assert(sizeof(LayernormShape) == 16, "LayernormShape is passed from Rust");

template <typename T>
__device__ void layernorm(T *y, const float *x, const T *weight, const T *bias, const Cursor *cursor, LayernormShape s) {
    release_next();
    await_previous();
    u32 row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= s.count) return;
    x += u64(source_row(cursor, s.time, row)) * s.columns;
    y += u64(row) * s.columns;
    float sum = 0;
    for (u32 c = lane; c < s.columns; c += WARP) sum += x[c];
    float mean = warp_sum(sum) / s.columns;
    float residual = 0, square = 0;
    for (u32 c = lane; c < s.columns; c += WARP) {
        float centred = x[c] - mean;
        residual += centred;
        square = fmaf(centred, centred, square);
    }
    float shift = warp_sum(residual) / s.columns;
    float scale = 1.0f / sqrtf(fmaxf(warp_sum(square) / s.columns - shift * shift, 0.0f) + s.eps);
    for (u32 c = lane; c < s.columns; c += WARP)
        y[c] = from_float<T>(fmaf((x[c] - mean - shift) * scale, to_float(weight[c]), to_float(bias[c])));
}

#define LAYERNORM(T)                                                                                                    \
    (T * y, const float *x, const T *weight, const T *bias, const Cursor *cursor, LayernormShape s) {                   \
        layernorm<T>(y, x, weight, bias, cursor, s);                                                                    \
    }
extern "C" __global__ void layernorm_f32 LAYERNORM(float)
extern "C" __global__ void layernorm_bf16 LAYERNORM(bf16)

// A row of parameters as it lies in memory: a load alone, so that all are in flight at once.
template <int CHUNKS> struct RawRow {
    uint2 chunk[CHUNKS];
    __device__ RawRow(const bf16 *row, u32 columns) {
#pragma unroll
        for (int i = 0; i < CHUNKS; i++)
            chunk[i] = chunk_start(i) < columns ? *reinterpret_cast<const uint2 *>(row + chunk_start(i)) : make_uint2(0, 0);
    }
};

template <int CHUNKS>
__device__ void layernorm_row(bf16 *y, const float *x, const bf16 *weight, const bf16 *bias, const Cursor *cursor, LayernormShape s) {
    u32 row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    release_next();
    RawRow<CHUNKS> scales(weight, s.columns), shifts(bias, s.columns);
    await_previous();
    if (row >= s.count) return;
    Row<CHUNKS> c = load_row<CHUNKS>(x + u64(source_row(cursor, s.time, row)) * s.columns, s.columns);
    float sum = 0, residual = 0, square = 0;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) sum += (c.chunk[i].x + c.chunk[i].y) + (c.chunk[i].z + c.chunk[i].w);
    float mean = warp_sum(sum) / s.columns;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        float4 &v = c.chunk[i];
        v = make_float4(v.x - mean, v.y - mean, v.z - mean, v.w - mean);
        if (chunk_start(i) >= s.columns) v = make_float4(0, 0, 0, 0);
        residual += (v.x + v.y) + (v.z + v.w);
        square = dot4(v, v, square);
    }
    float shift = warp_sum(residual) / s.columns;
    float scale = 1.0f / sqrtf(fmaxf(warp_sum(square) / s.columns - shift * shift, 0.0f) + s.eps);
    y += u64(row) * s.columns;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        if (chunk_start(i) >= s.columns) continue;
        float4 v = c.chunk[i], w = unpack4(scales.chunk[i]), b = unpack4(shifts.chunk[i]);
        u32 low = pack(fmaf((v.x - shift) * scale, w.x, b.x), fmaf((v.y - shift) * scale, w.y, b.y));
        u32 high = pack(fmaf((v.z - shift) * scale, w.z, b.z), fmaf((v.w - shift) * scale, w.w, b.w));
        *reinterpret_cast<uint2 *>(y + chunk_start(i)) = make_uint2(low, high);
    }
}

extern "C" __global__ void __launch_bounds__(128) layernorm_row_bf16(bf16 *y, const float *x, const bf16 *weight, const bf16 *bias,
                                                                     const Cursor *cursor, LayernormShape s) {
    if (s.columns <= 512) layernorm_row<4>(y, x, weight, bias, cursor, s);
    else layernorm_row<16>(y, x, weight, bias, cursor, s);
}
