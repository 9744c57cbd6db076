// A layer of decode_train.cu by a cluster of its own, and how the residual comes from one cluster to the next.
#pragma once
#include "decode_warp.cuh"
#include "train_attention.cuh"

// Which part of its head keeps a position, and what q, k and v bring to a block: these alone to the one that keeps them.
__device__ inline u32 part_of(u32 position) { return position / BLOCK_KEYS % S; }
__device__ inline u32 qkv_bytes(u32 rank, u32 position) {
    return D * sizeof(u32) + (part_of(position) == rank % S ? 2 * D * sizeof(Element) : 0);
}

struct Train : Warp {
    static constexpr u32 COLUMNS = Input<C>::COLUMNS, DOWN_TILES = Weights<ROWS, F>::TILES;
    const u32 layer;
    float x[COLUMNS]; // the lane's columns of the residual before a norm, less a number near its mean
    float own = 0;         // the block's row of the residual that this lane sums, likewise, in warps that finish
    Weights<UP_ROWS, C> up;
    Weights<QKV_ROWS, C> qkv;
    Weights<ROWS, C> out;
    Weights<ROWS, F> down;
    Weights<HEAD_ROWS, C> head_rows;
    Keys keys[ROUNDS];

    __device__ Train(const DecodeArguments &a, Shared &s) : Warp(a, s), layer(blockIdx.x / N) {}

    __device__ void begin(u32 past);
    __device__ void load_ahead();
    __device__ void embed(u32 token);
    __device__ void receive_residual(u32 epoch);
    __device__ void run(u32 past, u32 end, u32 epoch);
    __device__ u32 head();

  private:
    __device__ const char *weights() const { return reinterpret_cast<const char *>(&s) + WEIGHTS_START; }
    __device__ u32 row() const { return lane % ROWS; }
    __device__ float2 ab(u32 pairs, u32 r) const { return reinterpret_cast<const float2 *>(s.constants + pairs)[r]; }
    __device__ void load_head();
    __device__ u32 pair() const;
    __device__ void deal(float first, float second);
    __device__ void read_columns(const Stream &from);
    __device__ Input<C> scaled(const float4 (&gamma)[COLUMNS / 4]) const;
    __device__ float moments() const;
    __device__ void load_gammas(float4 (&gamma)[COLUMNS / 4], u32 from) const;
    __device__ void attention(u32 past);
    __device__ void send_qkv(const Norm &norm, u32 past) const;
    __device__ void core(u32 past);
    __device__ void leave_nothing() const;
    __device__ void merge() const;
    __device__ void send_middle(float sum);
    __device__ void mlp();
    __device__ void send_hidden(const Norm &norm) const;
    __device__ void publish(u32 epoch) const;
    __device__ void send_logits() const;
};

// Brings what stays: weights of `up`, in the first cluster those of the head, and the cache.
__device__ void Train::begin(u32 past) {
    const char *stream = a.stream + u64(blockIdx.x) * LAYER_BYTES;
    if (threadIdx.x == 0) {
        barrier_expect(base() + barrier(RESIDUAL), WEIGHTS_BYTES);
        fetch(base() + WEIGHTS_START, stream, WEIGHTS_BYTES, base() + barrier(RESIDUAL));
    }
    up.load(stream + UP_START);
    if (layer == 0) load_head();
    for (u32 i = threadIdx.x; rank / S < H && i < past * (D / 8); i += THREADS) {
        u32 position = i / (D / 8), channel = i % (D / 8) * 8;
        if (part_of(position) != rank % S) continue;
        char *to = reinterpret_cast<char *>(&s) + cached_place(position, channel);
        u64 from = (u64(rank / S) * P + position) * D + channel;
        *reinterpret_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(a.keys[layer] + from);
        *reinterpret_cast<uint4 *>(to + KEY_BYTES) = *reinterpret_cast<const uint4 *>(a.values[layer] + from);
    }
    barrier_await_soon(base() + barrier(RESIDUAL), 0);
    meet();
}

// The block's rows of the head: rows behind the last are not sent.
__device__ void Train::load_head() {
    u32 column = Input<C>::column(warp, lane), row = min(rank * HEAD_ROWS + lane / 4, V - 1);
    auto four = [&](u32 i) { return reinterpret_cast<const uint2 *>(a.token + u64(row) * C + column)[i]; };
    constexpr u32 STEPS = Input<C>::STEPS;
#pragma unroll
    for (u32 i = 0; i + 1 < STEPS; i += 2) head_rows.set(i / 2, make_uint4(four(i).x, four(i + 1).x, four(i).y, four(i + 1).y));
    if (STEPS % 2 > 0) head_rows.set_last(four(STEPS - 1));
}

