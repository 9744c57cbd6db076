// How a token is picked from a row of logits: greedy, or temperature, top-k, top-p and a draw by counter-based random numbers.
//
// Thresholds are found on integers that sort as the floats do, so that ties stay together and no sort is needed. The draw is argmax z - ln(-ln u), u
// from Philox4x32-10 by (index, step): it depends on neither grid nor batch, nor on the logits, so that it is ready before they are.
// Deterministic.
#pragma once
#include "common.cuh"

// The rule of picking of one row. It lies in device memory, so that a recorded launch serves any rule.
struct SampleRule {
    u32 top_k, seed_low, seed_high;
    float temperature, top_p;
};

// The counts shared by the blocks of a launch and by successive launches: rows of tokens issued, blocks finished. Behind them lies a rule for
// each row. A slot of the outbox is (number of the row of tokens + 1) << 32 | token.
struct OutboxState {
    u32 issued, finished;
};
static_assert(sizeof(SampleRule) == 20 && sizeof(OutboxState) == 8, "both are laid out in Rust");

// What a block knows of its task.
struct Sampling {
    u32 vocab, top_k, seed_low, seed_high;
    float temperature, top_p;
};

__device__ inline Sampling sampling(u32 vocab, u32 row, const OutboxState &state) {
    SampleRule rule = reinterpret_cast<const SampleRule *>(&state + 1)[row];
    return {vocab, rule.top_k, rule.seed_low, rule.seed_high, rule.temperature, rule.top_p};
}

