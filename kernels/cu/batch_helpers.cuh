// The warps of decode_batch.cu that do not compute: one makes norms, one the noise, one brings keys. That of the fourth which fills the ring is in
// batch_ring.cuh.
#pragma once
#include "batch_block.cuh"

// Sends every block the moments of this block's part of the residual: two threads a sequence.
__device__ inline void send_moments(const Shared &s, const NormInput &to, u32 handoff, u32 thread) {
    u32 n = min(thread / 2, B - 1), part = thread % 2, base = shared_address(&s);
    Moments own = {0, 0};
#pragma unroll
    for (u32 i = 0; i < OUT_ROWS / 8; i++) {
        float4 x = reinterpret_cast<const float4 *>(s.shifted)[(i * B + n) * 2 + part];
        own.sum += (x.x + x.y) + (x.z + x.w);
        own.squares = fmaf(x.x, x.x, fmaf(x.y, x.y, fmaf(x.z, x.z, fmaf(x.w, x.w, own.squares))));
    }
    own.sum += __shfl_xor_sync(ALL_LANES, own.sum, 1), own.squares += __shfl_xor_sync(ALL_LANES, own.squares, 1);
    if (thread >= 2 * B) return;
    u32 at = shared_address(&to.moments[n][cluster_rank()]) - base;
#pragma unroll 2
    for (u32 j = part; j < N; j += 2) {
        u32 there = in_block(base, j);
        send(there + at, own.sum, own.squares, there + handoff * sizeof(u64));
    }
}

// Every sequence's norm, from what the blocks sent: two threads each.
__device__ inline void make_norms(Shared &s, const NormInput &from, float eps, u32 thread) {
    u32 n = min(thread / 2, B - 1), part = thread % 2;
    float sum = 0, squares = 0;
#pragma unroll
    for (u32 i = 0; i < N / 2; i++) {
        Moments m = from.moments[n][part * (N / 2) + i];
        sum += m.sum, squares += m.squares;
    }
    sum += __shfl_xor_sync(ALL_LANES, sum, 1), squares += __shfl_xor_sync(ALL_LANES, squares, 1);
    float mean = sum * (1.0f / C), square = squares * (1.0f / C);
    if (thread >= 2 * B || part != 0) return;
    s.norm[n] = {mean, rsqrtf(fmaxf(square - mean * mean, 0.0f) + eps)};
    s.shift[n] += mean;
}

// The warp of norms, by its thread `thread`.
__device__ inline void make_norms(const BatchArguments &a, Shared &s, u32 thread) {
    u32 parities = 0;
#pragma unroll 1
    for (u32 step = 0; step < a.steps; step++)
#pragma unroll 1
        for (u32 norm = 0; norm <= 2 * LAYERS; norm++) {
            bool middle = norm % 2 == 1;
            u32 handoff = middle ? MIDDLE_MOMENTS : RESIDUAL_MOMENTS, barrier = shared_address(&s.arrived[handoff]);
            meet<SHIFTED, NORM_THREADS>();
            send_moments(s, s.residual, handoff, thread);
            barrier_await_together(barrier, parities >> middle & 1), parities ^= 1u << middle;
            if (thread == 0) barrier_expect(barrier, sizeof(NormInput::moments));
            make_norms(s, s.residual, a.eps, thread);
            __syncwarp();
            help<NORMED, NORM_THREADS>();
        }
}

// The warp of noise: what each draw of a step adds to the scores, while the model runs; and who tells the host which tokens were picked.
__device__ inline void make_noise(const BatchArguments &a, Shared &s) {
    u32 lane = threadIdx.x % WARP, issued = a.state->issued;
    bool speaks = cluster_rank() == 0 && lane < s.count;
#pragma unroll 1
    for (u32 step = 0; step < a.steps; step++) {
#pragma unroll 1
        for (u32 i = lane; i < s.count * V; i += WARP) {
            u32 n = i / V;
            if (!s.rule[n].greedy) s.noise[n][i % V] = gumbel(i % V, s.cursor[n].step + step, s.rule[n]);
        }
        __syncwarp();
        help<NOISY, WARP>();
        meet<PICKED, WARP>();
        if (speaks) a.outbox[u64((issued + step) % a.slots) * a.batch + s.first + lane] = u64(issued + step + 1) << 32 | s.token[lane];
    }
}

// The warp of keys: brings the first keys and values of this block's pairs to shared memory, a layer ahead, and asks L2 for what follows. A lane a
// pair.
__device__ inline void bring_keys(const BatchArguments &a, Shared &s) {
    u32 lane = threadIdx.x % WARP, pair = cluster_rank() * PAIRS_HERE + lane, n = pair / H, attended = 0, barrier = shared_address(&s.near);
    bool busy = lane < PAIRS_HERE && pair < PAIRS && n < s.count;
    u64 at = u64(s.first * H + pair) * P * D;
#pragma unroll 1
    for (u32 step = 0; step < a.steps; step++) {
        u32 past = busy ? min(s.cursor[n].past + step, P) : 0, near = min(past, NEAR_KEYS) * D * sizeof(bf16), far = past * D * sizeof(bf16) - near;
#pragma unroll 1
        for (u32 layer = 0; layer < LAYERS; layer++) {
            if (step + layer > 0) barrier_await_together(shared_address(&s.attended), attended), attended ^= 1;
            order_copies(); // behind the cache's new rows, and behind what was read here
            barrier_expect(barrier, 2 * near);
            if (near == 0) continue;
            const bf16 *keys = a.keys[layer] + at, *values = a.values[layer] + at;
            fetch(shared_address(near_of(s).keys[lane]), keys, near, barrier);
            fetch(shared_address(near_of(s).values[lane]), values, near, barrier);
            if (far > 0) fetch_to_l2(keys + NEAR_KEYS * D, far), fetch_to_l2(values + NEAR_KEYS * D, far);
        }
    }
}