// Brings what the next token's attention needs, before its turn.
__device__ void Train::load_ahead() {
    qkv.load(weights() + QKV_START);
    out.load(weights() + OUT_START);
#pragma unroll
    for (u32 i = 0; i < ROUNDS; i++)
        if (rank / S < H) keys[i].load(s, i);
}

// Two neighbouring columns of the warp's, of each lane that there are two for.
__device__ u32 Train::pair() const { return warp * (C / WARPS) + min(lane * 2, C / WARPS - 2); }
// Deals what the lanes have of the warp's columns to those that multiply it.
__device__ void Train::deal(float first, float second) {
    *reinterpret_cast<float2 *>(s.residual.values + pair()) = make_float2(first, second);
    __syncwarp();
    read_columns(s.residual);
}
__device__ void Train::read_columns(const Stream &from) {
#pragma unroll
    for (int i = 0; i < int(COLUMNS); i += 4) {
        float4 v = load4(from.values + Input<C>::column(warp, lane) + i);
        x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
    }
}

// x = token + position.
__device__ void Train::embed(u32 token) {
    u32 t = *reinterpret_cast<const u32 *>(a.token + u64(token) * C + pair()), p = *reinterpret_cast<const u32 *>(s.position + pair());
    float shift = s.constants[TOKEN_MEANS + token] + s.position_mean;
    deal(__uint_as_float(t << 16) + __uint_as_float(p << 16) - shift, __uint_as_float(t & 0xffff0000u) + __uint_as_float(p & 0xffff0000u) - shift);
}

// Words of the residual that come to a cluster: a column each, and above it the number of its token, written and read as one.
__device__ inline u64 *words_of(const DecodeArguments &a, u32 cluster) { return reinterpret_cast<u64 *>(a.exchange + 1) + cluster * C; }

// Waits for the warp's columns from the cluster before.
__device__ void Train::receive_residual(u32 epoch) {
    const u64 *word = words_of(a, layer) + pair();
    u64 first, second;
    clock.worked(RESIDUAL);
    do asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];" : "=l"(first), "=l"(second) : "l"(word) : "memory");
    while (!__all_sync(ALL_LANES, u32(first >> 32) == epoch && u32(second >> 32) == epoch));
    clock.waited(RESIDUAL);
    deal(__uint_as_float(u32(first)), __uint_as_float(u32(second)));
}

// The block's rows of the residual, to the next cluster: one warp. What stood there is no longer needed: that this token has come here says that the
// token before has gone through all clusters, and thus through every warp that read it.
__device__ void Train::publish(u32 epoch) const {
    u64 *word = words_of(a, (layer + 1) % CLUSTERS) + rank * ROWS + lane, value = u64(epoch) << 32 | __float_as_uint(own);
    if (lane < ROWS) asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
}

// ---- norms ----

__device__ void Train::load_gammas(float4 (&gamma)[COLUMNS / 4], u32 from) const {
#pragma unroll
    for (int i = 0; i < int(COLUMNS / 4); i++) gamma[i] = load4(s.constants + from + Input<C>::column(warp, lane) + 4 * i);
}
// gamma x, for a product.
__device__ Input<C> Train::scaled(const float4 (&gamma)[COLUMNS / 4]) const {
    Input<C> in;
#pragma unroll
    for (int i = 0; i < int(COLUMNS / 4); i++) {
        const float *v = x + 4 * i;
        in.step[i] = make_uint2(pack(v[0] * gamma[i].x, v[1] * gamma[i].y), pack(v[2] * gamma[i].z, v[3] * gamma[i].w));
    }
    return in;
}
// Of the warp's columns: the sum in half of the lanes, that of squares in the others.
__device__ float Train::moments() const {
    float sum = 0, squares = 0;
#pragma unroll
    for (int i = 0; i < int(COLUMNS); i += 4) {
        float4 v = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
        sum += (v.x + v.y) + (v.z + v.w), squares = dot4(v, v, squares);
    }
    return sum_over<1, 4>(lane >= WARP / 2 ? squares : sum);
}

