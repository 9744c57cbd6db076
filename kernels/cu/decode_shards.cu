// A whole generation in one launch: `steps` tokens of a batch of one, over clusters that each hold a shard of the model (tensor parallelism).
//
// For models whose weights exceed a cluster's memory, on GPUs with clusters. A cluster makes q, k, v and attention of its heads, and its share of the
// MLP's hidden units; its blocks share each product's rows and hand results over by stores that count themselves on the receiver's barrier. The
// products that lead back to the residual stream are partial sums, a cluster's own columns: block i of every cluster makes rows part i, publishes
// them in L2, adds up the clusters' in their order, and hands its rows of the residual stream to its own cluster. So blocks with the same
// number hold the same rows, to the bit. LayerNorm costs no pass of its own: shard_layout.cuh. Weights stream through a ring (shard_ring.cuh).
// A handoff's buffer is free again before its next values come: they need, through the handoffs between, something of every warp that reads it.
//
// Grid: GRID_BLOCKS blocks in clusters of N, all resident at once, each of 8 warps that compute and one that fills the ring; constants
// and limits: shard_layout.cuh. The exchange needs 16 GRID_EXCHANGE_WORDS bytes, GridState 8; both zero before the first launch. Needs sm_90.
// Sums have a fixed order: results repeat to the bit. Launcher: src/decoder/grid.rs.
#include "grid_keys.cuh"
#include "grid_step.cuh"
#include "grid_words.cuh"
#include "shard_ring.cuh"

constexpr u32 THREADS_ALL = WORKERS + FETCHERS * WARP;

__device__ inline float4 add(float4 sum, float weight, float4 v) {
    return make_float4(fmaf(weight, v.x, sum.x), fmaf(weight, v.y, sum.y), fmaf(weight, v.z, sum.z), fmaf(weight, v.w, sum.w));
}

// The warps that compute meet.
__device__ inline void meet() { asm volatile("bar.sync 1, %0;" ::"n"(WORKERS) : "memory"); }

// Weights in registers: the first rows of a warp's. They are float32 already: that is done while values are on their way.
template <Stage S> struct Held {
    float4 part[held_rows(S)][chunks(S)];
};
// What a layer's attention begins with.
struct Ahead {
    Held<QKV> held;
    Rows cached;
    float2 ab;
};

// A warp that computes.
struct Worker {
    const GridArguments &g;
    const float2 *sums; // [SUMS]
    Shared &s;
    Reader reader;
    const u32 cluster, rank, warp, lane;
    const Part heads;
    const Part qkv, res, up;       // the warp's rows of the cluster's, and of the residual stream
    u32 parities = 0;              // of the handoffs awaited next
    float mean = 0, own = 0;       // of the last norm; the row of the residual stream that this lane sums
    float4 x[chunks(QKV)];         // the residual stream on its way to a norm
    Moments moments;

    __device__ Worker(const GridArguments &g, const float2 *sums, Shared &s)
        : g(g), sums(sums), s(s), reader(s), cluster(blockIdx.x / N), rank(cluster_rank()), warp(threadIdx.x / WARP), lane(threadIdx.x % WARP),
          heads(heads_of(cluster)), qkv(warp_rows(QKV, cluster, rank, warp)), res(warp_rows(OUT, cluster, rank, warp)),
          up(warp_rows(UP, cluster, rank, warp)) {}

    // ---- handoffs within the cluster ----

    __device__ u32 base() const { return shared_address(&s); }
    __device__ u32 offset(const void *p) const { return shared_address(p) - base(); }
    static __device__ constexpr u32 barrier(u32 handoff) { return handoff * sizeof(u64); }

