// How the blocks of a launch pick a token together (pick.cuh), each from the logits of its own rows of the head.
//
// Words (grid_words.cuh) travel in rounds. In each, every block needs what every other one tells, so that places are free again two rounds later. Any
// rule is a few sums and maxima over all blocks, of a round each. Two rounds do for top-k: blocks tell their largest scores, of which so many make
// a bound that top-k scores are known to reach, and then what reaches it. Where the vocabulary is small, one does: blocks tell all that they have.
//
// By the first PICKERS threads of each block, which hold a row of the head each, or a few; all of them get the token. What is run once a token comes
// from L2, instructions too: so there are few of them, and loops stay loops.
#pragma once
#include "grid_words.cuh"
#include "pick.cuh"

// Threads that pick; words of a block in a round, and copies of them, so that not all blocks poll the same; scores that are picked from in a list,
// mostly few; and how many of its largest a block may be asked to count.
constexpr u32 PICKERS = 256, PICK_SLOTS = 32, PICK_COPIES = 4, LISTED = 512, LISTED_SOON = 128, LARGEST_MAX = 8;
constexpr u32 PICK_WORDS = 2 * PICK_COPIES * BLOCKS * PICK_SLOTS, KEYS_A_LANE = divide_up(BLOCKS, WARP);
static_assert(BLOCKS <= PICKERS, "a thread hears a block");
static_assert(PICK_COPIES * PICK_SLOTS <= PICKERS && PICK_SLOTS == WARP, "a warp tells a copy");

// The block's rows of the head at most.
constexpr u32 HEAD_ROWS = divide_up(VOCAB, BLOCKS), HEAD_HELD = divide_up(HEAD_ROWS, PICKERS);
constexpr bool ALL_LISTED = VOCAB <= LISTED && HEAD_ROWS <= PICK_SLOTS;
// Words of a block that are read at once.
constexpr u32 AT_ONCE = ALL_LISTED && HEAD_ROWS == 1 ? 1 : 4;

typedef WholeBlock<PICKERS, 15> Pickers;

// Scores of all blocks, in any order.
struct List {
    u32 length, keys[LISTED];
    u64 ranks[LISTED]; // with the noise

    __device__ void add(const uint4 &told) {
        u32 i = atomicAdd(&length, 1);
        if (i < LISTED) keys[i] = told.x, ranks[i] = u64(told.y) << 32 | told.z;
    }
};

// A list in the registers of a warp, HELD scores a lane, with the interface of Scores; of each what it is compared by.
template <u32 HELD> struct ListScores {
    u32 keys[HELD];
    u64 ranks[HELD];

    __device__ ListScores(const List &list) {
#pragma unroll
        for (u32 j = 0; j < HELD; j++) {
            u32 i = threadIdx.x % WARP + j * WARP;
            keys[j] = i < list.length ? list.keys[i] : 0, ranks[j] = i < list.length ? list.ranks[i] : 0;
        }
    }
    __device__ u32 count(u32 key) const {
        u32 own = 0;
#pragma unroll
        for (u32 j = 0; j < HELD; j++) own += keys[j] >= key;
        return warp_count(own);
    }
    __device__ Masses masses(u32 low, u32 high, float largest) const {
        Masses own = {0, 0};
#pragma unroll
        for (u32 j = 0; j < HELD; j++) own.add(of_key(keys[j]), low, high, largest);
        return {warp_sum(own.kept), warp_sum(own.above)};
    }
    __device__ float largest() const {
        u32 own = 0;
#pragma unroll
        for (u32 j = 0; j < HELD; j++) own = max(own, keys[j]);
        return of_key(warp_max(own));
    }
    __device__ u64 draw(u32 key) const {
        u64 best = 0;
#pragma unroll
        for (u32 j = 0; j < HELD; j++) best = max(best, keys[j] >= key ? ranks[j] : 0);
        return warp_max(best);
    }
    __device__ u32 key_of(u64 best) const {
        u32 own = 0;
#pragma unroll
        for (u32 j = 0; j < HELD; j++) own = ranks[j] == best ? keys[j] : own;
        return warp_max(own);
    }
    __device__ u32 pick(const Sampling &s) const { return choose(s, *this, draw(0), s.part() ? largest() : 0); }
};

