// How a token is picked from a row of logits: greedy, or temperature, top-k, top-p and a draw by counter-based random numbers.
//
// The draw is argmax z - ln(-ln u), u from Philox4x32-10 by (index, step): it depends on neither grid nor batch, nor on the logits, so that
// it is ready before they are. Top-k and top-p need no sort: of all scores the winner is drawn, and where the rule does not keep it, it keeps none
// as small either, and the next is drawn among the larger ones. That takes 1 + ln(1 / m) draws on average, m being the softmax mass of what is kept.
// Scores compare as integers that sort as the floats do, and masses are sums of integers: ties stay together, and whoever picks, picks the same.
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
    float temperature, inverse, top_p; // greedy: temperature 1 and no noise
    bool greedy;

    __device__ bool few() const { return !greedy && top_k > 0 && top_k < vocab; }
    __device__ bool part() const { return !greedy && top_p < 1; }
    // logit / temperature, rounded as a division is.
    __device__ float score(float logit) const {
        float z = logit * inverse;
        return fabsf(z) < -MINUS_INFINITY ? fmaf(fmaf(-z, temperature, logit), inverse, z) : z;
    }
};

__device__ inline Sampling sampling(u32 vocab, u32 row, const OutboxState &state) {
    SampleRule rule = reinterpret_cast<const SampleRule *>(&state + 1)[row];
    bool greedy = rule.temperature == 0;
    float temperature = greedy ? 1.0f : rule.temperature;
    return {vocab, rule.top_k, rule.seed_low, rule.seed_high, temperature, 1.0f / temperature, rule.top_p, greedy};
}

