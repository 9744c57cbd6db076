// A warp of decode_shards.cu that computes: what it hands over and receives, its products and norms, and the sums over clusters.
#pragma once
#include "grid_keys.cuh"
#include "grid_words.cuh"
#include "shard_ring.cuh"

constexpr u32 THREADS_ALL = WORKERS + FETCHERS * WARP;

// sum + weight v.
__device__ inline float4 add(float4 sum, float weight, float4 v) {
    return make_float4(fmaf(weight, v.x, sum.x), fmaf(weight, v.y, sum.y), fmaf(weight, v.z, sum.z), fmaf(weight, v.w, sum.w));
}

// The same values: not to be made later, when others wait for them.
__device__ inline float4 now(float4 v) {
    asm volatile("" : "+f"(v.x), "+f"(v.y), "+f"(v.z), "+f"(v.w));
    return v;
}

// The warps that compute meet.
__device__ inline void meet() { asm volatile("bar.sync 1, %0;" ::"n"(WORKERS) : "memory"); }

// Positions between a warp's groups, how often until the context is full, and groups that are in registers before the query comes.
constexpr u32 ROUND = WARPS * SPLITS * KEYS, ROUNDS = divide_up(CONTEXT, ROUND), GROUPS_AHEAD = smaller(ROUNDS, KEY_LOADS + VALUE_LOADS <= 4 ? 2 : 1);

// Weights in registers: the first rows of a warp's. They are float32 already: that is done while values are on their way.
template <Stage S> struct Held {
    float4 part[held_rows(S)][chunks(S)];
};
// What a layer's attention begins with.
struct Ahead {
    Held<QKV> held;
    Rows cached[GROUPS_AHEAD];
    float2 ab;
};

// A warp that computes.
struct Worker {
    const GridArguments &g;
    const float2 *sums; // [SUMS]
    Shared &s;
    Reader reader;
    u32 cluster, rank, warp, lane;
    Part heads;
    Part qkv, res, up;             // the warp's rows of the cluster's, and of the residual stream
    u32 parities = 0;              // of the handoffs awaited next
    Clock clock;
    float mean = 0, own = 0;       // of the last norm; the row of the residual stream that this lane sums
    Moments moments;               // of the residual stream, this lane's part

    __device__ Worker(const GridArguments &g, const float2 *sums, Shared &s)
        : g(g), sums(sums), s(s), reader(s), cluster(uniform(blockIdx.x / N)), rank(uniform(cluster_rank())),
          warp(uniform(threadIdx.x / WARP)), lane(threadIdx.x % WARP), heads(heads_of(cluster)), qkv(warp_rows(QKV, cluster, rank, warp)),
          res(warp_rows(OUT, cluster, rank, warp)), up(warp_rows(UP, cluster, rank, warp)) {}

    // What follows from the lane is worked out again from here on: kept in registers over all layers, it would not fit.
    __device__ void forget() { asm volatile("" : "+r"(lane)); }

    // ---- handoffs within the cluster ----

    __device__ u32 base() const { return shared_address(&s); }
    __device__ u32 offset(const void *p) const { return shared_address(p) - base(); }
    static __device__ constexpr u32 barrier(u32 handoff) { return handoff * sizeof(u64); }

    // What one brings to a block of a cluster.
    static __device__ u32 bytes(u32 handoff, u32 cluster) {
        return handoff == QUERY    ? 3 * D * sizeof(float)
               : handoff == CORE   ? SPLITS * heads_of(cluster).count * (D * sizeof(Element) + sizeof(Mass))
               : handoff == HIDDEN ? units_of(cluster).count * sizeof(float)
                                   : C * sizeof(float) + N * WARPS * sizeof(float2);
    }
    // Waits for a handoff and makes its barrier ready for the next.
    template <u32 HANDOFF> __device__ void await() {
        clock.worked(HANDOFF);
        ::await(base() + barrier(HANDOFF), parities >> HANDOFF & 1);
        clock.waited(HANDOFF);
        parities ^= 1u << HANDOFF;
    }
    // Makes its barrier ready for the next, which cannot be complete before.
    template <u32 HANDOFF> __device__ void expect() const {
        if (threadIdx.x == 0) barrier_expect(base() + barrier(HANDOFF), bytes(HANDOFF, cluster));
    }
    // Sends a warp's `count` rows, at most R, that lane r % LANES<R> holds, to all blocks: to `buffer`, the first row's place.
    template <u32 HANDOFF, u32 R> __device__ void broadcast(float value, const float *buffer, u32 count) const {
        constexpr u32 GROUPS = WARP / LANES<R>;
        u32 row = lane % LANES<R>, at = offset(buffer + row);
#pragma unroll
        for (u32 i = 0; i < divide_up(N, GROUPS); i++) {
            u32 to = lane / LANES<R> + i * GROUPS, there = in_block(base(), to);
            if (row < count && (N % GROUPS == 0 || to < N)) send(there + at, value, there + barrier(HANDOFF));
        }
    }

