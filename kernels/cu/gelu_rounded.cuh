// GELU for what is rounded to bfloat16.
#pragma once
#include "common.cuh"

// gelu in few instructions: half of erfc(|x| / sqrt 2) is exp(-x^2 / 2) times a polynomial in 1 / (1 + 0.3 |x|), within a relative error of
// 1e-5 down to x = -15, of which rounding to bfloat16 is 200 times as much.
__device__ inline float gelu_rounded(float x) {
    float t, e;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(t) : "f"(fmaf(0.3f, fabsf(x), 1.0f)));
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * x * -0.72134752044448170f));
    float tail = fmaf(-0.0763256563f, t, 0.2137281021f);
    tail = fmaf(tail, t, -0.0143266344f);
    tail = fmaf(tail, t, 0.1427956880f);
    tail = fmaf(tail, t, 0.1140913617f);
    tail = fmaf(tail, t, 0.1200418901f) * (t * e);
    return fmaf(-fabsf(x), tail, fmaxf(x, 0.0f));
}
