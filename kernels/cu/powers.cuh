// Powers of two for softmax, of which parts are made in different places.
#pragma once
#include "common.cuh"

// 1 / x and its root: to about 1e-7 of the result, without the slow paths of their ends.
__device__ inline float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ inline float reciprocal_root(float x) {
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

constexpr int NO_SCORE = -(1 << 30);
__device__ inline int score_bound(float largest) { return max(__float2int_ru(largest), NO_SCORE); }
// 2^n for n <= 0, or 0.
__device__ inline float whole_power(int n) { return __int_as_float(max(n + 127, 0) << 23); }

// A softmax so far: its mass relative to 2^most. `most` is a whole number and not below any score, so that sums of different parts of the keys
// come to one base by exact powers of two.
struct Mass {
    int most;
    float mass;
};