    // ---- products ----

    // Brings the weights of the warp's rows from `FIRST` on, as many as registers hold.
    template <Stage S, u32 FIRST = 0> __device__ void load(Held<S> &held, bool there = true) const {
        constexpr u32 EACH = section_rows(S), ROWS = warp_rows_max(S), LAST = smaller(FIRST + held_rows(S), ROWS);
#pragma unroll
        for (u32 row = FIRST; row < LAST; row++) {
            u32 r = row - FIRST, ahead = row / EACH - FIRST / EACH;
            if (there && (r == 0 || row % EACH == 0)) reader.await(ahead);
            const Four<Element> *at = reinterpret_cast<const Four<Element> *>(reader.section(ahead) + row % EACH * row_bytes(S)) + lane;
#pragma unroll
            for (u32 c = 0; c < chunks(S); c++) held.part[r][c] = now(at[c * WARP].values());
        }
    }
    // sum[r] = row r of the warp's times x, for this lane's columns. The first weights are held already. Where a warp has fewer rows, or x
    // fewer columns, what stands there instead is of no effect. Slots are given back here, not when they were read: what fills them would be
    // on its way together with what others wait for.
    template <Stage S, u32 FIRST = 0> __device__ void multiply(float (&sum)[warp_rows_max(S)], const float4 (&x)[chunks(S)], Held<S> &held) {
        constexpr u32 EACH = section_rows(S), ROWS = warp_rows_max(S), LAST = smaller(FIRST + held_rows(S), ROWS);
        bool read = false;
#pragma unroll
        for (u32 r = FIRST; r < LAST; r++) {
            sum[r] = 0;
#pragma unroll
            for (u32 c = 0; c < chunks(S); c++) sum[r] = dot4(held.part[r - FIRST][c], x[c], sum[r]);
            read |= __float_as_uint(sum[r]) != ALL_LANES; // always: no sum is that NaN
        }
        reader.release((LAST == ROWS ? divide_up(LAST, EACH) : LAST / EACH) - FIRST / EACH, read);
        if constexpr (LAST < ROWS) {
            load<S, LAST>(held);
            multiply<S, LAST>(sum, x, held);
        }
    }

    // ---- norms ----

    // Brings the residual stream and its moments.
    __device__ void read(float4 (&x)[chunks(QKV)], const Stream &from) {
#pragma unroll
        for (u32 c = 0; c < chunks(QKV); c++) x[c] = load4(from.x + c * CHUNK + lane * 4);
        moments = {};
#pragma unroll
        for (u32 i = 0; i < MOMENTS / WARP; i++) {
            float2 theirs = from.moments[i * WARP + lane];
            moments.sum += theirs.x, moments.squares += theirs.y;
        }
    }
    // Sends the warp's rows of the residual stream, `weight` being the norm's of this lane's row.
    template <u32 HANDOFF> __device__ void publish(Stream &to, float weight) const {
        constexpr u32 R = warp_rows_max(OUT);
        float away = own - mean;
        broadcast<HANDOFF, R>(away * weight, to.x + res.first, res.count);
        Moments mine = {};
        if (lane % LANES<R> < res.count) mine = {away, away * away};
#pragma unroll
        for (u32 lanes = 1; lanes < LANES<R>; lanes *= 2) mine.add_lane(lanes);
        u32 there = in_block(base(), lane % N);
        if (lane < N) send(there + offset(&to.moments[rank * WARPS + warp]), mine.sum, mine.squares, there + barrier(HANDOFF));
    }
    // The mean, from the sums over all lanes, and the scale.
    __device__ float2 statistics() const {
        float shift = moments.sum * (1.0f / C);
        return make_float2(shift, rsqrtf(fmaxf(moments.squares * (1.0f / C) - shift * shift, 0.0f) + g.eps));
    }
    // The rows' products from the lanes' parts of them.
    template <u32 R> __device__ float normed(const float (&parts)[R], float2 ab) {
        float dot = spread_sum(parts, moments);
        float2 norm = statistics();
        mean += norm.x;
        return fmaf(norm.y, fmaf(-norm.x, ab.x, dot), ab.y);
    }