    // What one brings to a block of a cluster.
    static __device__ u32 bytes(u32 handoff, u32 cluster) {
        return handoff == QUERY    ? 3 * D * sizeof(float)
               : handoff == CORE   ? SPLITS * heads_of(cluster).count * (D * sizeof(Element) + sizeof(float2))
               : handoff == HIDDEN ? units_of(cluster).count * sizeof(float)
               : handoff == BEST   ? N * WARPS * sizeof(u64)
                                   : C * sizeof(float) + N * WARPS * sizeof(float2);
    }
    // Waits for a handoff and makes its barrier ready for the next.
    template <u32 HANDOFF> __device__ void await() {
        ::await(base() + barrier(HANDOFF), parities >> HANDOFF & 1);
        parities ^= 1u << HANDOFF;
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
    template <Stage S, u32 FIRST = 0> __device__ void load(Held<S> &held) const {
        constexpr u32 EACH = section_rows(S);
#pragma unroll
        for (u32 r = 0; r < held_rows(S) && FIRST + r < warp_rows_max(S); r++) {
            u32 row = FIRST + r, ahead = row / EACH - FIRST / EACH;
            if (r == 0 || row % EACH == 0) reader.await(ahead);
            const Four<Element> *at = reinterpret_cast<const Four<Element> *>(reader.section(ahead) + row % EACH * row_bytes(S)) + lane;
#pragma unroll
            for (u32 c = 0; c < chunks(S); c++) held.part[r][c] = at[c * WARP].values();
        }
    }
    // sum[r] = row r of the warp's times x, for this lane's columns. The first weights are held already. Where a warp has fewer rows, or x fewer columns,
    // what stands there instead is of no effect.
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

    // Waits for the residual stream and its moments.
    template <u32 HANDOFF> __device__ void receive(const Stream &from) {
        await<HANDOFF>();
#pragma unroll
        for (u32 c = 0; c < chunks(QKV); c++) x[c] = load4(from.x + c * CHUNK + lane * 4);
        moments = {};
#pragma unroll
        for (u32 i = 0; i < N * WARPS / WARP; i++) {
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
    __device__ void begin(Ahead &next, u32 layer, u32 past) const;
    __device__ void attention(Ahead &ahead, Held<UP> &next, u32 layer, u32 past, u32 epoch);
    __device__ void core(const Cache &cache, Rows &rows, u32 past);
    __device__ void merge();
    __device__ void core_row(float4 (&x)[chunks(OUT)]) const;
    __device__ void mlp(Held<UP> &held, Ahead &next, u32 layer, u32 past, u32 epoch);
    template <u32 BUFFER, typename Meanwhile> __device__ float reduce(float partial, u32 epoch, Meanwhile meanwhile) const;
    __device__ u64 head(const Rule &rule, u32 step);
    __device__ u32 agree(const Rule &rule, u64 best, const Token &t);
};

// x = token + position: all of it in every warp.
__device__ void Worker::embed(const Token &t) {
    const Element *token = g.token + u64(t.id) * C, *position = g.position + u64(t.past) * C, *weight = s.layers[0].norm1_weight;
    float4 w[chunks(QKV)];
    float sum = 0;
#pragma unroll
    for (u32 c = 0; c < chunks(QKV); c++) {
        u32 k = c * CHUNK + lane * 4;
        x[c] = w[c] = make_float4(0, 0, 0, 0);
        if (C % CHUNK != 0 && k >= C) continue;
        float4 a = load4(token + k), b = load4(position + k);
        w[c] = load4(weight + k);
        x[c] = make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
        sum += (x[c].x + x[c].y) + (x[c].z + x[c].w);
    }
    own = to_float(token[own_row()]) + to_float(position[own_row()]);
    mean = warp_sum(sum) * (1.0f / C);
    moments = {};
#pragma unroll
    for (u32 c = 0; c < chunks(QKV); c++) {
        if (C % CHUNK != 0 && c * CHUNK + lane * 4 >= C) continue;
        x[c] = make_float4(x[c].x - mean, x[c].y - mean, x[c].z - mean, x[c].w - mean);
        moments.sum += (x[c].x + x[c].y) + (x[c].z + x[c].w);
        moments.squares = dot4(x[c], x[c], moments.squares);
        x[c] = make_float4(x[c].x * w[c].x, x[c].y * w[c].y, x[c].z * w[c].z, x[c].w * w[c].w);
    }
}

// Brings what a layer begins with: the weights of q, k and v, and the warp's first cached rows.
__device__ void Worker::begin(Ahead &next, u32 layer, u32 past) const {
    u32 head = rank / SPLITS, first = (warp * SPLITS + rank % SPLITS) * KEYS;
    next.ab = sums[layer * LAYER_SUMS + heads.first * 3 * D + row_of<warp_rows_max(QKV)>(qkv)];
    if (head < heads.count) next.cached.load(Cache(s.layers[layer]), heads.first + head, first, past, lane);
    if (!LAYER_HELD || layer == 0) load<QKV>(next.held);
}

// x += out(attention(ln1(x))): q, k and v of the cluster's heads go to the blocks that hold their pieces.
__device__ void Worker::attention(Ahead &ahead, Held<UP> &next, u32 layer, u32 past, u32 epoch) {
    constexpr u32 R = warp_rows_max(QKV), GROUPS = WARP / LANES<R>;
    const Layer &at = s.layers[layer];
    Element bias = at.out_bias[own_row()], weight = at.norm2_weight[own_row()];
    Held<OUT> held;
    {
        float sum[R];
        if (layer > 0) receive<RESIDUAL>(s.residual);
        multiply<QKV>(sum, x, ahead.held);
        float value = normed(sum, ahead.ab);
        u32 r = lane % LANES<R>, row = qkv.first + r, to = offset(s.qkv + row % (3 * D));
#pragma unroll
        for (u32 i = 0; i < divide_up(SPLITS, GROUPS); i++) {
            u32 piece = lane / LANES<R> + i * GROUPS, there = in_block(base(), row / (3 * D) * SPLITS + piece);
            if (r < qkv.count && piece < SPLITS) send(there + to, value, there + barrier(QUERY));
        }
    }
    load<OUT>(held);
    if (rank / SPLITS < heads.count) core(Cache(at), ahead.cached, past);
    float4 x[chunks(OUT)];
    float sum[warp_rows_max(OUT)];
    if (heads.count > 0) await<CORE>();
    core_row(x);
    multiply<OUT>(sum, x, held);
    own += reduce<0>(spread_sum(sum), epoch, [&] {
        if constexpr (LAYER_HELD) load<UP>(next);
    }) + to_float(bias);
    publish<MIDDLE>(s.middle, to_float(weight));
    if constexpr (!LAYER_HELD) load<UP>(next);
}

// softmax(q . keys) values over this block's piece of its head, to all blocks of the cluster.
__device__ void Worker::core(const Cache &cache, Rows &cached, u32 past) {
    u32 head = heads.first + rank / SPLITS, first = (warp * SPLITS + rank % SPLITS) * KEYS;
    await<QUERY>();
    Softmax softmax;
#pragma unroll 1
    for (u32 start = first;;) {
        if (past - start < KEYS) cached.insert(cache, head, start, past, s.qkv, lane);
        softmax.add(cached, s.qkv, start, past + 1, lane);
        start += WARPS * SPLITS * KEYS;
        if (start > past) break;
        cached.load(cache, head, start, past, lane);
    }
    softmax.join_lanes();
    softmax.store(s.part[warp], s.spans[warp], lane);
    meet();
    merge();
}

// Merges what the block's warps found: each warp for its share of the cluster's blocks.
__device__ void Worker::merge() {
    float2 span[WARPS];
    float most = NO_SCORE, total = 0;
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) span[w] = s.spans[w], most = fmaxf(most, span[w].x);
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) span[w].x = exponential(span[w].x - most), total = fmaf(span[w].x, span[w].y, total);
    u32 head = rank / SPLITS, piece = rank % SPLITS;
#pragma unroll
    for (u32 i = 0; i < divide_up(VECTORS, WARP); i++) {
        u32 d = (i * WARP + lane) * VECTOR;
        if (VECTORS % WARP != 0 && d >= D) continue;
        float4 low = make_float4(0, 0, 0, 0), high = low;
#pragma unroll
        for (u32 w = 0; w < WARPS; w++) {
            low = add(low, span[w].x, load4(s.part[w] + d));
            if (HALF) high = add(high, span[w].x, load4(s.part[w] + d + 4));
        }
        uint4 v = rounded(low, high);
#pragma unroll
        for (u32 to = 0; to < N / WARPS; to++) {
            u32 there = in_block(base(), warp + to * WARPS);
            send(there + offset(s.core[piece] + head * D + d), v, there + barrier(CORE));
        }
    }
    u32 there = in_block(base(), warp + lane % (N / WARPS) * WARPS);
    if (lane < N / WARPS) send(there + offset(&s.mass[piece][head]), most, total, there + barrier(CORE));
}

// Adds up the clusters' partial sums of the warp's rows: publishes ours and brings the others'. All lanes of a row get its sum. `meanwhile` is
// done while they are on their way.
template <u32 BUFFER, typename Meanwhile> __device__ float Worker::reduce(float partial, u32 epoch, Meanwhile meanwhile) const {
    constexpr u32 L = LANES<warp_rows_max(OUT)>, GROUPS = WARP / L, WORDS = divide_up(SHARDS, GROUPS);
    u32 group = lane / L, row = lane % L;
    bool has = row < res.count;
    u64 *words = reinterpret_cast<u64 *>(g.exchange) + BUFFER * SHARDS * C + res.first + row, word[WORDS];
    if (group == 0 && has)
        asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(words + cluster * C), "l"(u64(epoch) << 32 | __float_as_uint(partial)) : "memory");
    meanwhile();
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
    float sum = 0;
#pragma unroll
    for (u32 i = 0; i < WORDS; i++) sum += __uint_as_float(u32(word[i]));
#pragma unroll
    for (u32 lanes = L; lanes < WARP; lanes *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, lanes);
    return sum;
}