// What lies in shared memory while a block picks.
struct PickShared {
    List list;
    u64 of_warp[Pickers::WARPS];
    u32 key[KEYS_A_LANE * WARP]; // what each block told
    u32 own_count;               // of scores that this block tells
    alignas(16) uint4 own[PICK_SLOTS];
};
static_assert(sizeof(PickShared) <= 8192 - 128, "the host leaves so much");

// Who picks together: the pickers of all blocks.
struct WholeGrid {
    static constexpr u32 THREADS = PICKERS;
    PickShared &shared;
    uint4 *words; // [2][PICK_COPIES][BLOCKS][PICK_SLOTS]
    u32 &round;   // the last one; the same in all blocks

    __device__ Pickers block() const { return {shared.of_warp}; }
    __device__ uint4 *place(u32 copy, u32 block) const { return words + ((round % 2 * PICK_COPIES + copy) * BLOCKS + block) * PICK_SLOTS; }
    // Tells all blocks the words of a warp's lanes, of which there are `count`, by a warp a copy.
    __device__ void tell(const uint4 &told, u32 count) const {
        u32 copy = threadIdx.x / WARP, slot = threadIdx.x % WARP;
        if (copy < PICK_COPIES && slot < count) send(place(copy, blockIdx.x) + slot, told.x, told.y, told.z, round);
    }
    // Where a block's words are for this block.
    __device__ const uint4 *told_by(u32 block) const { return place(blockIdx.x % PICK_COPIES, smaller(block, BLOCKS - 1)); }
    // Tells all blocks, and hears one of them: 0 where there is none for this thread. The lower half travels twice: all of a word must be of use.
    __device__ u64 exchange(u64 told) const {
        round++;
        tell(make_uint4(u32(told), u32(told >> 32), u32(told), 0), 1);
        uint4 heard[1] = {};
        const uint4 *at[] = {told_by(threadIdx.x)};
        receive(heard, at, round, threadIdx.x < BLOCKS);
        return threadIdx.x < BLOCKS ? u64(heard[0].y) << 32 | heard[0].x & heard[0].z : 0;
    }
    __device__ u64 sum(u64 x) const { return block().sum(exchange(block().sum(x))); }
    __device__ u32 sum(u32 x) const { return u32(block().sum(exchange(block().sum(x)))); }
    template <typename V> __device__ V max(V x) const { return V(block().max(exchange(block().max(x)))); }
};

// The scores of the block's rows.
struct HeadScores : Scores<HEAD_HELD, WholeGrid> {
    // Which of the block's rows this thread holds: where all are listed, each warp has all of them.
    static __device__ u32 row(u32 j) { return ALL_LISTED ? threadIdx.x % WARP : threadIdx.x + j * PICKERS; }

    // Makes the noise, before there are logits. The block's rows are tokens from `first` on.
    __device__ HeadScores(const Sampling &s, WholeGrid team, u32 first, u32 rows, u32 step) : Scores(s, team) {
#pragma unroll
        for (u32 j = 0; j < HEAD_HELD; j++) {
            if (row(j) >= rows) continue;
            token[j] = first + row(j);
            if (!s.greedy) noise[j] = gumbel(token[j], step, s);
        }
    }
    // Takes the logits of the rows, which other threads wrote.
    __device__ void read(const float *logits) {
        if (threadIdx.x == 0) team.shared.list.length = team.shared.own_count = 0;
        Pickers::sync();
#pragma unroll
        for (u32 j = 0; j < HEAD_HELD; j++)
            if (token[j] != NOBODY) score[j] = s.score(logits[row(j)]);
    }

