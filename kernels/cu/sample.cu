// Picks a token a row of logits: greedy, or temperature, top-k, top-p and a draw by counter-based random numbers.
//
// One block of 256 threads a row; thread i takes logits i, i + 256, …. Thresholds are found on integers that sort as the floats do, so that
// ties stay together and no sort is needed. The draw is argmax z - ln(-ln u), u from Philox4x32-10 by (index, step, row): it depends on
// neither grid nor batch, nor on the logits, so that it is ready before they are. The last block to finish advances the cursor. `outbox`
// lies in host memory that the device sees: a slot is (number of the row of tokens + 1) << 32 | token. Deterministic. Launcher:
// src/sample.rs.
#include "common.cuh"

// The rule of picking, and the counts shared by the blocks of a launch and by successive launches: rows of tokens issued, blocks finished.
// It lies in device memory, so that a recorded launch serves any rule.
struct OutboxState {
    u32 top_k, seed_low, seed_high;
    float temperature, top_p;
    u32 issued, finished;
};
static_assert(sizeof(OutboxState) == 28, "OutboxState is laid out in Rust");

struct SampleShape {
    u32 vocab, advance, slots;
};
static_assert(sizeof(SampleShape) == 12, "SampleShape is passed from Rust");

// What a block knows of its task.
struct Sampling {
    u32 vocab, top_k, seed_low, seed_high;
    float temperature, top_p;
};

constexpr u32 SAMPLE_THREADS = 256, SAMPLE_WARPS = SAMPLE_THREADS / WARP;

// Waits for the block's first SAMPLE_THREADS threads: decode_grid.cu has more. The second also counts those with `x`.
__device__ inline void sync_samplers() { asm volatile("barrier.sync 15, %0;" ::"n"(SAMPLE_THREADS) : "memory"); }
__device__ inline u32 count_samplers(bool x) {
    u32 count;
    asm volatile("{\n .reg .pred p;\n setp.ne.u32 p, %1, 0;\n barrier.red.popc.u32 %0, 15, %2, p;\n}"
                 : "=r"(count) : "r"(u32(x)), "n"(SAMPLE_THREADS) : "memory");
    return count;
}