// Attention's result: a head's pieces merged by their masses.
__device__ void Worker::core_row(float4 (&x)[chunks(OUT)]) const {
#pragma unroll
    for (u32 c = 0; c < chunks(OUT); c++) {
        u32 k = c * CHUNK + lane * 4, head = k / D;
        float2 mass[SPLITS];
        float most = NO_SCORE, total = 0;
#pragma unroll
        for (u32 i = 0; i < SPLITS; i++) mass[i] = s.mass[i][head], most = fmaxf(most, mass[i].x);
#pragma unroll
        for (u32 i = 0; i < SPLITS; i++) mass[i].x = exponential(mass[i].x - most), total = fmaf(mass[i].x, mass[i].y, total);
        float inverse = ::reciprocal(total);
        x[c] = make_float4(0, 0, 0, 0);
#pragma unroll
        for (u32 i = 0; i < SPLITS; i++) x[c] = add(x[c], mass[i].x * inverse, load4(s.core[i] + k));
    }
}

// x += down(gelu(up(ln2(x)))). Meanwhile the next layer begins, if there is one.
__device__ void Worker::mlp(Held<UP> &held, Ahead &next, u32 layer, u32 past, u32 epoch) {
    constexpr u32 R = warp_rows_max(UP);
    Element bias = s.layers[layer].down_bias[own_row()], weight = s.layers[layer + 1].norm1_weight[own_row()];
    float2 ab = sums[layer * LAYER_SUMS + 3 * C + smaller(units_of(cluster).first + row_of<R>(up), F - 1)];
    {
        float sum[R];
        receive<MIDDLE>(s.middle);
        multiply<UP>(sum, x, held);
        broadcast<HIDDEN, R>(activation(normed(sum, ab)), s.hidden + up.first, up.count);
    }
    Held<DOWN> down;
    float4 hidden[chunks(DOWN)];
    float sum[warp_rows_max(DOWN)];
    load<DOWN>(down);
    await<HIDDEN>();
#pragma unroll
    for (u32 c = 0; c < chunks(DOWN); c++) hidden[c] = load4(s.hidden + c * CHUNK + lane * 4);
    multiply<DOWN>(sum, hidden, down);
    own += reduce<1>(spread_sum(sum), epoch, [&] {
        if (LAYER_HELD && layer + 1 < LAYERS) load<QKV>(next.held);
    }) + to_float(bias);
    publish<RESIDUAL>(s.residual, to_float(weight));
    if (layer + 1 < LAYERS) begin(next, layer + 1, past);
}