    __device__ u32 pick() const {
        if constexpr (ALL_LISTED) {
            team.round++;
            team.tell(word(0), divide_up(HEAD_ROWS, AT_ONCE) * AT_ONCE);
            return pick_listed();
        }
        bool all = !s.few() && !s.part();
        u32 largest = all ? 1 : divide_up(s.top_k, larger(BLOCKS / 2, 1));
        if (all || s.few() && largest <= LARGEST_MAX) {
            u64 best = ~0ull;
#pragma unroll 1
            for (u32 i = 0; i < largest; i++) best = team.block().max(best_below(best, all));
            u64 heard = team.exchange(best);
            if (all) return token_of(team.block().max(heard));
            tell_reaching(bound(heard, largest));
            u32 token = pick_listed();
            if (token != NOBODY) return token;
        }
        return Scores::pick();
    }
    // The thread's best score below one, with the noise or without.
    __device__ u64 best_below(u64 above, bool with_noise) const {
        u64 best = 0;
#pragma unroll
        for (u32 j = 0; j < HEAD_HELD; j++) {
            u64 own = rank(score[j] + (with_noise ? noise[j] : 0.0f), token[j]);
            if (own < above) best = max(best, own);
        }
        return best;
    }
    // Of each block's `largest`-th score so large a key that top-k scores reach it, and never that of a NaN.
    __device__ u32 bound(u64 heard, u32 largest) const {
        u32 key[KEYS_A_LANE], low = ~0u, high = 0;
        if (threadIdx.x < KEYS_A_LANE * WARP) team.shared.key[threadIdx.x] = u32(heard) != 0 ? heard >> 32 : 0; // a token's, or none's
        Pickers::sync();
#pragma unroll
        for (u32 i = 0; i < KEYS_A_LANE; i++) {
            u32 block = threadIdx.x % WARP + i * WARP;
            key[i] = team.shared.key[block];
            low = min(low, block < BLOCKS ? key[i] : ~0u), high = max(high, key[i]);
        }
        u32 least = kth_key(divide_up(s.top_k, largest), ~warp_max(~low), warp_max(high) + 1, 8, [&](u32 middle) {
            u32 reached = 0;
#pragma unroll
            for (u32 i = 0; i < KEYS_A_LANE; i++) reached += key[i] >= middle;
            return warp_count(reached);
        });
        return max(least, 1u);
    }

    // A score as blocks tell it; none has the last word 0.
    __device__ uint4 word(u32 j) const {
        return make_uint4(sort_key(score[j]), sort_key(score[j] + noise[j]), NOBODY - token[j], 0);
    }
    // Tells all blocks which of the block's scores reach a key: a list that ends with a word that is none.
    __device__ void tell_reaching(u32 key) const {
        PickShared &shared = team.shared;
#pragma unroll
        for (u32 j = 0; j < HEAD_HELD; j++) {
            if (token[j] == NOBODY || !(score[j] >= of_key(key))) continue;
            u32 i = atomicAdd(&shared.own_count, 1);
            if (i < PICK_SLOTS) shared.own[i] = word(j);
        }
        Pickers::sync();
        team.round++;
        u32 count = shared.own_count, slot = threadIdx.x % WARP;
        uint4 told = slot < count ? shared.own[slot] : make_uint4(0, 0, 0, 0);
        team.tell(told, divide_up(smaller(count + 1, PICK_SLOTS), AT_ONCE) * AT_ONCE);
    }
    // Picks from what all blocks tell; NOBODY where that is too much.
    __device__ u32 pick_listed() const {
        hear();
        const List &list = team.shared.list;
        u32 length = warp_max(list.length);
        if (length <= LISTED_SOON) return ListScores<LISTED_SOON / WARP>(list).pick(s);
        return length <= LISTED ? ListScores<LISTED / WARP>(list).pick(s) : NOBODY;
    }
    __device__ void hear() const {
        constexpr u32 GROUPS = PICKERS / AT_ONCE, EACH = divide_up(BLOCKS, GROUPS);
        List &list = team.shared.list;
        const uint4 *at[EACH];
        bool open[EACH], any = true;
        u32 count = 0;
#pragma unroll
        for (u32 i = 0; i < EACH; i++) {
            u32 block = threadIdx.x / AT_ONCE + i * GROUPS;
            open[i] = block < BLOCKS, count += open[i];
            at[i] = team.told_by(block) + threadIdx.x % AT_ONCE;
        }
#pragma unroll 1
        for (u32 next = AT_ONCE; any; next += AT_ONCE) {
            uint4 v[EACH];
            receive(v, at, team.round, count);
            any = false;
#pragma unroll
            for (u32 i = 0; i < EACH; i++) {
                if (open[i] && v[i].z != 0) list.add(v[i]);
                if constexpr (ALL_LISTED) {
                    open[i] &= next < HEAD_ROWS;
                } else {
                    open[i] &= __shfl_sync(ALL_LANES, v[i].z, threadIdx.x | (AT_ONCE - 1)) != 0;
                    if (open[i] && next == PICK_SLOTS) atomicAdd(&list.length, LISTED), open[i] = false;
                }
                at[i] += open[i] ? AT_ONCE : 0;
                any |= open[i];
            }
            any = __any_sync(ALL_LANES, any);
        }
        Pickers::sync();
    }
};
