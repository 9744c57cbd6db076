// y = x * Phi(x), through erfc, which keeps its relative accuracy in the negative tail where 1 + erf cancels.
//
// One thread an element. Deterministic. Launcher: src/gelu.rs. gelu() also serves norm_linear.cu.
#pragma once
#include "common.cuh"

__device__ inline float gelu(float x) { return 0.5f * x * erfcf(-0.70710678118654752f * x); }

template <typename T> __device__ void gelu_all(T *y, const T *x, u32 len) {
    release_next();
    await_previous();
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < len) y[i] = from_float<T>(gelu(to_float(x[i])));
}

extern "C" __global__ void gelu_f32(float *y, const float *x, u32 len) { gelu_all(y, x, len); }
extern "C" __global__ void gelu_bf16(bf16 *y, const bf16 *x, u32 len) { gelu_all(y, x, len); }