// logits = final_norm(x) . token: kept, and the warp's best pick among its rows.
__device__ u64 Worker::head(const Rule &rule, u32 step) {
    constexpr u32 ROWS = warp_rows_max(HEAD), EACH = section_rows(HEAD), AT_ONCE = smaller(ROWS, EACH);
    Part part = warp_rows(HEAD, cluster, rank, warp);
    receive<RESIDUAL>(s.residual);
#pragma unroll
    for (int lanes = 1; lanes < WARP; lanes *= 2) moments.add_lane(lanes);
    float2 norm = statistics();
    u64 best = 0;
#pragma unroll 1
    for (u32 first = 0; first < ROWS; first += AT_ONCE) {
        u32 row = first + lane % LANES<AT_ONCE>, token = smaller(part.first + row, VOCAB - 1);
        bool valid = lane < AT_ONCE && row < part.count, read = false;
        float2 ab = sums[LAYERS * LAYER_SUMS + token];
        float noise = 0, sum[AT_ONCE] = {};
        if (!rule.s.greedy && !rule.exact && valid) noise = gumbel(token, step, rule.s);
        reader.await(0);
        const Four<Element> *at = reinterpret_cast<const Four<Element> *>(reader.section(0)) + lane;
#pragma unroll
        for (u32 r = 0; r < AT_ONCE; r++) {
#pragma unroll
            for (u32 c = 0; c < chunks(HEAD); c++) sum[r] = dot4(at[r * (row_bytes(HEAD) / sizeof(*at)) + c * WARP].values(), x[c], sum[r]);
            read |= __float_as_uint(sum[r]) != ALL_LANES;
        }
        reader.release(1, read);
        float logit = fmaf(norm.y, fmaf(-norm.x, ab.x, spread_sum(sum)), ab.y);
        if (!valid) continue;
        g.logits[token] = logit;
        best = max(best, ::rank(rule.s.score(logit) + noise, token));
    }
    if (rule.exact) __threadfence();
    return warp_max(best);
}