// ---- a layer ----

// x += out(attention(ln1(x))), x += down(gelu(up(ln2(x)))), to the next cluster. Where some of the warps finish and send, the others wait with their
// loads: what others wait for would stand behind these.
__device__ void Train::run(u32 past, u32 end, u32 epoch) {
    attention(past);
    if (layer == 0) prepare(s.step + past, past + 1, end);
    meet();
    down.load<DOWN_TILES / 2, DOWN_TILES>(weights() + DOWN_START);
    Input<C> in;
    await<CORE>();
    merge();
    in.read(s.merged);
    leave_product(out, in, s.few_partial);
    meet();
    if (warp < FINISHERS) send_middle(whole_row(s.few_partial, row()));
    mlp();
    if (warp == 0) {
        own += whole_row(s.few_partial, row()) + s.constants[DOWN_BIAS + row()];
        publish(epoch);
    }
    meet();
}

// q, k and v of ln1(x), sent to the blocks of their heads; there attention.
__device__ void Train::attention(u32 past) {
    float4 gamma[COLUMNS / 4];
    load_gammas(gamma, GAMMA_1);
    Input<C> in = scaled(gamma);
    leave_product(qkv, in, s.partial);
    Norm::leave(s, moments());
    meet();
    Norm norm(s, a.eps);
    own = s.residual.values[rank * ROWS + row()] - norm.mean;
    send_qkv(norm, past);
    meet();
    down.load<0, DOWN_TILES / 2>(weights() + DOWN_START);
    if (rank / S >= H) return;
    await<QKV>(qkv_bytes(rank, past + 1));
    core(past);
}

// The block's rows to the blocks of their heads: q for scores in powers of two by two warps, k and v as they are cached by one each, to the block
// that keeps them.
__device__ void Train::send_qkv(const Norm &norm, u32 past) const {
    if (warp >= 4) return;
    u32 kind = warp % 3, r = kind * ROWS + row(), index = rank * ROWS + row(), channel = index % D, first = index / D * S;
    float value = norm.apply(whole_row(s.partial, r), ab(QKV_AB, r));
    if (kind == 0) {
        u32 word = split(value * (rsqrtf(float(D)) * 1.4426950408889634f), 0).x;
#pragma unroll
        for (u32 part = 0; part < S; part += 2) {
            u32 to = part + warp / 3, there = in_block(base(), first + to);
            if (lane < ROWS && to < S) send(there + offset(s.q + channel), word, there + barrier(QKV));
        }
    } else {
        u32 word = pack(value, __shfl_down_sync(ALL_LANES, value, 1)), there = in_block(base(), first + part_of(past));
        if (lane < ROWS && lane % 2 == 0) send(there + cached_place(past, channel) + (kind - 1) * KEY_BYTES, word, there + barrier(QKV));
    }
}

// softmax(q . keys) values over this block's keys of its head, to all blocks.
__device__ void Train::core(u32 past) {
    u32 head = rank / S, part = rank % S, first = part * BLOCK_KEYS + warp * KEYS;
#pragma unroll
    for (u32 i = 0; i < ROUNDS; i++) // the new token's has come since
        if (past - (first + i * S * BLOCK_KEYS) < KEYS) keys[i].load(s, i);
    if (past < first) {
        leave_nothing();
    } else {
        Query q(s);
        if (ROUNDS > 1 && past >= first + S * BLOCK_KEYS) attend<ROUNDS>(s, q, keys, first, past);
        else attend<1>(s, q, keys, first, past);
    }
    meet();
    if (warp < FINISHERS) send_core(head, part);
    u32 i = THREADS - 1 - threadIdx.x; // of the warps that do not finish
    if (part_of(past) == part && i < D) {
        const char *from = reinterpret_cast<const char *>(&s) + cached_place(past, i % (D / 2) * 2) + i / (D / 2) * KEY_BYTES;
        Element *to = (i < D / 2 ? a.keys : a.values)[layer] + (u64(head) * P + past) * D + i % (D / 2) * 2;
        *reinterpret_cast<u32 *>(to) = *reinterpret_cast<const u32 *>(from);
    }
}
// Of a warp that has no keys yet.
__device__ void Train::leave_nothing() const {
    for (u32 i = lane; i < D; i += WARP) s.part[warp][i] = 0;
    if (lane == 0) s.part_mass[warp] = {NO_SCORE, 0};
}

