// How one block of the grid picks from all logits where top-k or top-p are on: thresholds are found on integers that sort as the floats do, so
// that ties stay together and no sort is needed, bit by bit.
//
// By the first 256 threads of the block, which meet at a barrier of their own. Deterministic.
#pragma once
#include "pick.cuh"

// Who picks: the first 256 threads of a block, each with logits i, i + 256, …
struct Samplers {
    static constexpr u32 THREADS = 256, WARPS = THREADS / WARP;
    u64 *shared; // [WARPS]

    __device__ static u32 index() { return threadIdx.x; }
    __device__ static void sync() { asm volatile("barrier.sync 15, %0;" ::"n"(THREADS) : "memory"); }
    // The sum over the team of the sum of x.
    template <typename V, int HELD> __device__ V sum(const V (&x)[HELD]) const {
        V own = 0, sum = 0, *sums = reinterpret_cast<V *>(shared);
#pragma unroll
        for (int j = 0; j < HELD; j++) own += x[j];
        own = warp_sum(own);
        if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = own;
        sync();
        for (u32 w = 0; w < WARPS; w++) sum += sums[w];
        sync();
        return sum;
    }
    template <int HELD> __device__ u32 count(const bool (&x)[HELD]) const {
        u32 own[1] = {};
#pragma unroll
        for (int j = 0; j < HELD; j++) own[0] += x[j];
        return sum(own);
    }
    __device__ u64 max(u64 x) const {
        for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x = ::max(x, __shfl_xor_sync(ALL_LANES, x, lanes));
        if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = x;
        sync();
        for (u32 w = 0; w < WARPS; w++) x = ::max(x, shared[w]);
        sync();
        return x;
    }
};

// A thread's scores, logits over the temperature, and the noise that goes with each, in registers.
template <u32 HELD> struct LogitScores {
    const Sampling &s;
    Samplers team;
    const float *logits;
    u32 step;
    float score[HELD], noise[HELD];

    __device__ LogitScores(const Sampling &s, Samplers team, const float *logits, u32 step) : s(s), team(team), logits(logits), step(step) {
        if (s.greedy) return;
#pragma unroll
        for (int j = 0; j < int(HELD); j++) noise[j] = gumbel(team.index() + j * Samplers::THREADS, step, s);
    }
    __device__ void load() {
#pragma unroll
        for (int j = 0; j < int(HELD); j++) {
            u32 i = team.index() + j * Samplers::THREADS;
            score[j] = i < s.vocab ? s.score(logits[i]) : MINUS_INFINITY;
        }
    }

    // x[j] = f(score) for the thread's scores; 0 past the last.
    template <typename V, typename F> __device__ void each(V (&x)[HELD], F f) const {
#pragma unroll
        for (int j = 0; j < int(HELD); j++) x[j] = team.index() + j * Samplers::THREADS < s.vocab ? f(score[j]) : V(0);
    }

    // How many scores are at or above `key`, and their softmax mass relative to the largest score.
    __device__ u32 count(u32 key) const {
        bool kept[HELD];
        each(kept, [&](float z) { return sort_key(z) >= key; });
        return team.count(kept);
    }
    __device__ float mass(u32 key, float largest) const {
        float x[HELD];
        each(x, [&](float z) { return sort_key(z) >= key ? expf(z - largest) : 0.0f; });
        return team.sum(x);
    }

    // The index of the largest logit.
    __device__ u32 greedy() const {
        u64 best = 0;
#pragma unroll
        for (int j = 0; j < int(HELD); j++) {
            u32 i = team.index() + j * Samplers::THREADS;
            if (i < s.vocab) best = max(best, rank(logits[i], i));
        }
        return 0xffffffffu - u32(team.max(best));
    }
    // The index with the largest score plus noise among the scores at or above `key`.
    __device__ u32 draw(u32 key) const {
        u64 best = 0;
#pragma unroll
        for (int j = 0; j < int(HELD); j++) {
            u32 i = team.index() + j * Samplers::THREADS;
            if (i < s.vocab && sort_key(score[j]) >= key) best = max(best, rank(score[j] + noise[j], i));
        }
        return 0xffffffffu - u32(team.max(best));
    }

    // The smallest key that keeps at least top_k scores, bit by bit.
    __device__ u32 top_k_key() const {
        u32 key = 0;
        for (u32 bit = 0x80000000u; bit != 0; bit >>= 1) {
            u32 kept = count(key | bit);
            if (kept >= s.top_k) key |= bit;
            if (kept == s.top_k) break;
        }
        return key;
    }
    // The largest key, not under `floor`, that still keeps top_p of the mass at or above `floor`.
    __device__ u32 top_p_key(u32 floor) const {
        float largest = s.score(logits[greedy()]), target = s.top_p * mass(floor, largest);
        u32 key = 0;
        for (u32 bit = 0x80000000u; bit != 0; bit >>= 1) {
            u32 candidate = key | bit;
            if (candidate <= floor || mass(candidate, largest) >= target) key = candidate;
        }
        return max(key, floor);
    }

    // Picks the token: once the logits are there.
    __device__ u32 pick() {
        if (s.greedy) return greedy();
        load();
        u32 key = 0;
        if (s.few()) key = top_k_key();
        if (s.part()) key = top_p_key(key);
        return draw(key);
    }
};
