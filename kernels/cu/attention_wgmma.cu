// Attention of many queries through Hopper's warpgroup products; as attention.cu says, in bfloat16, for heads of 64.
//
// A block of four warpgroups a multiprocessor, and no more: which of them serves what is written here (`Errand`), because the order in which
// multiprocessors become free would heap the longest queries on the first ones. Two warpgroups are a team, which serves 64 queries of a head
// at a time, a warp of each 16; they take turns with tiles of 64 keys, which the copy engine brings three ahead, and add up what they have
// at the end. The scores of the next tile are asked for together with the sums of the last, which then run beside the softmax. A running
// maximum and sum a query; scores and sums are float32. The weights of the values enter the tensor cores as two bfloat16 halves, so that
// they are not rounded to one. Grid (blocks). Deterministic. Hopper alone. Launcher: src/attention.rs.
#include "attention_mma.cu"
#include "hopper.cuh"

constexpr u32 TEAMS = 2, SLOTS = 3, HEAD_TILE_BYTES = 64 * 128;
constexpr u32 WARPGROUP_TILE_BYTES = (1 + 2 * SLOTS) * HEAD_TILE_BYTES; // queries, keys, values
constexpr float EXPONENT_SCALE = 1.44269504088896341f / 8;              // scores are exponents of two

// Waits for the other threads of a warpgroup, or of a team; barrier 0 is the block's.
__device__ inline void meet_warpgroup() { asm volatile("bar.sync %0, 128;" ::"r"(1 + threadIdx.x / 128) : "memory"); }
__device__ inline void meet_team() { asm volatile("bar.sync %0, 256;" ::"r"(1 + TEAMS * 2 + threadIdx.x / 256) : "memory"); }

// 64 queries of a head. The last ones see the most keys, and come first; each second row of blocks comes backwards, and of teams too, so
// that who got a long errand gets a short one next.
struct Errand {
    u32 sequence, head, first;
    bool any;
    __device__ Errand(u32 lap, const CacheShape &s) {
        u32 team = threadIdx.x / 256, row = lap * TEAMS + (lap % 2 ? TEAMS - 1 - team : team);
        u32 item = row * gridDim.x + (row % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x), heads = s.heads * s.batch, panels = (s.time + 63) / 64;
        any = item < heads * panels;
        sequence = item % s.batch, head = item / s.batch % s.heads, first = (panels - 1 - item / heads) * 64;
    }
};

// A warpgroup's tiles: queries, then rings of keys and values.
struct HeadTiles {
    const TensorMap *keys, *values;
    u32 base, barriers;
    __device__ u32 key(u32 slot) const { return base + (1 + slot) * HEAD_TILE_BYTES; }
    __device__ u32 value(u32 slot) const { return base + (1 + SLOTS + slot) * HEAD_TILE_BYTES; }
    __device__ u32 key_ready(u32 slot) const { return barriers + slot * 8; }
    __device__ u32 value_ready(u32 slot) const { return barriers + (SLOTS + slot) * 8; }
    // Asks for the tile from `row` of the cache on; `more` bytes come with the keys.
    __device__ void ask(u32 slot, u32 row, u32 more) const {
        barrier_expect(key_ready(slot), HEAD_TILE_BYTES + more), barrier_expect(value_ready(slot), HEAD_TILE_BYTES);
        copy_box(key(slot), keys, 0, row, key_ready(slot)), copy_box(value(slot), values, 0, row, value_ready(slot));
    }
};
// Where a warpgroup stands in its rings; it goes on from errand to errand.
struct Turn {
    u32 slot, parity;
    __device__ void pass() {
        if (++slot == SLOTS) slot = 0, parity ^= 1;
    }
};

// What 64 queries have seen: of a warp's 16, each lane has two.
struct Seen {
    float out[32] = {}, maximum[2] = {MINUS_INFINITY, MINUS_INFINITY}, total[2] = {}, fade[2];
    u32 whole[16], rest[16]; // of the weights

    __device__ static void ask_scores(float (&score)[32], const HeadTiles &tiles, Turn turn) {
#pragma unroll
        for (int j = 0; j < 32; j++) score[j] = 0;
        settle(score); // it is zero before the first product
        open_products();
#pragma unroll
        for (u32 k = 0; k < 4; k++) Warpgroup<64>::multiply(score, operand(tiles.base) + k * 2, operand(tiles.key(turn.slot)) + k * 2);
        commit_products();
    }
    // Makes weights of scores, in their place. Of a tile that a query does not see all weights are zero, whatever they are held against.
    __device__ void weigh(float (&score)[32]) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float high[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float *a = score + j * 8 + half * 2;
                high[j] = fmaxf(fmaxf(a[0], a[1]), fmaxf(a[4], a[5]));
            }
            float highest = fmaxf(fmaxf(fmaxf(high[0], high[1]), fmaxf(high[2], high[3])), maximum[half]);
            highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, 1));
            highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, 2));
            float against = highest == MINUS_INFINITY ? 0 : highest, shift = -against * EXPONENT_SCALE, sum[2] = {};
            fade[half] = power_of_two((maximum[half] - against) * EXPONENT_SCALE);
            maximum[half] = highest;
