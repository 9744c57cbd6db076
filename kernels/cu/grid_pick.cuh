// How all blocks agree on the next token. Finishers tell what they know of their logits; from that every block works the token out by itself.
//
// Greedy, or with temperature alone, it is the best of the finishers' best picks. With top-k a finisher tells the largest score of each of its three
// groups of logits: as many finishers' largest as top-k says reach some key, so only groups that reach it can hold a winner, and every block reads
// those. Where these are too many, and with top-p alone, block 0 picks from all logits, and tells.
#pragma once
#include "grid_product.cuh"

// Block-wide barrier of all but the fetching warp; it counts warps, which must come whole.
__device__ inline void sync_workers() {
    __syncwarp();
    asm volatile("barrier.sync.aligned 14, %0;" ::"n"((WARPS + FINISHERS) * WARP) : "memory");
}

// What the warps know of the token at hand.
struct Token {
    u32 id, past, step, epoch; // the epoch of the layer
};

// Whether a block's finisher has rows of logits. The last block's first has.
__device__ inline bool tells(u32 block, u32 finisher) { return rows_of(HEAD, block) > finisher * FINISHER_ROWS; }

// Logits: kept, and what is told of them.
struct Choose {
    const Sampling &s;
    float *logits;
    u32 step, first, largest = 0; // key of the lane's largest score
    float noise = 0;
    u64 best = 0;

    __device__ Choose(const Sampling &s, float *logits, u32 step) : s(s), logits(logits), step(step), first(share(HEAD, blockIdx.x).first) {}
    __device__ void prepare(u32 row, bool valid) {
        if (!s.greedy && !s.few() && valid) noise = gumbel(first + row, step, s);
    }
    __device__ void operator()(u32 row, float sum, bool valid) {
        if (!valid) return;
        float score = s.score(sum);
        logits[first + row] = sum;
        best = max(best, rank(score + noise, first + row)), largest = max(largest, sort_key(score));
    }
    // Tells all blocks: the largest key of each group, or the best pick and the largest key.
    __device__ void send(const Block &b, u32 epoch) {
        u32 finisher = b.warp - WARPS, word[GROUPS];
        if (!tells(blockIdx.x, finisher)) return;
        if (s.few() || s.part()) __threadfence(); // others will read the logits
        if (s.few()) {
            static_assert(FINISHER_ROWS % GROUPS == 0 && (RUN & (RUN - 1)) == 0 && WARP % RUN == 0, "a group is a run of lanes");
            for (u32 lanes = RUN / 2; lanes > 0; lanes /= 2) largest = max(largest, __shfl_xor_sync(ALL_LANES, largest, lanes));
#pragma unroll
            for (u32 i = 0; i < GROUPS; i++) word[i] = __shfl_sync(ALL_LANES, largest, i * RUN);
        } else {
            best = warp_max(best);
            word[0] = u32(best), word[1] = u32(best >> 32), word[2] = warp_max(largest);
        }
        if (b.lane < REPLICAS)
            ::send(words_at(b.g.exchange, AT_PICK, epoch, b.lane) + blockIdx.x * FINISHERS + finisher, word[0], word[1], word[2], epoch);
    }
};

// A sampler's share of what was told; zeros where there is nothing.
constexpr u32 TOLD = divide_up(TELLERS, Samplers::THREADS);
__device__ inline void hear(const Block &b, const Sampling &s, const Token &t, uint4 (&told)[TOLD]) {
    const uint4 *words = words_at(b.g.exchange, AT_PICK, t.epoch, b.block), *at[TOLD];
    bool there[TOLD];
#pragma unroll
    for (u32 j = 0; j < TOLD; j++) {
        u32 i = threadIdx.x + j * Samplers::THREADS;
        there[j] = i < TELLERS && tells(i / FINISHERS, i % FINISHERS);
        at[j] = words + (there[j] ? i : TELLERS - FINISHERS);
    }
    receive(told, at, t.epoch);
    if (s.few() || s.part()) __threadfence(); // the logits were written before their finishers told, with a fence between
#pragma unroll
    for (u32 j = 0; j < TOLD; j++)
        if (!there[j]) told[j] = make_uint4(0, 0, 0, 0);
}

// A key that at least top-k scores reach: as many finishers' largest do. By a warp.
__device__ inline u32 least_key(const Sampling &s, const Picking &p) {
    u32 key[divide_up(TELLERS, WARP)], low = 0xffffffffu, high = 0;
#pragma unroll
    for (u32 j = 0; j < divide_up(TELLERS, WARP); j++) {
        u32 i = threadIdx.x % WARP + j * WARP;
        key[j] = i < TELLERS ? p.largest[i] : 0, high = max(high, key[j]);
        if (i < TELLERS) low = min(low, key[j]);
    }
    low = ~warp_max(~low), high = warp_max(high) + 1;
    if (s.top_k > TELLERS) return 1;
    u32 least = kth_key(s.top_k, low, high, 8, [&](u32 middle) {
        u32 own = 0;
#pragma unroll
        for (u32 j = 0; j < divide_up(TELLERS, WARP); j++) own += key[j] >= middle;
        return warp_count(own);
    });
    return max(least, 1u);
}