// A key that orders as the float does; both zeros get one key. NaN sorts below everything.
__device__ inline u32 sort_key(float x) {
    if (x != x) return 0;
    u32 bits = __float_as_uint(x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
// The float of a key.
__device__ inline float of_key(u32 key) { return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key); }

// Whether a score reaches a key's float: none is below key 0, and a NaN is below nothing.
__device__ inline bool reaches(float score, u32 key) { return !(score < of_key(key)); }

// Largest score first, then the lowest token; above 0.
__device__ inline u64 rank(float score, u32 token) { return u64(sort_key(score)) << 32 | (0xffffffffu - token); }
__device__ inline u32 token_of(u64 rank) { return 0xffffffffu - u32(rank); }

// The sum and the largest of a warp.
__device__ inline u32 warp_count(u32 x) {
#if __CUDA_ARCH__ >= 800
    return __reduce_add_sync(ALL_LANES, x);
#else
    return warp_sum(x);
#endif
}
__device__ inline u32 warp_max(u32 x) {
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(ALL_LANES, x);
#else
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x = max(x, __shfl_xor_sync(ALL_LANES, x, lanes));
    return x;
#endif
}
__device__ inline u64 warp_max(u64 x) {
    u32 high = warp_max(u32(x >> 32));
    return u64(high) << 32 | warp_max(u32(x >> 32) == high ? u32(x) : 0);
}

// What is the same in all lanes, known to be: else the compiler has all that follows a loop or branch on it done lane by lane.
__device__ inline u32 uniform(u32 x) { return warp_max(x); }
__device__ inline Sampling uniform(Sampling s) {
    s.top_k = warp_max(s.top_k), s.top_p = __uint_as_float(warp_max(__float_as_uint(s.top_p))), s.greedy = __any_sync(ALL_LANES, s.greedy);
    return s;
}

// Who picks together: the first COUNT threads of a block, which meet at a barrier of this number.
template <u32 COUNT, u32 BARRIER = 0> struct WholeBlock {
    static constexpr u32 THREADS = COUNT, WARPS = THREADS / WARP;
    u64 *shared; // [WARPS]

    __device__ static u32 index() { return threadIdx.x; }
    __device__ static void sync() { asm volatile("bar.sync %0, %1;" ::"n"(BARRIER), "n"(COUNT) : "memory"); }
    // What `of_warp` makes of all threads' values: it takes those of a warp, and 0 changes nothing.
    template <typename V, typename OfWarp> __device__ V all(V x, OfWarp of_warp) const {
        u32 lane = threadIdx.x % WARP;
        x = of_warp(x);
        if (lane == 0) shared[threadIdx.x / WARP] = x;
        sync();
        x = of_warp(lane < WARPS ? V(shared[lane]) : V(0));
        sync();
        return x;
    }
    __device__ u64 sum(u64 x) const { return all(x, [](u64 v) { return warp_sum(v); }); }
    __device__ u32 sum(u32 x) const { return all(x, [](u32 v) { return warp_count(v); }); }
    template <typename V> __device__ V max(V x) const { return all(x, [](V v) { return warp_max(v); }); }
};

// A warp, alone.
struct WholeWarp {
    static constexpr u32 THREADS = WARP;

    __device__ static u32 index() { return threadIdx.x % WARP; }
    __device__ static u64 sum(u64 x) { return warp_sum(x); }
    __device__ static u32 sum(u32 x) { return warp_count(x); }
    template <typename V> __device__ static V max(V x) { return warp_max(x); }
};

// Softmax mass, relative to that of the largest score, in units of 2^-40: of the scores that reach one key, and of those that reach another.
struct Masses {
    u64 kept, above;

    // A NaN has no mass.
    __device__ void add(float score, u32 low, u32 high, float largest) {
        if (!reaches(score, low)) return;
        float mass = score == largest ? 1.0f : expf(score - largest);
        u64 units = mass > 0 ? __float2ull_rn(mass * 1099511627776.0f) : 0;
        kept += units;
        if (score >= of_key(high)) above += units;
    }
};

// The largest key that `wanted` of the scores reach, where `low` is reached by as many and `high` by fewer. Few rounds find one below it.
template <typename Count> __device__ u32 kth_key(u32 wanted, u32 low, u32 high, u32 rounds, Count count) {
#pragma unroll 1
    for (; high - low > 1 && rounds > 0; rounds--) {
        u32 middle = low + (high - low) / 2, reached = count(middle);
        (reached >= wanted ? low : high) = middle;
        if (reached == wanted) break;
    }
    return low;
}

// The token that the rule picks from `scores`, where `first` is the best of all (see `draw`), and `largest` the largest score if top-p is on.
template <typename Scores> __device__ u32 choose(const Sampling &s, const Scores &scores, u64 first, float largest) {
    if (!s.few() && !s.part()) return token_of(first);
    // Top-p is of the mass that top-k keeps.
    u32 least = s.few() && s.part() ? kth_key(s.top_k, 0, 0xffffffffu, 32, [&](u32 key) { return scores.count(key); }) : 0;
    for (u64 best = first;;) {
        // Kept where the scores above it are fewer than top-k, and their mass does not reach top-p.
        u32 key = scores.key_of(best);
        bool kept;
        if (s.part()) {
            Masses mass = scores.masses(least, key + 1, largest);
            kept = key >= least && mass.above < max(u64(double(s.top_p) * double(mass.kept)), u64(1));
        } else {
            kept = scores.count(key + 1) < s.top_k;
        }
        if (__any_sync(ALL_LANES, kept)) return token_of(best);
        best = scores.draw(max(key + 1, least));
    }
}

// What a slot without a token holds: a NaN counts nowhere, and its rank is 0.
constexpr u32 NOBODY = 0xffffffffu;

// Scores, logits over the temperature, in registers with the noise that goes with each: HELD a thread.
template <u32 HELD, typename Team> struct Scores {
    const Sampling &s;
    Team team;
    u32 token[HELD];
    float score[HELD], noise[HELD];

    __device__ Scores(const Sampling &s, Team team) : s(s), team(team) {
#pragma unroll
        for (u32 j = 0; j < HELD; j++) token[j] = NOBODY, score[j] = NOT_A_NUMBER, noise[j] = 0;
    }
    // Of a row of logits; noise(token) is made, or read, at once.
    template <typename Noise> __device__ Scores(const Sampling &s, Team team, Noise noise_of) : Scores(s, team) {
#pragma unroll
        for (u32 j = 0; j < HELD; j++) {
            u32 i = team.index() + j * Team::THREADS;
            if (i >= s.vocab) continue;
            token[j] = i;
            if (!s.greedy) noise[j] = noise_of(i);
        }
    }
    // Reads the logits: after the wait.
    __device__ void read(const float *logits) {
#pragma unroll
        for (u32 j = 0; j < HELD; j++) score[j] = logits[min(token[j], s.vocab - 1)];
#pragma unroll
        for (u32 j = 0; j < HELD; j++) score[j] = token[j] != NOBODY ? s.score(score[j]) : NOT_A_NUMBER;
    }

    // How many scores, NaN apart, reach a key; the masses of those that reach two.
    __device__ u32 count(u32 key) const {
        u32 own = 0;
#pragma unroll
        for (u32 j = 0; j < HELD; j++) own += score[j] >= of_key(key);
        return team.sum(own);
    }
    __device__ Masses masses(u32 low, u32 high, float largest) const {
        Masses own = {0, 0};
#pragma unroll
        for (u32 j = 0; j < HELD; j++) own.add(score[j], low, high, largest);
        return {team.sum(own.kept), team.sum(own.above)};
    }
    __device__ float largest() const {
        float own = NOT_A_NUMBER;
#pragma unroll
        for (u32 j = 0; j < HELD; j++) own = fmaxf(own, score[j]);
        return of_key(team.max(sort_key(own)));
    }
    // The best by score and noise among the scores that reach a key; and its key.
    __device__ u64 draw(u32 key) const {
        u64 best = 0;
#pragma unroll
        for (u32 j = 0; j < HELD; j++)
            if (reaches(score[j], key)) best = max(best, rank(score[j] + noise[j], token[j]));
        return team.max(best);
    }
    __device__ u32 key_of(u64 best) const {
        u32 own = 0;
#pragma unroll
        for (u32 j = 0; j < HELD; j++) own = token[j] == token_of(best) ? sort_key(score[j]) : own;
        return team.max(own);
    }
    __device__ u32 pick() const { return choose(s, *this, draw(0), s.part() ? largest() : 0); }
    // The same by one warp, in fewer steps that wait for each other where top-p is off.
    __device__ u32 pick_by_warp() const {
        if (s.part()) return pick();
        u32 key[HELD];
#pragma unroll
        for (u32 j = 0; j < HELD; j++) key[j] = sort_key(score[j] + noise[j]);
        for (;;) {
            u32 best = key[0], winner = token[0], above = 0;
            float its = score[0];
#pragma unroll
            for (u32 j = 1; j < HELD; j++)
                if (key[j] > best) best = key[j], winner = token[j], its = score[j];
            u32 top = warp_max(best), first = ~warp_max(best == top ? ~winner : 0);
            if (!s.few()) return first;
            its = __shfl_sync(ALL_LANES, its, first % WARP);
#pragma unroll
            for (u32 j = 0; j < HELD; j++)
                if (score[j] > its) above++; else key[j] = 0;
            if (warp_count(above) < s.top_k) return first;
        }
    }
};

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

__device__ inline float log_approximate(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y * 0.69314718055994531f;
}

// -ln(-ln u) of a random word, within 1e-6. u = (word / 256 + 1/2) / 2^24 needs 25 bits near 1, where its logarithm is taken of x = 1 - u instead:
// -ln(1 - x) = 2 artanh(x / (2 - x)), a series.
__device__ inline float gumbel(u32 word) {
    constexpr float SCALE = 5.9604644775390625e-8f;
    float place = float(word >> 8), x = (16777216.0f - place - 0.5f) * SCALE, s = __fdividef(x, 2.0f - x), t = s * s;
    float series = fmaf(t, 1.0f / 13, 1.0f / 11);
    series = fmaf(fmaf(fmaf(fmaf(fmaf(series, t, 1.0f / 9), t, 1.0f / 7), t, 1.0f / 5), t, 1.0f / 3), t, 1.0f);
    return -log_approximate(x <= 0.5f ? 2 * s * series : -log_approximate((place + 0.5f) * SCALE));
}
// That of tokens 4 `quad` to 4 `quad` + 3, and of one token.
__device__ inline Words random_words(u32 quad, u32 step, const Sampling &s) { return philox(quad, step, 0, s.seed_low, s.seed_high); }
__device__ inline float gumbel(u32 token, u32 step, const Sampling &s) {
    Words words = random_words(token / 4, step, s);
    return gumbel(token % 4 == 0 ? words.word[0] : token % 4 == 1 ? words.word[1] : token % 4 == 2 ? words.word[2] : words.word[3]);
}

// The same of any number of logits, read again at every use, and noise made again.
template <typename Team> struct StreamedScores {
    const Sampling &s;
    Team team;
    const float *logits;
    u32 step;

    // f(token, logit) for the thread's share of the row, and NaN past its end.
    template <typename F> __device__ void each(F f) const {
        constexpr u32 AHEAD = 8;
        for (u32 start = team.index(); start < s.vocab; start += AHEAD * Team::THREADS) {
            float x[AHEAD];
#pragma unroll
            for (u32 j = 0; j < AHEAD; j++) x[j] = start + j * Team::THREADS < s.vocab ? logits[start + j * Team::THREADS] : NOT_A_NUMBER;
#pragma unroll
            for (u32 j = 0; j < AHEAD; j++) f(start + j * Team::THREADS, x[j]);
        }
    }
    __device__ u32 count(u32 key) const {
        u32 own = 0;
        each([&](u32, float logit) { own += s.score(logit) >= of_key(key); });
        return team.sum(own);
    }
    __device__ Masses masses(u32 low, u32 high, float largest) const {
        Masses own = {0, 0};
        each([&](u32, float logit) { own.add(s.score(logit), low, high, largest); });
        return {team.sum(own.kept), team.sum(own.above)};
    }
    // The key of the thread's largest. Scores are in the order of their logits.
    __device__ u32 own_largest() const {
        float own = NOT_A_NUMBER;
        each([&](u32, float logit) { own = fmaxf(own, logit); });
        return sort_key(s.score(own));
    }
    __device__ float largest() const { return of_key(team.max(own_largest())); }
    __device__ u64 draw(u32 key) const {
        float best = NOT_A_NUMBER;
        u32 winner = team.index();
        auto race = [&](u32 token, float x) {
            if (!(x <= best) && x == x) best = x, winner = token;
        };
        if (s.greedy) each(race);
        else draw_own(key, race);
        return team.max(rank(best, winner));
    }
    // race(token, score plus noise) for the thread's share, four tokens for each use of the random numbers.
    template <typename Race> __device__ void draw_own(u32 key, Race race) const {
        for (u32 token = 4 * team.index(); token < s.vocab; token += 4 * Team::THREADS) {
            float score[4];
            bool any = false;
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                score[j] = token + j < s.vocab ? s.score(logits[token + j]) : NOT_A_NUMBER;
                any |= reaches(score[j], key);
            }
            if (!any) continue;
            Words words = random_words(token / 4, step, s);
#pragma unroll
            for (u32 j = 0; j < 4; j++)
                if (reaches(score[j], key)) race(token + j, score[j] + gumbel(words.word[j]));
        }
    }
    __device__ u32 key_of(u64 best) const { return sort_key(s.score(logits[token_of(best)])); }
};

