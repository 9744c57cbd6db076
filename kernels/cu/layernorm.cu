// y = (x - mean) / sqrt(var + eps) * weight + bias over rows of `columns`, var the biased variance.
//
// One warp a row, four rows a block. Row i of y is made from row first + i * step of x. Any width. The mean is corrected once by
// the mean of the residuals (see row.cuh). Deterministic. Launcher: src/layernorm.rs.
#include "common.cuh"

struct LayernormShape {
    u32 count, first, step, columns;
    float eps;
};
static_assert(sizeof(LayernormShape) == 20, "LayernormShape is passed from Rust");

template <typename T>
__device__ void layernorm(T *y, const float *x, const T *weight, const T *bias, LayernormShape s) {
    release_next();
    await_previous();
    u32 row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= s.count) return;
    x += u64(s.first + row * s.step) * s.columns;
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
    (T * y, const float *x, const T *weight, const T *bias, LayernormShape s) { layernorm<T>(y, x, weight, bias, s); }
extern "C" __global__ void layernorm_f32 LAYERNORM(float)
extern "C" __global__ void layernorm_bf16 LAYERNORM(bf16)