// A head's S results, merged by their masses: of the warp's columns.
__device__ void Train::merge() const {
    u32 k = warp * (C / WARPS) + lane * 4, head = k / D;
    if (lane < C / WARPS / 4) {
        Mass mass[S];
        int most = NO_SCORE;
        float total = 0;
        float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int p = 0; p < int(S); p++) mass[p] = s.core_mass[p][head], most = max(most, mass[p].most);
#pragma unroll
        for (int p = 0; p < int(S); p++) {
            float weight = whole_power(mass[p].most - most);
            float4 v = load4(s.core[p] + k);
            total = fmaf(weight, mass[p].mass, total);
            sum.x = fmaf(weight, v.x, sum.x), sum.y = fmaf(weight, v.y, sum.y), sum.z = fmaf(weight, v.z, sum.z), sum.w = fmaf(weight, v.w, sum.w);
        }
        float scale = reciprocal(total);
        *reinterpret_cast<uint2 *>(s.merged + k) = make_uint2(pack(sum.x * scale, sum.y * scale), pack(sum.z * scale, sum.w * scale));
    }
    __syncwarp();
}

// The block's rows of the residual, with a product's sums, to all blocks.
__device__ void Train::send_middle(float sum) {
    constexpr u32 COPIES = WARP / ROWS;
    own += sum + s.constants[OUT_BIAS + row()];
    u32 at = offset(s.middle.values + rank * ROWS + row()), copy = lane / ROWS;
    if (copy >= COPIES) return;
#pragma unroll
    for (u32 i = 0; i < N / FINISHERS; i += COPIES) {
        u32 there = in_block(base(), warp + (i + copy) * FINISHERS);
        send(there + at, own, there + barrier(MIDDLE));
    }
}

// down(gelu(up(ln2(x)))): leaves the sums of each warp.
__device__ void Train::mlp() {
    float4 gamma[COLUMNS / 4];
    load_gammas(gamma, GAMMA_2);
    await<MIDDLE>();
    read_columns(s.middle);
    leave_product(up, scaled(gamma), s.partial);
    Norm::leave(s, moments());
    meet();
    Norm norm(s, a.eps);
    send_hidden(norm);
    own -= norm.mean;
    Input<F> hidden;
    await<HIDDEN>();
    hidden.read(s.hidden);
    leave_product(down, hidden, s.few_partial);
    meet();
}

// gelu of the block's rows of up, to all blocks: a warp takes one row a lane to some of the blocks.
__device__ void Train::send_hidden(const Norm &norm) const {
    constexpr u32 SHARES = UP_ROWS / WARP, COPIES = WARPS / SHARES;
    static_assert(UP_ROWS % WARP == 0 && N % COPIES == 0, "a warp has a row a lane");
    if (warp >= SHARES * COPIES) return;
    u32 r = warp % SHARES * WARP + lane;
    float hidden = gelu(norm.apply(whole_row(s.partial, r), ab(UP_AB, r)));
    deliver<HIDDEN, WARP, N / COPIES, COPIES>(hidden, s.hidden + rank * UP_ROWS + warp % SHARES * WARP, warp / SHARES);
}

// logits = final_norm(x) . token, to all blocks of the first cluster, and the next token from them.
__device__ u32 Train::head() {
    float4 gamma[COLUMNS / 4];
    load_gammas(gamma, FINAL_GAMMA);
    leave_product(head_rows, scaled(gamma), s.partial);
    Norm::leave(s, moments());
    meet();
    if (warp < FINISHERS) send_logits();
    if (warp == 0) pick();
    meet(); // what was picked is there, and the next product may leave its sums
    return s.token;
}

// The block's logits, to all blocks of the first cluster.
__device__ void Train::send_logits() const {
    constexpr u32 COPIES = WARP / HEAD_ROWS;
    u32 r = lane % HEAD_ROWS, copy = lane / HEAD_ROWS, v = rank * HEAD_ROWS + r;
    Norm norm(s, a.eps);
    float value = norm.apply(whole_row(s.partial, r), ab(HEAD_AB, r));
#pragma unroll
    for (u32 i = 0; i < N / FINISHERS; i += COPIES) {
        u32 there = in_block(base(), warp + (i + copy) * FINISHERS);
        if (v < V && i + copy < N / FINISHERS) send(there + offset(s.logits + v), value, there + barrier(LOGITS));
    }
}