// Of many scores, those that reach a key which at least top-k of them are known to reach: few, in any order, in shared memory.
struct Candidates {
    static constexpr u32 MAX = 1024;
    u32 count, token[MAX];
    float score[MAX];

    __device__ void add(u32 t, float z) {
        u32 i = atomicAdd(&count, 1);
        if (i < MAX) token[i] = t, score[i] = z;
    }
    // Whether there are any, and none is missing.
    __device__ bool complete() const { return count > 0 && count <= MAX; }

    // By a team that holds HELD a thread: all of them.
    template <u32 HELD, typename Team> __device__ u32 pick(const Sampling &s, Team team, u32 step) const {
        Scores<HELD, Team> scores(s, team);
#pragma unroll
        for (u32 j = 0; j < HELD; j++) {
            u32 i = team.index() + j * Team::THREADS;
            if (i < count) scores.token[j] = token[i], scores.score[j] = score[i], scores.noise[j] = gumbel(token[i], step, s);
        }
        return scores.pick();
    }
};

// Picks from a row of many logits, by a block.
template <typename Team> __device__ u32 pick(const Sampling &s, Team team, const float *logits, u32 step, Candidates &candidates) {
    StreamedScores<Team> scores = {s, team, logits, step};
    if (s.few() && s.top_k <= Team::THREADS) {
        // As many threads' largest scores reach this key, and so as many scores.
        u32 own = scores.own_largest(), low = ~team.max(~own), high = team.max(own) + 1;
        u32 least = max(kth_key(s.top_k, low, high, 12, [&](u32 key) { return __syncthreads_count(own >= key); }), 1u);
        if (team.index() == 0) candidates.count = 0;
        __syncthreads();
        scores.each([&](u32 token, float logit) {
            float score = s.score(logit);
            if (score >= of_key(least)) candidates.add(token, score);
        });
        __syncthreads();
        if (candidates.complete()) return candidates.pick<Candidates::MAX / Team::THREADS>(s, team, step);
    }
    return choose(s, scores, scores.draw(0), s.part() ? scores.largest() : 0);
}