// A key that orders as the float does; both zeros get one key. NaN sorts below everything.
__device__ inline u32 sort_key(float x) {
    if (x != x) return 0;
    u32 bits = __float_as_uint(x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

template <typename V> __device__ V block_sum(V x, V *shared) {
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = x;
    sync_samplers();
    V sum = 0;
    for (u32 w = 0; w < SAMPLE_WARPS; w++) sum += shared[w];
    sync_samplers();
    return sum;
}

__device__ inline u64 block_max(u64 x, u64 *shared) {
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x = max(x, __shfl_xor_sync(ALL_LANES, x, lanes));
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = x;
    sync_samplers();
    for (u32 w = 0; w < SAMPLE_WARPS; w++) x = max(x, shared[w]);
    sync_samplers();
    return x;
}

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

__device__ inline float gumbel(u32 index, u32 step, u32 row, const Sampling &s) {
    Words words = philox(index / 4, step, row, s.seed_low, s.seed_high);
    u32 word = index % 4 == 0 ? words.word[0] : index % 4 == 1 ? words.word[1] : index % 4 == 2 ? words.word[2] : words.word[3];
    // u = (word / 256 + 1/2) / 2^24 needs 25 bits near 1, where its logarithm is taken of 1 - u instead.
    float place = float(word >> 8), scale = 5.9604644775390625e-8f, half_way = 8388608.0f;
    float log_u = place < half_way ? logf((place + 0.5f) * scale) : log1pf(-(2 * half_way - place - 0.5f) * scale);
    return -logf(-log_u);
}

// A thread's scores, logits over the temperature, and the noise that goes with each: HELD of them in registers, or, with HELD 0, any
// number, made again at every use.
template <u32 HELD> struct Scores {
    const Sampling &s;
    const float *logits;
    u32 step;
    float score[HELD > 0 ? HELD : 1], noise[HELD > 0 ? HELD : 1];

    __device__ Scores(const Sampling &s, const float *logits, u32 step) : s(s), logits(logits), step(step) {
#pragma unroll
        for (int j = 0; j < int(HELD); j++) noise[j] = gumbel(threadIdx.x + j * SAMPLE_THREADS, step, blockIdx.x, s);
    }

    // Reads the logits: after the wait.
    __device__ void load() {
#pragma unroll
        for (int j = 0; j < int(HELD); j++) {
            u32 i = threadIdx.x + j * SAMPLE_THREADS;
            score[j] = i < s.vocab ? logits[i] / s.temperature : MINUS_INFINITY;
        }
    }

    // Calls f(index, score) for each of the thread's scores.
    template <typename F> __device__ void each(F f) const {
        if (HELD == 0) {
            for (u32 i = threadIdx.x; i < s.vocab; i += SAMPLE_THREADS) f(i, logits[i] / s.temperature);
        }
#pragma unroll
        for (int j = 0; j < int(HELD); j++) {
            u32 i = threadIdx.x + j * SAMPLE_THREADS;
            if (i < s.vocab) f(i, score[j]);
        }
    }

    // The index with the largest score plus noise among the scores at or above `key`.
    __device__ u32 draw(u32 key, u64 *shared) const {
        u64 pick = 0;
        if (HELD == 0)
            each([&](u32 i, float z) {
                if (sort_key(z) >= key) pick = max(pick, rank(z + gumbel(i, step, blockIdx.x, s), i));
            });
#pragma unroll
        for (int j = 0; j < int(HELD); j++) {
            u32 i = threadIdx.x + j * SAMPLE_THREADS;
            if (i < s.vocab && sort_key(score[j]) >= key) pick = max(pick, rank(score[j] + noise[j], i));
        }
        return 0xffffffffu - u32(block_max(pick, shared));
    }
};

// The smallest key that keeps at least top_k scores, bit by bit.
template <u32 HELD> __device__ u32 top_k_key(const Scores<HELD> &scores, u32 top_k, u32 *shared) {
    u32 key = 0;
    for (u32 bit = 0x80000000u; bit != 0; bit >>= 1) {
        u32 count = 0;
        scores.each([&](u32, float z) { count += sort_key(z) >= (key | bit); });
        // With one score a thread the barrier itself counts.
        count = HELD == 1 ? count_samplers(count) : block_sum(count, shared);
        if (count >= top_k) key |= bit;
        if (count == top_k) break;
    }
    return key;
}

// Softmax mass, relative to the largest score, of those at or above `key`.
template <u32 HELD> __device__ float mass(const Scores<HELD> &scores, u32 key, float largest, float *shared) {
    float sum = 0;
    scores.each([&](u32, float z) {
        if (sort_key(z) >= key) sum += expf(z - largest);
    });
    return block_sum(sum, shared);
}

// The largest key, not under `floor`, that still keeps top_p of the mass at or above `floor`.
template <u32 HELD>
__device__ u32 top_p_key(const Scores<HELD> &scores, float top_p, u32 floor, float largest, float *shared) {
    float target = top_p * mass(scores, floor, largest, shared);
    u32 key = 0;
    for (u32 bit = 0x80000000u; bit != 0; bit >>= 1) {
        u32 candidate = key | bit;
        if (candidate <= floor || mass(scores, candidate, largest, shared) >= target) key = candidate;
    }
    return max(key, floor);
}

// The index of the largest logit.
__device__ u32 greedy(const float *logits, u32 vocab, u64 *shared) {
    u64 best = 0;
    for (u32 i = threadIdx.x; i < vocab; i += SAMPLE_THREADS) best = max(best, rank(logits[i], i));
    return 0xffffffffu - u32(block_max(best, shared));
}

// Picks the row's token; waits for the previous launch in between.
template <u32 HELD> __device__ u32 pick(const float *logits, u32 step, const Sampling &s) {
    __shared__ u64 shared[SAMPLE_WARPS];
    Scores<HELD> scores(s, logits, step);
    release_next();
    await_previous();
    if (s.temperature == 0) return greedy(logits, s.vocab, shared);
    scores.load();
    u32 key = 0;
    if (s.top_k > 0 && s.top_k < s.vocab) key = top_k_key(scores, s.top_k, reinterpret_cast<u32 *>(shared));
    if (s.top_p < 1) {
        float largest = logits[greedy(logits, s.vocab, shared)] / s.temperature;
        key = top_p_key(scores, s.top_p, key, largest, reinterpret_cast<float *>(shared));
    }
    return scores.draw(key, shared);
}

extern "C" __global__ void __launch_bounds__(256, 1) sample_f32(volatile u64 *outbox, OutboxState *state, u32 *tokens, Cursor *cursor,
                                           const float *logits, SampleShape shape) {
    // Rule, counts and cursor are changed by this kernel in an earlier pass, or by the host: never by the launch just before.
    u32 row = blockIdx.x, step = cursor->step, issued = state->issued;
    Sampling s = {shape.vocab,      state->top_k,       state->seed_low,
                  state->seed_high, state->temperature, state->top_p};
    logits += u64(row) * s.vocab;
    u32 token = s.vocab <= SAMPLE_THREADS       ? pick<1>(logits, step, s)
                : s.vocab <= 4 * SAMPLE_THREADS ? pick<4>(logits, step, s)
                                                : pick<0>(logits, step, s);
    if (threadIdx.x != 0) return;
    tokens[row] = token;
    outbox[u64(issued % shape.slots) * gridDim.x + row] = u64(issued + 1) << 32 | token;
    if (gridDim.x > 1) {
        __threadfence();
        if (atomicAdd(&state->finished, 1) + 1 < gridDim.x) return;
        state->finished = 0;
    }
    state->issued = issued + 1;
    cursor->past += shape.advance;
    cursor->step += 1;
}
