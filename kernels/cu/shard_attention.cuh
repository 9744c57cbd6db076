// Attention of a cluster's heads. A head's cache lies in SPLITS pieces with as many blocks, group g of KEYS positions in piece g % SPLITS, and there
// with warp g / SPLITS % WARPS.
#pragma once
#include "shard_worker.cuh"

// Softmax-weighted values so far, over the keys that the warp saw: a lane has a vector of them.
struct Weighted {
    int most = NO_SCORE;
    float mass = 0, sum[VECTOR] = {};

    // Takes in the group of rows from position `start` on, of which those below `count` are there.
    __device__ void add(const Rows &rows, const float *query, u32 start, u32 count, u32 lane) {
        const float factor = rsqrtf(float(D)) * 1.4426950408889634f; // to powers of two
        float x = rows.score(query, lane) * factor;
        if (start + lane / KEY_LANES >= count) x = MINUS_INFINITY;
        int bound = max(most, __reduce_max_sync(ALL_LANES, score_bound(x)));
        float weight = power_of_two(x - float(bound)), shrink = whole_power(most - bound);
        most = bound;
        mass = fmaf(mass, shrink, weight);
#pragma unroll
        for (u32 i = 0; i < VECTOR; i++) sum[i] *= shrink;
#pragma unroll
        for (u32 i = 0; i < VALUE_LOADS; i++)
            add_vector(sum, __shfl_sync(ALL_LANES, weight, (i * ROWS_AT_ONCE + lane / ROW_LANES) * KEY_LANES), rows.value[i]);
    }
    // Sums over the warp's keys and leaves the D channels at `part`, and their mass.
    __device__ void leave(float *part, Mass &to, u32 lane) {
#pragma unroll
        for (u32 lanes = KEY_LANES; lanes < WARP; lanes *= 2) mass += __shfl_xor_sync(ALL_LANES, mass, lanes);
#pragma unroll
        for (u32 lanes = ROW_LANES; lanes < WARP; lanes *= 2)
#pragma unroll
            for (u32 i = 0; i < VECTOR; i++) sum[i] += __shfl_xor_sync(ALL_LANES, sum[i], lanes);
        if (lane < VECTORS)
#pragma unroll
            for (u32 i = 0; i < VECTOR; i += 4)
                *reinterpret_cast<float4 *>(part + lane * VECTOR + i) = make_float4(sum[i], sum[i + 1], sum[i + 2], sum[i + 3]);
        if (lane == 0) to = {most, mass};
    }
};

// Brings what a layer begins with: its first cached rows, what the norm needs, and the weights of q, k and v
// unless they are there.
__device__ void Worker::begin(Ahead &next, u32 layer, u32 past, bool weights, bool there) {
    next.ab = sums[layer * LAYER_SUMS + heads.first * 3 * D + row_of<warp_rows_max(QKV)>(qkv)];
    u32 head = heads.first + rank / SPLITS, first = (warp * SPLITS + rank % SPLITS) * KEYS;
#pragma unroll
    for (u32 i = 0; i < GROUPS_AHEAD; i++)
        if (rank / SPLITS < heads.count) next.cached[i].load(Cache(s.layers[layer]), head, first + i * ROUND, past, lane);
    if (weights) load<QKV>(next.held, there);
}

// x += out(attention(ln1(x))): q, k and v of the cluster's heads go to the blocks that hold their pieces.
__device__ void Worker::attention(Ahead &ahead, Held<UP> &next, u32 layer, u32 past, u32 epoch) {
    constexpr u32 R = warp_rows_max(QKV), GROUPS = WARP / LANES<R>;
    forget();
    const Layer &at = s.layers[layer];
    Element bias = at.out_bias[own_row()], weight = at.norm2_weight[own_row()];
    bool has_head = rank / SPLITS < heads.count;
    Held<OUT> held;
    {
        float sum[R];
        float4 x[chunks(QKV)];
        if (layer > 0) await<RESIDUAL>();
        read(x, s.residual);
        multiply<QKV>(sum, x, ahead.held);
        float value = normed(sum, ahead.ab);
        u32 r = lane % LANES<R>, row = qkv.first + r, to = offset(s.qkv + row % (3 * D));
#pragma unroll
        for (u32 i = 0; i < divide_up(SPLITS, GROUPS); i++) {
            u32 piece = lane / LANES<R> + i * GROUPS, there = in_block(base(), row / (3 * D) * SPLITS + piece);
            if (r < qkv.count && piece < SPLITS) send(there + to, value, there + barrier(QUERY));
        }
        if (layer > 0) expect<RESIDUAL>();
    }
    // Weights that are not there yet arrive while attention is made.
    if constexpr (LAYER_HELD) load<OUT>(held);
    if (has_head) core(Cache(at), ahead.cached, past);
    if constexpr (!LAYER_HELD) load<OUT>(held);
    float4 x[chunks(OUT)];
    float sum[warp_rows_max(OUT)];
    await<CORE>();
    core_row(x);
    multiply<OUT>(sum, x, held);
    own += reduce<0>(spread_sum(sum), epoch, [&] {
        expect<CORE>();
        if constexpr (LAYER_HELD) load<UP>(next);
    }) + to_float(bias);
    publish<MIDDLE>(s.middle, to_float(weight));
    if constexpr (!LAYER_HELD) load<UP>(next);
}