    // The row of the residual stream that this lane sums, and the row of R whose sum it gets.
    __device__ u32 own_row() const { return res.first + smaller(lane % LANES<warp_rows_max(OUT)>, res.count - 1); }
    template <u32 R> __device__ u32 row_of(Part part) const { return part.first + smaller(lane % LANES<R>, larger(part.count, 1) - 1); }

    __device__ void embed(const Token &t);
    __device__ void begin(Ahead &next, u32 layer, u32 past, bool weights, bool there);
    __device__ void attention(Ahead &ahead, Held<UP> &next, u32 layer, u32 past, u32 epoch);
    __device__ void core(const Cache &cache, Rows (&cached)[GROUPS_AHEAD], u32 past);
    __device__ void merge() const;
    __device__ void core_row(float4 (&x)[chunks(OUT)]) const;
    __device__ void mlp(Held<UP> &held, Ahead &next, u32 layer, u32 past, u32 epoch);
    template <u32 BUFFER, typename Meanwhile> __device__ float reduce(float partial, u32 epoch, Meanwhile meanwhile);
    __device__ void head();
    __device__ u32 pick(Token &t);
};

// Adds up the clusters' partial sums of the warp's rows: publishes ours and brings the others'. All lanes of a row get its sum. `meanwhile` is
// done while they are on their way.
template <u32 BUFFER, typename Meanwhile> __device__ float Worker::reduce(float partial, u32 epoch, Meanwhile meanwhile) {
    constexpr u32 L = LANES<warp_rows_max(OUT)>, GROUPS = WARP / L, WORDS = divide_up(SHARDS, GROUPS);
    u32 group = lane / L, row = lane % L;
    bool has = row < res.count;
    u64 *words = reinterpret_cast<u64 *>(g.exchange) + BUFFER * SHARDS * C + res.first + row, word[WORDS];
    if (group == 0 && has)
        asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(words + cluster * C), "l"(u64(epoch) << 32 | __float_as_uint(partial)) : "memory");
    meanwhile();
    clock.worked(HANDOFFS + BUFFER);
    words += group * C;
    auto peek = [&](u32 i) {
        asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(word[i]) : "l"(words + i * GROUPS * C) : "memory");
    };
#pragma unroll
    for (u32 i = 0; i < WORDS; i++) {
        u32 theirs = i * GROUPS + group;
        word[i] = u64(epoch) << 32 | (theirs == cluster ? __float_as_uint(partial) : 0);
        if (has && theirs < SHARDS && theirs != cluster) peek(i);
    }
    for (u32 round = 0;; round++) {
        bool there = true;
#pragma unroll
        for (u32 i = 0; i < WORDS; i++) there &= u32(word[i] >> 32) == epoch;
        if (__all_sync(ALL_LANES, there)) break;
        GRID_ON_SPIN(round, words, epoch)
#pragma unroll
        for (u32 i = 0; i < WORDS; i++)
            if (u32(word[i] >> 32) != epoch) peek(i);
    }
    clock.waited(HANDOFFS + BUFFER);
    float sum = 0;
#pragma unroll
    for (u32 i = 0; i < WORDS; i++) sum += __uint_as_float(u32(word[i]));
#pragma unroll
    for (u32 lanes = L; lanes < WARP; lanes *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, lanes);
    return sum;
}