// Collects the logits of the groups found, as far as they reach `least`: a warp for each group, several groups at once.
__device__ inline void collect(const Sampling &s, Picking &p, const float *logits, u32 least) {
    constexpr u32 ROWS = divide_up(rows_max(HEAD), PASS_ROWS) * RUN, LOADS = divide_up(ROWS, WARP), AT_ONCE = larger(12 / LOADS, 1);
    for (u32 start = threadIdx.x / WARP; start < p.count; start += AT_ONCE * Samplers::WARPS) {
        float logit[AT_ONCE][LOADS];
        u32 token[AT_ONCE][LOADS];
#pragma unroll
        for (u32 g = 0; g < AT_ONCE; g++) {
            u32 i = start + g * Samplers::WARPS, group = p.group[smaller(i, p.count - 1)], block = group / (GROUPS * FINISHERS);
            u32 first = share(HEAD, block).first, rows = i < p.count ? rows_of(HEAD, block) : 0;
#pragma unroll
            for (u32 l = 0; l < LOADS; l++) {
                u32 r = threadIdx.x % WARP + l * WARP, row = r / RUN * PASS_ROWS + group % (GROUPS * FINISHERS) * RUN + r % RUN;
                token[g][l] = first + row;
                logit[g][l] = r < ROWS && row < rows ? __ldcg(logits + first + row) : NOT_A_NUMBER;
            }
        }
#pragma unroll
        for (u32 g = 0; g < AT_ONCE; g++)
#pragma unroll
            for (u32 l = 0; l < LOADS; l++) {
                float score = s.score(logit[g][l]);
                if (score >= of_key(least)) p.candidates.add(token[g][l], score);
            }
    }
}

// The samplers' pick with top-k; NOBODY where there are too many candidates.
__device__ inline u32 pick_of_few(const Block &b, const Sampling &s, const Token &t, Picking &p, const uint4 (&told)[TOLD]) {
#pragma unroll
    for (u32 j = 0; j < TOLD; j++) {
        u32 i = threadIdx.x + j * Samplers::THREADS;
        if (i < TELLERS) p.largest[i] = max(told[j].x, max(told[j].y, told[j].z));
    }
    if (threadIdx.x == 0) p.count = p.candidates.count = 0;
    Samplers::sync();
    u32 least = least_key(s, p);
#pragma unroll
    for (u32 j = 0; j < TOLD; j++) {
        u32 first = (threadIdx.x + j * Samplers::THREADS) * GROUPS;
        if (told[j].x >= least) p.group[atomicAdd(&p.count, 1)] = first;
        if (told[j].y >= least) p.group[atomicAdd(&p.count, 1)] = first + 1;
        if (told[j].z >= least) p.group[atomicAdd(&p.count, 1)] = first + 2;
    }
    Samplers::sync();
    collect(s, p, b.g.logits, least);
    Samplers::sync();
    constexpr u32 HELD = Candidates::MAX / Samplers::THREADS;
    if (!p.candidates.complete()) return NOBODY;
    // If they are few, every warp picks alone, without barriers.
    if (p.candidates.count <= HELD * WARP) return p.candidates.pick<HELD>(s, WholeWarp(), t.step);
    return p.candidates.pick<HELD>(s, Samplers{p.shared}, t.step);
}

// Block 0's pick from all logits, where `largest` is the largest key that the thread was told, and `best` the best of all, if that is known.
__device__ inline u32 pick_alone(const Block &b, const Sampling &s, const Token &t, Picking &p, u32 largest, u64 best) {
    uint4 *word = words_at(b.g.exchange, AT_TOKEN, t.epoch, 0), v[1];
    if (blockIdx.x == 0 && threadIdx.x < Samplers::THREADS) {
        __threadfence(); // what was read of the logits before is out of date
        StreamedScores<Samplers> scores = {s, {p.shared}, b.g.logits, t.step};
        u32 token = choose(s, scores, best != 0 ? best : scores.draw(0), of_key(scores.team.max(largest)));
        if (threadIdx.x == 0) send(word, token, 0, 0, t.epoch);
    }
    const uint4 *at[] = {word};
    receive(v, at, t.epoch);
    return v[0].x;
}

// All workers agree on the token. `best` is shared memory: a place for each sampling warp, not those of the token before.
__device__ inline u32 agree(const Block &b, const Sampling &s, const Token &t, u64 *best) {
    Picking &p = *shared<Picking>(AT_PARTIAL);
    uint4 told[TOLD];
    u32 largest = 0;
    bool sampler = b.warp < Samplers::WARPS;
    if (sampler) hear(b, s, t, told);
    if (s.few()) {
        sync_workers(); // the sums where the Picking lies have been read
        if (sampler) {
#pragma unroll
            for (u32 j = 0; j < TOLD; j++) largest = max(largest, max(told[j].x, max(told[j].y, told[j].z)));
            u32 token = pick_of_few(b, s, t, p, told);
            if (threadIdx.x == 0) best[0] = token;
        }
        sync_workers();
        u32 token = best[0];
        return token != NOBODY ? token : pick_alone(b, s, t, p, largest, 0);
    }
    if (sampler) {
        u64 mine = 0;
#pragma unroll
        for (u32 j = 0; j < TOLD; j++) mine = max(mine, u64(told[j].y) << 32 | told[j].x), largest = max(largest, told[j].z);
        mine = warp_max(mine);
        if (b.lane == 0) best[b.warp] = mine;
    }
    sync_workers();
    u64 best_of_all = best[0];
#pragma unroll
    for (u32 w = 1; w < Samplers::WARPS; w++) best_of_all = max(best_of_all, best[w]);
    return s.part() ? pick_alone(b, s, t, p, largest, best_of_all) : token_of(best_of_all);
}