// softmax(q . keys) values over this block's piece of its head, to all blocks of the cluster.
__device__ void Worker::core(const Cache &cache, Rows (&cached)[GROUPS_AHEAD], u32 past) {
    u32 head = heads.first + rank / SPLITS, start = (warp * SPLITS + rank % SPLITS) * KEYS;
    Weighted weighted;
    await<QUERY>();
    bool more = true;
#pragma unroll 1
    while (more) {
#pragma unroll
        for (u32 i = 0; i < GROUPS_AHEAD; i++, start += ROUND) {
            if (past - start < KEYS) cached[i].insert(cache, head, start, past, s.qkv, lane);
            weighted.add(cached[i], s.qkv, start, past + 1, lane);
            if (ROUNDS > GROUPS_AHEAD) cached[i].load(cache, head, start + GROUPS_AHEAD * ROUND, past, lane);
        }
        more = start <= past;
    }
    weighted.leave(s.part[warp], s.part_mass[warp], lane);
    expect<QUERY>();
    meet();
    merge();
}

// Merges what the block's warps found and sends it to all blocks: a warp has an eighth of the channels, in words of the working precision.
__device__ void Worker::merge() const {
    constexpr u32 WORDS = divide_up(D / CORE_PACK, WARPS), L = LANES<WORDS>, GROUPS = WARP / L;
    u32 head = rank / SPLITS, piece = rank % SPLITS;
    Part words = part_of(D / CORE_PACK, WARPS, warp);
    u32 word = words.first + smaller(lane % L, larger(words.count, 1) - 1), at = offset(s.core[piece] + head * D) + word * sizeof(u32);
    int most = NO_SCORE;
    float mass = 0, low = 0, high = 0;
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) most = max(most, s.part_mass[w].most);
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) {
        Mass theirs = s.part_mass[w];
        float weight = whole_power(theirs.most - most);
        mass = fmaf(weight, theirs.mass, mass);
        low = fmaf(weight, s.part[w][word * CORE_PACK], low);
        if (HALF) high = fmaf(weight, s.part[w][word * CORE_PACK + 1], high);
    }
    u32 value = HALF ? pack(low, high) : __float_as_uint(low);
#pragma unroll
    for (u32 i = 0; i < divide_up(N, GROUPS); i++) {
        u32 to = lane / L + i * GROUPS, there = in_block(base(), to);
        if (lane % L < words.count && (N % GROUPS == 0 || to < N)) send(there + at, value, there + barrier(CORE));
    }
    u32 there = in_block(base(), lane % N);
    if (warp == 0 && lane < N) send(there + offset(&s.core_mass[piece][head]), __int_as_float(most), mass, there + barrier(CORE));
}

// Attention's result: a head's pieces merged by their masses.
__device__ void Worker::core_row(float4 (&x)[chunks(OUT)]) const {
#pragma unroll
    for (u32 c = 0; c < chunks(OUT); c++) {
        u32 k = c * CHUNK + lane * 4, head = k / D;
        Mass mass[SPLITS];
        int most = NO_SCORE;
        float total = 0, weight[SPLITS];
#pragma unroll
        for (u32 i = 0; i < SPLITS; i++) mass[i] = s.core_mass[i][head], most = max(most, mass[i].most);
#pragma unroll
        for (u32 i = 0; i < SPLITS; i++) weight[i] = whole_power(mass[i].most - most), total = fmaf(weight[i], mass[i].mass, total);
        float inverse = reciprocal(total);
        x[c] = make_float4(0, 0, 0, 0);
#pragma unroll
        for (u32 i = 0; i < SPLITS; i++) x[c] = add(x[c], weight[i] * inverse, load4(s.core[i] + k));
    }
}
