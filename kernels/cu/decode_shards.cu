// A whole generation in one launch: `steps` tokens of a batch of one, over clusters that each hold a shard of the model (tensor parallelism).
//
// For models whose weights exceed a cluster's memory, on GPUs with clusters. A cluster makes q, k, v and attention of its heads, and its share of the
// MLP's hidden units; its blocks share each product's rows and hand results over by stores that count themselves on the receiver's barrier. The
// products that lead back to the residual stream are partial sums, a cluster's own columns: block i of every cluster makes rows part i, publishes
// them in L2, adds up the clusters' in their order, and hands its rows of the residual stream to its own cluster. So blocks with the same
// number hold the same rows, to the bit. LayerNorm costs no pass of its own: shard_layout.cuh. Weights stream through a ring (shard_ring.cuh).
// A handoff's buffer is free again before its next values come: they need, through the handoffs between, something of every warp that reads it.
//
// Grid: GRID_BLOCKS blocks in clusters of N, all resident at once, each of 8 warps that compute and 4 that fill the ring; constants and
// limits: shard_layout.cuh. The exchange needs 16 GRID_EXCHANGE_WORDS bytes, GridState 12; both zero before the first launch. Needs sm_90.
// Sums have a fixed order: results repeat to the bit. Launcher: src/decoder/grid.rs.
#include "shard_attention.cuh"

// The residual stream at first: token + position, made by every warp for the mean, and left by one where the others will look.
__device__ void Worker::embed(const Token &t) {
    const Element *token = g.token + u64(t.id) * C, *position = g.position + u64(t.past) * C, *weight = s.layers[0].norm1_weight;
    float4 x[chunks(QKV)];
    float sum = 0;
#pragma unroll
    for (u32 c = 0; c < chunks(QKV); c++) {
        u32 k = c * CHUNK + lane * 4;
        x[c] = make_float4(0, 0, 0, 0);
        if (C % CHUNK != 0 && k >= C) continue;
        float4 a = load4(token + k), b = load4(position + k);
        x[c] = make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
        sum += (x[c].x + x[c].y) + (x[c].z + x[c].w);
    }
    own = to_float(token[own_row()]) + to_float(position[own_row()]);
    mean = warp_sum(sum) * (1.0f / C);
    if (warp == 0) {
        Moments lanes = {};
#pragma unroll
        for (u32 c = 0; c < chunks(QKV); c++) {
            u32 k = c * CHUNK + lane * 4;
            if (C % CHUNK != 0 && k >= C) continue;
            float4 away = make_float4(x[c].x - mean, x[c].y - mean, x[c].z - mean, x[c].w - mean), w = load4(weight + k);
            lanes.sum += (away.x + away.y) + (away.z + away.w);
            lanes.squares = dot4(away, away, lanes.squares);
            *reinterpret_cast<float4 *>(s.residual.x + k) = make_float4(away.x * w.x, away.y * w.y, away.z * w.z, away.w * w.w);
        }
        for (u32 i = lane; i < MOMENTS; i += WARP) s.residual.moments[i] = i < WARP ? make_float2(lanes.sum, lanes.squares) : make_float2(0, 0);
    }
    meet();
}

// x += down(gelu(up(ln2(x)))). Meanwhile the next layer begins, if there is one.
__device__ void Worker::mlp(Held<UP> &held, Ahead &next, u32 layer, u32 past, u32 epoch) {
    constexpr u32 R = warp_rows_max(UP);
    forget();
    Element bias = s.layers[layer].down_bias[own_row()], weight = s.layers[layer + 1].norm1_weight[own_row()];
    float2 ab = sums[layer * LAYER_SUMS + 3 * C + smaller(units_of(cluster).first + row_of<R>(up), F - 1)];
    {
        float sum[R];
        float4 x[chunks(UP)];
        await<MIDDLE>();
        read(x, s.middle);
        multiply<UP>(sum, x, held);
        broadcast<HIDDEN, R>(activation(normed(sum, ab)), s.hidden + up.first, up.count);
        expect<MIDDLE>();
    }
    forget();
    Held<DOWN> down;
    float4 hidden[chunks(DOWN)];
    float sum[warp_rows_max(DOWN)];
    load<DOWN>(down);
    await<HIDDEN>();
#pragma unroll
    for (u32 c = 0; c < chunks(DOWN); c++) hidden[c] = load4(s.hidden + c * CHUNK + lane * 4);
    multiply<DOWN>(sum, hidden, down);
    own += reduce<1>(spread_sum(sum), epoch, [&] {
        expect<HIDDEN>();
        if constexpr (LAYER_HELD) load<QKV>(next.held, layer + 1 < LAYERS);
    }) + to_float(bias);
    publish<RESIDUAL>(s.residual, to_float(weight));
    begin(next, smaller(layer + 1, LAYERS - 1), past, !LAYER_HELD, layer + 1 < LAYERS);
}

