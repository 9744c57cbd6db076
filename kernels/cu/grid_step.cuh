// What a decode step of a large model needs besides its products and attention: GELU, the rule of picking, the delivery of the token.
#pragma once
#include "gelu.cu"
#include "grid_model.cuh"
#include "grid_pick.cuh"

// What the warps know of the token at hand.
struct Token {
    u32 id, past, step, epoch, round; // the epoch of the layer, the round of the last pick
};

// GELU. What is rounded to bf16 takes erfc(z) e^(z^2) as a polynomial of 1 / (1 + 0.45 z): within 1e-5 of itself, in a third of the time.
__device__ inline float activation(float x) {
    if constexpr (!HALF) return gelu(x);
    float z = fabsf(x) * 0.70710678f, t = __fdividef(1.0f, fmaf(0.45f, z, 1.0f));
    float sum = fmaf(t, -0.132915478f, 0.282924294f);
    sum = fmaf(t, fmaf(t, fmaf(t, fmaf(t, sum, 0.100752547f), 0.241974863f), 0.253466241f), 0.253789385f);
    float tail = 0.5f * x * (t * sum) * __expf(-z * z);
    return x < 0 ? tail : x - tail;
}

// Block 0 hands the token to the host, and moves what the next launch reads.
__device__ inline void deliver(const GridArguments &g, const Token &t, u32 issued) {
    g.tokens[0] = t.id;
    g.outbox[issued % g.slots] = u64(issued + 1) << 32 | t.id;
    g.rule->issued = issued + 1;
    g.cursor->past = t.past, g.cursor->step = t.step;
    g.state->round = t.round;
}
