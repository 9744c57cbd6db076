// y += x, y in float32 whatever x is.
//
// One thread an element. Deterministic. Launcher: src/add.rs.
#include "common.cuh"

template <typename T> __device__ void add(float *y, const T *x, u32 len) {
    release_next();
    await_previous();
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < len) y[i] += to_float(x[i]);
}

extern "C" __global__ void add_f32(float *y, const float *x, u32 len) { add(y, x, len); }
extern "C" __global__ void add_bf16(float *y, const bf16 *x, u32 len) { add(y, x, len); }