// All warps agree on the token: within the cluster, then block i of each cluster with those of the others.
__device__ u32 Worker::agree(const Rule &rule, u64 best, const Token &t) {
    if (lane < N) {
        u32 there = in_block(base(), lane);
        send(there + offset(&s.best[rank * WARPS + warp]), __uint_as_float(u32(best)), __uint_as_float(u32(best >> 32)), there + barrier(BEST));
    }
    await<BEST>();
    best = 0;
    for (u32 i = lane; i < N * WARPS; i += WARP) best = max(best, s.best[i]);
    best = warp_max(best);
    uint4 *picks = g.exchange + PICKS_START + (t.step % 2 * N + rank) * SHARDS, *token_word = g.exchange + TOKEN_START + t.step % 2;
    if (warp == 0 && lane == 0) send(picks + cluster, u32(best), u32(best >> 32), 0, t.epoch);
    const uint4 *at[] = {picks + smaller(lane, SHARDS - 1)};
    uint4 v[1];
    ::receive(v, at, t.epoch);
    best = warp_max(u64(v[0].y) << 32 | v[0].x);
    if (!ALL_HELD || !rule.exact) return token_of(best);
    if (blockIdx.x == 0) {
        __shared__ u64 shared[Samplers::WARPS];
        __threadfence(); // the logits were written before the picks were sent, with a fence between
        LogitScores<SCORES_HELD> scores(rule.s, {shared}, g.logits, t.step);
        u32 token = scores.pick();
        if (threadIdx.x == 0) send(token_word, token, 0, 0, t.epoch);
    }
    const uint4 *word[] = {token_word};
    ::receive(v, word, t.epoch);
    return v[0].x;
}

__device__ inline void generate(const GridArguments &g, const float2 *sums, Shared &s, Token t) {
    Worker worker(g, sums, s);
    u32 issued = g.rule->issued;
#pragma unroll 1
    for (u32 i = 0; i < g.steps; i++) {
        Ahead ahead;
        worker.begin(ahead, 0, t.past);
        worker.embed(t);
#pragma unroll 1
        for (u32 layer = 0; layer < LAYERS; layer++) {
            Held<UP> held;
            t.epoch++;
            worker.attention(ahead, held, layer, t.past, t.epoch);
            worker.mlp(held, ahead, layer, t.past, t.epoch);
        }
        Rule rule = s.rule;
        u64 best = worker.head(rule, t.step);
        if (!ALL_HELD && !g.picks) return;
        t.id = worker.agree(rule, best, t);
        t.past++, t.step++;
        if (blockIdx.x == 0 && threadIdx.x == 0) deliver(g, t, issued++);
    }
}