// A key that orders as the float does; both zeros get one key. NaN sorts below everything.
__device__ inline u32 sort_key(float x) {
    if (x != x) return 0;
    u32 bits = __float_as_uint(x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Who picks together: the first 256 threads of a block, each with logits i, i + 256, …, which meet at barrier number BARRIER; at 0, they are
// the whole block.
template <u32 BARRIER> struct FirstThreads {
    static constexpr u32 THREADS = 256, WARPS = THREADS / WARP;
    u64 *shared; // [WARPS]

    __device__ static u32 index() { return threadIdx.x; }
    __device__ static void sync() {
        if constexpr (BARRIER == 0) __syncthreads();
        else asm volatile("barrier.sync %0, %1;" ::"n"(BARRIER), "n"(THREADS) : "memory");
    }
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
        // With one score a thread the barrier itself counts.
        if constexpr (HELD == 1 && BARRIER == 0) return __syncthreads_count(x[0]);
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
typedef FirstThreads<0> WholeBlock;

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
// A warp, alone, with the same sums to the bit as a block that holds one logit a thread.
struct WholeWarp {
    static constexpr u32 THREADS = WARP;

    __device__ static u32 index() { return threadIdx.x % WARP; }
    template <typename V, int HELD> __device__ V sum(const V (&x)[HELD]) const {
        V sum = 0;
#pragma unroll
        for (int j = 0; j < HELD; j++) sum += warp_sum(x[j]);
        return sum;
    }
    template <int HELD> __device__ u32 count(const bool (&x)[HELD]) const {
        u32 count = 0;
#pragma unroll
        for (int j = 0; j < HELD; j++) count += __popc(__ballot_sync(ALL_LANES, x[j]));
        return count;
    }
    __device__ u64 max(u64 x) const {
        u32 high = __reduce_max_sync(ALL_LANES, u32(x >> 32));
        return u64(high) << 32 | __reduce_max_sync(ALL_LANES, u32(x >> 32) == high ? u32(x) : 0);
    }
};
#endif

// Largest score first, then the lowest index.
__device__ inline u64 rank(float score, u32 index) { return u64(sort_key(score)) << 32 | (0xffffffffu - index); }

struct Words {
    u32 word[4];
};

__device__ inline Words philox(u32 c0, u32 c1, u32 c2, u32 k0, u32 k1) {
    u32 c3 = 0;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u32 high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        u32 high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0, c1 = low1, c2 = high0 ^ c3 ^ k1, c3 = low0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return Words{{c0, c1, c2, c3}};
}

__device__ inline float gumbel(u32 index, u32 step, const Sampling &s) {
    Words words = philox(index / 4, step, 0, s.seed_low, s.seed_high);
    u32 word = index % 4 == 0 ? words.word[0] : index % 4 == 1 ? words.word[1] : index % 4 == 2 ? words.word[2] : words.word[3];
    // u = (word / 256 + 1/2) / 2^24 needs 25 bits near 1, where its logarithm is taken of 1 - u instead.
    float place = float(word >> 8), scale = 5.9604644775390625e-8f, half_way = 8388608.0f;
    float log_u = place < half_way ? logf((place + 0.5f) * scale) : log1pf(-(2 * half_way - place - 0.5f) * scale);
    return -logf(-log_u);
}

// A thread's scores, logits over the temperature, and the noise that goes with each: HELD of them in registers, or, with HELD 0, any
// number, made again at every use.
template <u32 HELD, typename Team> struct Scores {
    static constexpr int SLOTS = HELD > 0 ? HELD : 1;
    const Sampling &s;
    Team team;
    const float *logits;
    u32 step;
    float score[SLOTS], noise[SLOTS];

    __device__ Scores(const Sampling &s, Team team, const float *logits, u32 step) : s(s), team(team), logits(logits), step(step) {
        if (s.temperature == 0) return;
#pragma unroll
        for (int j = 0; j < int(HELD); j++) noise[j] = gumbel(team.index() + j * Team::THREADS, step, s);
    }
    // With noise that others have made: of all logits.
    __device__ Scores(const Sampling &s, Team team, const float *logits, const float *made) : s(s), team(team), logits(logits), step(0) {
        static_assert(HELD > 0, "noise that is not held is made at every use");
#pragma unroll
        for (int j = 0; j < int(HELD); j++) noise[j] = made[min(team.index() + j * Team::THREADS, s.vocab - 1)];
    }

    // Reads the logits: after the wait.
    __device__ void load() {
#pragma unroll
        for (int j = 0; j < int(HELD); j++) {
            u32 i = team.index() + j * Team::THREADS;
            score[j] = i < s.vocab ? logits[i] / s.temperature : MINUS_INFINITY;
        }
    }

    // x[j] = f(score, index) for the thread's scores; summed into x[0] where they are not held; 0 past the last.
    template <typename V, typename F> __device__ void each(V (&x)[SLOTS], F f) const {
        if (HELD == 0) {
            x[0] = 0;
            for (u32 i = team.index(); i < s.vocab; i += Team::THREADS) x[0] += f(logits[i] / s.temperature);
        }
#pragma unroll
        for (int j = 0; j < int(HELD); j++) x[j] = team.index() + j * Team::THREADS < s.vocab ? f(score[j]) : V(0);
    }

    // How many scores are at or above `key`, and their softmax mass relative to the largest score.
    __device__ u32 count(u32 key) const {
        auto kept = [&](float z) { return sort_key(z) >= key; };
        if (HELD == 0) {
            u32 kept_here[SLOTS];
            each(kept_here, kept);
            return team.sum(kept_here);
        }
        bool kept_here[SLOTS];
        each(kept_here, kept);
        return team.count(kept_here);
    }
    __device__ float mass(u32 key, float largest) const {
        float x[SLOTS];
        each(x, [&](float z) { return sort_key(z) >= key ? expf(z - largest) : 0.0f; });
        return team.sum(x);
    }

    // The index of the largest logit.
    __device__ u32 greedy() const {
        u64 best = 0;
        for (u32 i = team.index(); HELD == 0 && i < s.vocab; i += Team::THREADS) best = max(best, rank(logits[i], i));
#pragma unroll
        for (int j = 0; j < int(HELD); j++) {
            u32 i = team.index() + j * Team::THREADS;
            if (i < s.vocab) best = max(best, rank(logits[i], i));
        }
        return 0xffffffffu - u32(team.max(best));
    }
    // The index with the largest score plus noise among the scores at or above `key`.
    __device__ u32 draw(u32 key) const {
        u64 best = 0;
        for (u32 i = team.index(); HELD == 0 && i < s.vocab; i += Team::THREADS) {
            float z = logits[i] / s.temperature;
            if (sort_key(z) >= key) best = max(best, rank(z + gumbel(i, step, s), i));
        }
#pragma unroll
        for (int j = 0; j < int(HELD); j++) {
            u32 i = team.index() + j * Team::THREADS;
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
        float largest = logits[greedy()] / s.temperature, target = s.top_p * mass(floor, largest);
        u32 key = 0;
        for (u32 bit = 0x80000000u; bit != 0; bit >>= 1) {
            u32 candidate = key | bit;
            if (candidate <= floor || mass(candidate, largest) >= target) key = candidate;
        }
        return max(key, floor);
    }

    // Picks the token: once the logits are there.
    __device__ u32 pick() {
        if (s.temperature == 0) return greedy();
        load();
        u32 key = 0;
        if (s.top_k > 0 && s.top_k < s.vocab) key = top_k_key();
        if (s.top_p < 1) key = top_p_key(key);
        return draw(key);
    }
};