#pragma unroll
            for (int j = 0; j < 32; j += 4) {
                float &a = score[j + half * 2], &b = score[j + half * 2 + 1];
                a = power_of_two(fmaf(a, EXPONENT_SCALE, shift)), b = power_of_two(fmaf(b, EXPONENT_SCALE, shift));
                sum[0] += a, sum[1] += b;
            }
            total[half] = fmaf(total[half], fade[half], sum[0] + sum[1]);
        }
    }
    __device__ void fade_out() {
        settle(out);
#pragma unroll
        for (int j = 0; j < 32; j++) out[j] *= fade[j / 2 % 2];
    }
    __device__ void pack_weights(const float (&score)[32]) {
#pragma unroll
        for (int j = 0; j < 16; j++) {
            whole[j] = pack(score[j * 2], score[j * 2 + 1]);
            rest[j] = pack_rest(score[j * 2], score[j * 2 + 1], whole[j]);
        }
    }
    __device__ void ask_sums(u32 values) {
        settle(out);
        open_products();
#pragma unroll
        for (u32 k = 0; k < 8; k++) {
            const u32 *w = (k < 4 ? whole : rest) + k % 4 * 4;
            u32 a[4] = {w[0], w[1], w[2], w[3]};
            multiply_rows(out, a, operand(values) + k % 4 * 128);
        }
        commit_products();
    }
    // Leaves it in shared memory for the same thread of the other warpgroup, and adds what is there.
    __device__ void leave(float *left) const {
#pragma unroll
        for (int j = 0; j < 32; j++) left[j * 128] = out[j];
#pragma unroll
        for (int half = 0; half < 2; half++) left[(32 + half) * 128] = maximum[half], left[(34 + half) * 128] = total[half];
    }
    __device__ void add(const float *left) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float other = left[(32 + half) * 128], highest = fmaxf(maximum[half], other);
            float mine = power_of_two((maximum[half] - highest) * EXPONENT_SCALE), theirs = power_of_two((other - highest) * EXPONENT_SCALE);
            total[half] = fmaf(total[half], mine, left[(34 + half) * 128] * theirs);
#pragma unroll
            for (int j = half * 2; j < 32; j += j % 2 ? 3 : 1) out[j] = fmaf(out[j], mine, left[j * 128] * theirs);
        }
    }
    // y [rows, channels] from the team's first query and the head's first channel on.
    __device__ void store(bf16 *y, u32 rows, u32 channels) {
        u32 lane = threadIdx.x % WARP;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            total[half] += __shfl_xor_sync(ALL_LANES, total[half], 1);
            total[half] += __shfl_xor_sync(ALL_LANES, total[half], 2);
            float inverse = 1.0f / total[half];
            u32 row = threadIdx.x % 128 / WARP * 16 + lane / 4 + half * 8;
#pragma unroll
            for (int j = 0; j < 8; j += 4) {
                u32 v[4];
#pragma unroll
                for (int i = 0; i < 4; i++) v[i] = pack(out[(j + i) * 4 + half * 2] * inverse, out[(j + i) * 4 + half * 2 + 1] * inverse);
                transpose(v);
                if (row < rows) *reinterpret_cast<uint4 *>(y + u64(row) * channels + (j + lane % 4) * 8) = make_uint4(v[0], v[1], v[2], v[3]);
            }
        }
    }
};

// The keys that 64 queries see, `seen` of them, the first query `own`; a warpgroup takes each second tile, from `half` on.
struct Span {
    u32 own, seen, half;
    __device__ u32 tile(u32 i) const { return i * 2 + half; }
    __device__ u32 count() const { return ((seen + 63) / 64 + 1 - half) / 2; }
    // Scores of keys behind a query's own are out.
    __device__ void mask(float (&score)[32], u32 i) const {
        u32 warp = threadIdx.x % 128 / WARP, lane = threadIdx.x % WARP, start = tile(i) * 64, last = own + warp * 16;
        if (start + 63 <= last) return;
#pragma unroll
        for (int j = 0; j < 32; j++)
            if (start + j / 4 * 8 + lane % 4 * 2 + j % 2 > last + lane / 4 + j / 2 % 2 * 8) score[j] = MINUS_INFINITY;
    }
    // What lies behind the rows that are seen may be no number.
    __device__ void clear(u32 values, u32 i) const {
        if (tile(i) * 64 + 64 <= seen) return;
        extern __shared__ char shared[];
        for (u32 j = (seen - tile(i) * 64) * 8 + threadIdx.x % 128; j < 64 * 8; j += 128)
            reinterpret_cast<uint4 *>(shared + (values - shared_address(shared)))[j] = make_uint4(0, 0, 0, 0);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        meet_warpgroup();
    }
};