// logits = final_norm(x) . token, those of the block's rows.
__device__ void Worker::head() {
    constexpr u32 ROWS = warp_rows_max(HEAD), EACH = section_rows(HEAD), AT_ONCE = smaller(ROWS, EACH);
    Part part = warp_rows(HEAD, cluster, rank, warp), block = block_rows(HEAD, cluster, rank);
    auto ab_of = [&](u32 first) { return sums[LAYERS * LAYER_SUMS + smaller(part.first + first + lane % LANES<AT_ONCE>, VOCAB - 1)]; };
    float2 next = ab_of(0);
    float4 x[chunks(HEAD)];
    await<RESIDUAL>();
    expect<RESIDUAL>();
    read(x, s.residual);
#pragma unroll
    for (int lanes = 1; lanes < WARP; lanes *= 2) moments.add_lane(lanes);
    float2 norm = statistics();
#pragma unroll 1
    for (u32 first = 0; first < ROWS; first += AT_ONCE) {
        u32 row = first + lane % LANES<AT_ONCE>, token = part.first + row;
        bool read = false;
        float2 ab = next;
        next = ab_of(first + AT_ONCE);
        float sum[AT_ONCE] = {};
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
        if (lane < AT_ONCE && row < part.count) s.logits[token - block.first] = g.logits[token] = logit;
    }
}

// All blocks agree on the token.
__device__ u32 Worker::pick(Token &t) {
    __shared__ PickShared shared;
    Sampling rule = uniform(s.rule);
    Part part = block_rows(HEAD, cluster, rank);
    HeadScores scores(rule, {shared, g.exchange + PICKS_START, t.round}, part.first, part.count, t.step);
    head();
    scores.read(s.logits);
    return scores.pick();
}

__device__ inline void generate(const GridArguments &g, const float2 *sums, Shared &s, Token t) {
    Worker worker(g, sums, s);
    u32 issued = g.rule->issued;
    t.past = uniform(t.past), t.step = uniform(t.step), t.epoch = uniform(t.epoch), t.round = uniform(t.round);
#pragma unroll 1
    for (u32 i = 0; i < g.steps; i++) {
        Ahead ahead;
        worker.embed(t);
        worker.begin(ahead, 0, t.past, true, true);
#pragma unroll 1
        for (u32 layer = 0; layer < LAYERS; layer++) {
            Held<UP> held;
            t.epoch++;
            worker.attention(ahead, held, layer, t.past, t.epoch);
            worker.mlp(held, ahead, layer, t.past, t.epoch);
        }
        t.id = uniform(worker.pick(t));
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
        s.rule = sampling(VOCAB, 0, *g.rule);
    }
    for (u32 i = threadIdx.x; i < sizeof(s.core_mass) / sizeof(Mass); i += THREADS_ALL) s.core_mass[0][i] = {0, 1};
    for (u32 i = threadIdx.x; i < LAYERS * sizeof(Layer) / 8; i += THREADS_ALL)
        reinterpret_cast<u64 *>(s.layers)[i] = reinterpret_cast<const u64 *>(g.layers)[i];
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    cluster_barrier();
}

extern "C" __global__ void __launch_bounds__(THREADS_ALL, 1) ENTRY(decode_shards)(const __grid_constant__ GridArguments g, const float2 *sums) {
    extern __shared__ __align__(128) char memory[];
    Shared &s = *reinterpret_cast<Shared *>(memory);
    Token t = {g.tokens[0], g.cursor->past, g.cursor->step, g.state->epoch, g.state->round};
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