// Nothing that is read before anybody wrote it may be a NaN, and a head that is not there has a mass to divide by.
__device__ inline void prepare(const GridArguments &g, Shared &s) {
    u32 cluster = blockIdx.x / N;
    for (u32 at = threadIdx.x * 16; at < SHARED_BYTES; at += THREADS_ALL * 16) *reinterpret_cast<uint4 *>(reinterpret_cast<char *>(&s) + at) = {};
    __syncthreads();
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < HANDOFFS; i++) {
            barrier_init(shared_address(&s.arrived[i]), 1);
            barrier_expect(shared_address(&s.arrived[i]), Worker::bytes(i, cluster));
        }
        for (u32 i = 0; i < SLOTS; i++) barrier_init(shared_address(&s.full[i]), FETCHERS), barrier_init(shared_address(&s.empty[i]), WARPS);
        publish_barriers();
        s.layers[LAYERS].norm1_weight = g.norm_weight;
        s.rule = Rule(g.rule);
    }
    for (u32 i = threadIdx.x; i < sizeof(s.mass) / sizeof(float2); i += THREADS_ALL) s.mass[0][i] = make_float2(0, 1);
    for (u32 i = threadIdx.x; i < LAYERS * sizeof(Layer) / 8; i += THREADS_ALL)
        reinterpret_cast<u64 *>(s.layers)[i] = reinterpret_cast<const u64 *>(g.layers)[i];
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    cluster_barrier();
}

extern "C" __global__ void __launch_bounds__(THREADS_ALL, 1) ENTRY(decode_shards)(const __grid_constant__ GridArguments g, const float2 *sums) {
    extern __shared__ __align__(128) char memory[];
    Shared &s = *reinterpret_cast<Shared *>(memory);
    Token t = {g.tokens[0], g.cursor->past, g.cursor->step, g.state->epoch};
    u32 first_epoch = t.epoch;
    prepare(g, s);
    // Those that compute take registers from those that fetch.
    if (threadIdx.x < WORKERS) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
        generate(g, sums, s, t);
    } else {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
        Fetcher(g, s).run();
    }
    __syncwarp();
    cluster_barrier(); // a block's shared memory stays until nobody sends to it
    if (threadIdx.x != 0 || atomicAdd(&g.state->finished, 1) + 1 < BLOCKS) return;
    g.state->finished = 0;
    g.state->epoch = first_epoch + g.steps * LAYERS;
}

// `sums` for decode_shards. Grid (x, LAYERS + 1): blocks of 256 threads, a warp a row, as many as cover a layer's rows, and the head's.
extern "C" __global__ void __launch_bounds__(256, 1)
    ENTRY(decode_shard_sums)(float2 *sums, const Layer *layers, const Element *norm_weight, const Element *norm_bias, const Element *token) {
    u32 r = blockIdx.x * 8 + threadIdx.x / WARP, l = blockIdx.y, lane = threadIdx.x % WARP, head = r / (3 * D), part = r / D % 3;
    bool last = l == LAYERS, up = r >= 3 * C;
    if (r >= (last ? VOCAB : LAYER_SUMS)) return;
    const Layer &layer = layers[last ? 0 : l];
    const Element *weight = last ? norm_weight : up ? layer.norm2_weight : layer.norm1_weight;
    const Element *bias = last ? norm_bias : up ? layer.norm2_bias : layer.norm1_bias;
    const Element *row = last ? token + u64(r) * C
                         : up ? layer.up + u64(r - 3 * C) * C
                              : (part == 0 ? layer.q : part == 1 ? layer.k : layer.v) + u64(head * D + r % D) * C;
    float a = 0, b = 0;
    for (u32 i = lane; i < C; i += WARP) {
        float w = to_float(row[i]);
        a = fmaf(w, to_float(weight[i]), a), b = fmaf(w, to_float(bias[i]), b);
    }
    a = warp_sum(a), b = warp_sum(b);
    if (lane == 0) sums[u64(l) * LAYER_SUMS + r] = make_float2(a, !last && up ? b + to_float(layer.up_bias[r - 3 * C]) : b);
}