// What a warpgroup's tiles give its queries. `cached` is the head's first row in the cache.
__device__ inline void look(Seen &seen, const HeadTiles &tiles, Turn &turn, const Span &span, u32 cached) {
    u32 count = span.count();
    float score[32];
    if (count == 0) return;
    auto weigh = [&](u32 i) {
        settle(score);
        span.mask(score, i);
        seen.weigh(score);
        settle(score);
    };
    auto ask_sums = [&](Turn turn, u32 i) {
        barrier_await(tiles.value_ready(turn.slot), turn.parity);
        span.clear(tiles.value(turn.slot), i);
        seen.ask_sums(tiles.value(turn.slot));
    };
    auto await_keys = [&] { barrier_await(tiles.key_ready(turn.slot), turn.parity); };
    await_keys();
    seen.ask_scores(score, tiles, turn);
    await_products<0>();
    weigh(0);
    seen.pack_weights(score);
    Turn last = turn;
    turn.pass();
    if (count > 1) await_keys();
    for (u32 i = 1; i < count; i++) {
        seen.ask_scores(score, tiles, turn);
        ask_sums(last, i - 1);
        await_products<1>();
        weigh(i);
        Turn now = turn;
        turn.pass();
        if (i + 1 < count) await_keys(); // a branch: without one the assembler awaits the sums before it makes the weights
        await_products<0>();
        seen.fade_out();
        seen.pack_weights(score);
        meet_warpgroup(); // all warps are done with the last tile
        u32 next = i - 1 + SLOTS;
        if (threadIdx.x % 128 == 0 && next < count) tiles.ask(last.slot, cached + span.tile(next) * 64, 0);
        last = now;
    }
    ask_sums(last, count - 1);
    await_products<0>();
    settle(seen.out);
}

__device__ inline void attention_wgmma(const TensorMap *q, const TensorMap *keys, const TensorMap *values, bf16 *y, const Cursor *cursor,
                                       const CacheShape &s) {
    extern __shared__ char shared[];
    u32 group = __shfl_sync(ALL_LANES, threadIdx.x / 128, 0), half = group % 2; // the same in a warp: the compiler keeps addresses once
    u32 start = (shared_address(shared) + 1023) / 1024 * 1024;
    u32 barriers = start + TEAMS * 2 * WARPGROUP_TILE_BYTES;
    HeadTiles tiles = {keys, values, start + group * WARPGROUP_TILE_BYTES, barriers + group * SLOTS * 16};
    Turn turn = {0, 0};
    u32 second = start + (group | 1) * WARPGROUP_TILE_BYTES + HEAD_TILE_BYTES; // the keys of the team's second warpgroup
    float *left = reinterpret_cast<float *>(shared + (second - shared_address(shared))) + threadIdx.x % 128;
    release_next();
    if (threadIdx.x == 0) {
        fetch_map(q), fetch_map(keys), fetch_map(values);
        for (u32 i = 0; i < TEAMS * 2 * SLOTS * 2; i++) barrier_init(barriers + i * 8, 1);
        publish_barriers();
    }
    __syncthreads();
    u32 panels = (s.time + 63) / 64, channels = s.heads * 64;
    for (u32 lap = 0; lap * TEAMS * gridDim.x < panels * s.heads * s.batch; lap++) {
        Errand errand(lap, s);
        u32 past = errand.any ? cursor[errand.sequence].past : 0;
        if (lap == 0) await_previous();
        if (!errand.any) continue;
        u32 first = errand.first, cached = (errand.sequence * s.heads + errand.head) * s.context, row = errand.sequence * s.time + first;
        Span span = {past + first, min(past + min(first + 64, s.time), s.context), half};
        if (threadIdx.x % 128 == 0) {
            Turn ahead = turn;
            for (u32 i = 0; i < min(span.count(), SLOTS); i++, ahead.pass())
                tiles.ask(ahead.slot, cached + span.tile(i) * 64, i == 0 ? HEAD_TILE_BYTES : 0);
            if (span.count() > 0) copy_box(tiles.base, q, errand.head * 64, row, tiles.key_ready(turn.slot));
        }
        Seen seen;
        look(seen, tiles, turn, span, cached);
        if (half == 1) {
            meet_warpgroup(); // all warps are done with the keys there
            seen.leave(left);
        }
        meet_team();
        if (half == 0) seen.add(left), seen.store(y + u64(row) * channels + errand.head * 64, s.time - first, channels);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); // copies may follow what was read and written here
        meet_team();
    }
}

extern "C" __global__ void __launch_bounds__(512, 1) attention_wgmma_bf16(const __grid_constant__ TensorMap q,
                                                                          const __grid_constant__ TensorMap keys,
                                                                          const __grid_constant__ TensorMap values, bf16 *y,
                                                                          const Cursor *cursor, CacheShape s) {
#if HOPPER
    attention_wgmma(&q, &keys, &values, y, cursor, s);
#endif
}
