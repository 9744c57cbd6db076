// `steps` tokens of every sequence of a batch in one launch: each cluster of N blocks runs the whole model for up to B of them and samples.
//
// It is decode.cu's loop with several sequences a step, in bfloat16; the clusters know nothing of each other. A block owns rows of every product, and
// their weights come through a ring (batch_ring.cuh) to tensor cores (batch_product.cuh). What it makes goes at once to every block that needs it,
// by stores that count themselves on the receiver's barrier. A layer is five such handoffs: q, k, v to the blocks of their heads; attention; the
// residual; what each block's share of hidden adds to it; the residual. While one is on its way, warps read the weights of what it brings.
// A handoff's buffer is free again before its next values come: they need, through the handoffs between, something of every warp that reads it.
// Grid: clusters of N blocks, each of 8 warps that compute and four that help (batch_helpers.cuh). The batch is spread evenly over the
// clusters; each computes for as many sequences as it has room for, and leaves what belongs to one. Needs sm_90. Deterministic.
// Launcher: src/decoder/batch.rs.
#include "batch_helpers.cuh"
#include "gelu_rounded.cuh"
#include "hopper.cuh"

// A thread that computes.
struct Decoder : Block {
    u32 near_parity = 0;
    float position, position_mean; // of the next step
    const u32 count;               // of the cluster's sequences

    __device__ Decoder(const BatchArguments &a, Shared &s) : Block(a, s), count(uniform(s.count)) {}

    __device__ void foresee(u32 step);
    __device__ void embed();
    __device__ void layer(u32 layer, u32 step, uint2 (&w_qkv)[QKV_UNITS]);
    __device__ void project(u32 layer, const uint2 (&w)[QKV_UNITS]);
    __device__ void attention(u32 layer, u32 step, const uint2 (&w)[QKV_UNITS]);
    template <u32 COUNT>
    __device__ void attend(Weighted &weighted, Keys (&held)[TILES_AHEAD], const bf16 *&keys, const bf16 *&values, u32 here, u32 at, u32 old);
    __device__ void send_qkv();
    __device__ void send_core();
    __device__ void append(u32 layer, u32 step);
    __device__ void out(u32 layer, const uint2 (&w)[OUT_UNITS]);
    __device__ void activate(u32 layer);
    __device__ void down(const uint2 (&w)[2][DOWN_UNITS / 2]);
    __device__ void add_down(u32 layer, const float *gamma);
    __device__ void head(u32 step);
    __device__ void pick(u32 n);
};

// Reads what a step adds to its tokens' embeddings, ahead of the tokens.
__device__ void Decoder::foresee(u32 step) {
    Place place(min(thread(), OUTS - 1));
    u32 at = min(s.cursor[place.sequence].past + step, P - 1);
    position = to_float(a.position[u64(at) * C + rank * OUT_ROWS + place.row]), position_mean = a.position_mean[at];
}

// x = token + position, of this block's channels.
__device__ void Decoder::embed() {
    Place place(min(thread(), OUTS - 1));
    u32 token = min(s.token[place.sequence], V - 1);
    own = to_float(s.table[token][place.row]) + position;
    if (place.row == 0) s.shift[place.sequence] = s.token_mean[token] + position_mean;
    meet();
    publish<RESIDUAL>(s.residual, constants(0) + GAMMA_1);
}

// Attends to the COUNT tiles from key `at` on that have keys, and asks for those of the next turn.
template <u32 COUNT>
__device__ void Decoder::attend(Weighted &weighted, Keys (&held)[TILES_AHEAD], const bf16 *&keys, const bf16 *&values, u32 here, u32 at, u32 old) {
    u32 lane = thread() % WARP;
    with_newest<COUNT>(held, at, old, [&](Keys &tile, u32 place) { tile.insert_key(place, s.qkv[1][here], lane); });
    float score[TILES_AHEAD * 2][4];
    weighted.score<COUNT>(score, held, s.qkv[0][here], lane);
    bool more = COUNT == TILES_AHEAD && at + AHEAD_KEYS <= old;
    if (more) keys = plain_address(keys + AHEAD_KEYS * D), load_keys(held, keys, int(old) - int(at + AHEAD_KEYS), 0);
    if (at < TURN_KEYS)
#pragma unroll
        for (u32 i = 0; i < TILES_NEAR && i < COUNT; i++) held[i].load_near_values(near_of(s).values[here][at + i * TURN_KEYS], lane);
    with_newest<COUNT>(held, at, old, [&](Keys &tile, u32 place) { tile.insert_value(place, s.qkv[2][here], lane); });
    weighted.add<COUNT>(score, held, at, old, lane);
    if (more) values = plain_address(values + AHEAD_KEYS * D), load_values(held, values, int(old) - int(at + AHEAD_KEYS), 0);
}

// q, k and v of ln1(x), sent to the blocks of their heads; there attention. The first keys and values lie in shared memory, of those behind them as
// many as a warp has registers for are on their way meanwhile.
__device__ void Decoder::attention(u32 layer, u32 step, const uint2 (&w)[QKV_UNITS]) {
    u32 lane = thread() % WARP, here = warp / PAIR_PARTS, pair = rank * PAIRS_HERE + here, n = min(pair / H, B - 1), h = pair % H;
    u32 past = uniform(min(s.cursor[n].past + step, P));
    bool busy = here < PAIRS_HERE && pair < PAIRS && n < count;
    u64 cached = (u64(s.first + n) * H + h) * P * D;
    u32 start = warp % PAIR_PARTS * TILE_KEYS, old = busy ? past : 0;
    cached += start * D;
    const bf16 *keys = plain_address(a.keys[layer] + cached + lane / 4 * D + Keys::key_channel(0, lane));
    const bf16 *values = plain_address(a.values[layer] + cached + lane % 4 * 2 * D + Keys::value_channel(lane));
    Keys held[TILES_AHEAD];
    load_values(held, values, int(old) - int(start), TILES_NEAR);
    project(layer, w);
    load_keys(held, keys, int(old) - int(start), TILES_NEAR);
    barrier_await_together(shared_address(&s.near), near_parity), near_parity ^= 1;
    if (here < PAIRS_HERE)
#pragma unroll
        for (u32 i = 0; i < TILES_NEAR; i++) held[i].load_near_keys(near_of(s).keys[here][start + i * TURN_KEYS], lane);
    if (rank * PAIRS_HERE < PAIRS) await<QKV>(); // of nothing, phases would end before all have seen them
    if (here < PAIRS_HERE) {
        Weighted weighted;
#pragma unroll 1
        for (u32 at = start; at <= old; at += AHEAD_KEYS) {
            u32 tiles = (old - at) / TURN_KEYS;
            if (tiles == 0) attend<1>(weighted, held, keys, values, here, at, old);
            else if (tiles == 1) attend<2>(weighted, held, keys, values, here, at, old);
            else if (tiles == 2) attend<3>(weighted, held, keys, values, here, at, old);
            else attend<TILES_AHEAD>(weighted, held, keys, values, here, at, old);
        }
        weighted.leave(s.attention.part[here][warp % PAIR_PARTS], s.attention.mass[here][warp % PAIR_PARTS], lane);
    }
    meet();
    send_core();
    append(layer, step);
}

// q, k and v of ln1(x), sent to the blocks of their heads.
__device__ void Decoder::project(u32 layer, const uint2 (&w)[QKV_UNITS]) {
    await<RESIDUAL>();
    product<QkvShare>(s.residual, w);
    meet<NORMED, NORM_THREADS>();
    each_normed<QkvShare>(constants(layer) + QKV_AB, [&](u32 i, float2 x) { reinterpret_cast<u32 *>(s.outgoing)[i] = pack(x.x, x.y); });
    meet();
    send_qkv();
}

// Sends eights of rows to the blocks that attend with them.
__device__ void Decoder::send_qkv() {
    constexpr u32 VECTORS = QKV_ROWS / 8 * B;
    u32 t = thread();
    if (t >= VECTORS) return;
    u32 n = t % B, row = rank * QKV_ROWS + t / B * 8, pair = n * H + row % C / D;
    u32 there = in_block(base(), pair / PAIRS_HERE);
    uint4 x = reinterpret_cast<const uint4 *>(s.outgoing)[t];
    send(there + offset(&s.qkv[row / C][pair % PAIRS_HERE][row % D]), x, there + barrier(QKV));
}

// Merges the warps' parts of attention and sends them to all blocks.
__device__ void Decoder::send_core() {
    constexpr u32 VECTORS = D / 8; // of a pair
    u32 lane = thread() % WARP;
#pragma unroll
    for (u32 i = thread(); i < PAIRS_HERE * D; i += THREADS) {
        u32 here = i / D;
        float most = NO_SCORE, mass = 0, sum = 0;
#pragma unroll
        for (u32 p = 0; p < PAIR_PARTS; p++) most = fmaxf(most, s.attention.mass[here][p].most);
#pragma unroll
        for (u32 p = 0; p < PAIR_PARTS; p++) {
            Mass theirs = s.attention.mass[here][p];
            float weight = power_of_two(theirs.most - most);
            const float(*part)[D] = s.attention.part[here][p];
            float all = (part[0][i % D] + part[1][i % D]) + (part[2][i % D] + part[3][i % D]);
            mass = fmaf(weight, theirs.mass, mass), sum = fmaf(weight, all, sum);
        }
        s.outgoing[i] = from_float<bf16>(__fdividef(sum, mass));
    }
    meet();
#pragma unroll
    for (u32 i = lane; i < PAIRS_HERE * VECTORS; i += WARP) {
        u32 pair = rank * PAIRS_HERE + i / VECTORS;
        if (pair >= PAIRS) continue;
        uint4 x = reinterpret_cast<const uint4 *>(s.outgoing)[i];
#pragma unroll
        for (u32 j = 0; j < N; j += WARPS) {
            u32 there = in_block(base(), j + warp);
            send(there + offset(&s.core.row[pair / H][pair % H * D + i % VECTORS * 8]), x, there + barrier(CORE));
        }
    }
}

// The cache gets the new keys and values.
__device__ void Decoder::append(u32 layer, u32 step) {
    constexpr u32 VECTORS = D / 8; // of a pair
#pragma unroll
    for (u32 i = thread(); i < 2 * PAIRS_HERE * VECTORS; i += THREADS) {
        u32 which = i / (PAIRS_HERE * VECTORS), here = i / VECTORS % PAIRS_HERE, pair = rank * PAIRS_HERE + here, n = pair / H, c = i % VECTORS * 8;
        if (n >= s.count) continue;
        u32 past = s.cursor[n].past + step;
        bf16 *to = (which == 0 ? a.keys : a.values)[layer] + ((u64(s.first + n) * H + pair % H) * P + past) * D + c;
        if (past < P) *reinterpret_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(&s.qkv[1 + which][here][c]);
    }
    __syncwarp();
    if (threadIdx.x % WARP == 0) barrier_arrive(shared_address(&s.attended));
}

// A layer. A product's weights are read while its input is on its way, or the one before; those of up and down in halves, because the ring holds half
// a layer. The last ones read are of the next layer.
__device__ void Decoder::layer(u32 layer, u32 step, uint2 (&w_qkv)[QKV_UNITS]) {
    attention(layer, step, w_qkv);
    uint2 w_out[OUT_UNITS], w_up[2][UP_UNITS / 2], w_down[2][DOWN_UNITS / 2];
    ring.read(w_out), ring.read(w_up[0]);
    out(layer, w_out);
    ring.read(w_up[1]), ring.read(w_down[0]);
    await<MIDDLE>();
    product<UpShare>(s.residual, w_up[0], w_up[1]);
    ring.read(w_down[1]);
    activate(layer);
    down(w_down);
    ring.read(w_qkv);
}

// x += out(core).
__device__ void Decoder::out(u32 layer, const uint2 (&w)[OUT_UNITS]) {
    await<CORE>();
    product<OutShare>(s.core, w);
    meet();
    u32 e = min(thread(), OUTS - 1);
    float sum = constants(layer)[OUT_BIAS + Place(e).row];
#pragma unroll
    for (u32 part = 0; part < OutShare::PARTS; part++) sum += s.partial[part * OUTS + e];
    own += sum;
    publish<MIDDLE>(s.residual, constants(layer) + GAMMA_2);
}

// hidden = gelu(up(ln2(x))), of what the warps have left of up: a block's rows stay there.
__device__ void Decoder::activate(u32 layer) {
    meet<NORMED, NORM_THREADS>();
    each_normed<UpShare>(constants(layer) + UP_AB, [&](u32 i, float2 x) {
        Place place(2 * i);
        *reinterpret_cast<u32 *>(&s.hidden.row[place.sequence][place.row]) = pack(gelu_rounded(x.x), gelu_rounded(x.y));
    });
    meet();
}

// What the block's hidden adds to each row of the residual, sent to that row's block by way of the warp's part of `partial`.
__device__ void Decoder::down(const uint2 (&w)[2][DOWN_UNITS / 2]) {
    Sums<DOWN_EIGHTS> parts;
    parts.add(w[0], s.hidden, 0), parts.add(w[1], s.hidden, DOWN_TILES / 2);
    u32 lane = thread() % WARP;
    u32 *staged = reinterpret_cast<u32 *>(s.partial) + warp * DOWN_EIGHTS * 4 * B;
    parts.each([&](u32 eight, float4 x) {
        if (parts.has_first()) staged[eight * 4 * B + lane] = pack(x.x, x.y);
        if (parts.has_second()) staged[eight * 4 * B + WARP + lane] = pack(x.z, x.w);
    });
    __syncwarp();
#pragma unroll
    for (u32 i = lane; i < DOWN_EIGHTS * B; i += WARP) {
        u32 eight = warp * DOWN_EIGHTS + i / B, there = in_block(base(), eight / (OUT_ROWS / 8));
        uint4 x = reinterpret_cast<const uint4 *>(staged)[i];
        send(there + offset(s.down[rank]) + (eight % (OUT_ROWS / 8) * B + i % B) * 16, x, there + barrier(DOWN));
    }
}

// x += down(hidden).
__device__ void Decoder::add_down(u32 layer, const float *gamma) {
    u32 e = min(thread(), OUTS - 1);
    float sum = constants(layer)[DOWN_BIAS + Place(e).row];
    await<DOWN>();
#pragma unroll
    for (u32 i = 0; i < N; i++) sum += to_float(s.down[i][e]);
    own += sum;
    publish<RESIDUAL>(s.residual, gamma);
}

// logits = final_norm(x) . token, to all blocks, which all pick every sequence's next token.
__device__ void Decoder::head(u32 step) {
    const char *weights = a.stream + u64(N) * STREAM_BYTES + (rank * WARPS + warp) * HEAD_BYTES;
    uint2 w[HEAD_UNITS];
#pragma unroll
    for (u32 i = 0; i < HEAD_UNITS; i++) w[i] = reinterpret_cast<const uint2 *>(weights + i * UNIT)[lane];
    foresee(step + 1);
    add_down(LAYERS - 1, s.constants + FINAL_GAMMA);
    await<RESIDUAL>();
    product<HeadShare>(s.residual, w);
    meet<NORMED, NORM_THREADS>();
    each_normed<HeadShare>(s.constants + HEAD_AB, [&](u32 i, float2 x) { reinterpret_cast<float2 *>(s.head_rows)[i] = x; });
    meet();
    constexpr u32 VECTORS = HEAD_ROWS * B / 4;
#pragma unroll
    for (u32 i = thread(); i < VECTORS * N; i += THREADS) {
        u32 v = i % VECTORS, there = in_block(base(), i / VECTORS);
        Place place(4 * v);
        uint4 x = reinterpret_cast<const uint4 *>(s.head_rows)[v];
        send(there + offset(&s.logits[place.sequence][rank * HEAD_ROWS + place.row]), x, there + barrier(LOGITS));
    }
    meet<NOISY, WARP>();
    await<LOGITS>();
#pragma unroll 1
    for (u32 n = warp; n < count; n += WARPS) pick(n);
    __syncwarp();
    help<PICKED, WARP>();
    meet();
}

// Picks a sequence's next token: a warp.
__device__ void Decoder::pick(u32 n) {
    Sampling rule = s.rule[n];
    Scores<(V + WARP - 1) / WARP, WholeWarp> scores(rule, {}, [&](u32 token) { return s.noise[n][token]; });
    scores.read(s.logits[n]);
    u32 token = scores.pick();
    if (lane == 0) s.token[n] = token;
}

__device__ inline void generate(const BatchArguments &a, Shared &s) {
    Decoder decoder(a, s);
    uint2 w_qkv[QKV_UNITS];
    decoder.ring.read(w_qkv);
    decoder.foresee(0);
#pragma unroll 1
    for (u32 step = 0; step < a.steps; step++) {
        decoder.embed();
#pragma unroll 1
        for (u32 layer = 0; layer < LAYERS; layer++) {
            decoder.layer(layer, step, w_qkv);
            if (layer + 1 < LAYERS) decoder.add_down(layer, decoder.constants(layer + 1) + GAMMA_1);
        }
        decoder.head(step);
    }
    if (decoder.rank > 0) return;
    u32 n = threadIdx.x;
    for (u32 i = n; i < s.count * V; i += THREADS) a.logits[u64(s.first) * V + i] = s.logits[i / V][i % V];
    if (n >= s.count) return;
    a.tokens[s.first + n] = s.token[n];
    a.cursor[s.first + n] = {s.cursor[n].past + a.steps, s.cursor[n].step + a.steps, 1};
}

// Whoever is the last of the launch counts the rows issued: by then all have read the count.
__device__ inline void finish(const BatchArguments &a) {
    __threadfence();
    if (atomicAdd(&a.state->finished, 1) + 1 < gridDim.x) return;
    a.state->finished = 0, a.state->issued += a.steps;
}

extern "C" __global__ void __launch_bounds__(THREADS + 4 * WARP, 1) ENTRY(decode_batch)(const __grid_constant__ BatchArguments a) {
    extern __shared__ __align__(128) char memory[];
    Shared &s = *reinterpret_cast<Shared *>(memory);
    u32 rank = cluster_rank(), cluster = blockIdx.x / N, clusters = gridDim.x / N;
    u32 first = cluster * a.batch / clusters, count = (cluster + 1) * a.batch / clusters - first;
    if (threadIdx.x == 0) {
        s.first = first, s.count = count;
#pragma unroll
        for (u32 i = 0; i < HANDOFFS; i++) {
            barrier_init(shared_address(&s.arrived[i]), 1);
            barrier_expect(shared_address(&s.arrived[i]), Decoder::bytes(i, rank));
        }
        barrier_init(shared_address(&s.near), WARP), barrier_init(shared_address(&s.attended), WARPS);
#pragma unroll 1
        for (u32 i = 0; i < SLOTS_MAX; i++) barrier_init(shared_address(&s.full[i]), 1), barrier_init(shared_address(&s.empty[i]), WARPS);
        publish_barriers();
    }
    if (threadIdx.x < B) {
        u32 n = first + min(threadIdx.x, count - 1);
        s.cursor[threadIdx.x] = a.cursor[n], s.token[threadIdx.x] = a.tokens[n], s.rule[threadIdx.x] = sampling(V, n, *a.state);
    }
    for (u32 i = threadIdx.x; i < CONSTANTS; i += blockDim.x) s.constants[i] = a.constants[u64(rank) * CONSTANTS + i];
    for (u32 i = threadIdx.x; i < V; i += blockDim.x) s.token_mean[i] = a.token_mean[i];
    for (u32 i = threadIdx.x; i < V * OUT_ROWS / 8; i += blockDim.x) {
        u32 v = i / (OUT_ROWS / 8), c = i % (OUT_ROWS / 8) * 8;
        *reinterpret_cast<uint4 *>(&s.table[v][c]) = *reinterpret_cast<const uint4 *>(a.token + u64(v) * C + rank * OUT_ROWS + c);
    }
    for (u32 i = threadIdx.x; i < sizeof(Near) / sizeof(uint4); i += blockDim.x) reinterpret_cast<uint4 *>(&near_of(s))[i] = make_uint4(0, 0, 0, 0);
    __syncthreads();
    cluster_barrier();
    u32 warp = uniform(threadIdx.x / WARP);
    if (warp < WARPS) {
        take_registers<240>();
        generate(a, s);
    } else {
        give_registers<24>();
        if (warp == WARPS) make_norms(a, s, threadIdx.x % WARP);
        else if (warp == WARPS + 1) make_noise(a, s);
        else if (warp == WARPS + 2) bring_keys(a, s);
        else if (threadIdx.x % WARP == 0) Ring::fill(s, a.stream + u64(rank) * STREAM_BYTES, a.steps * LAYERS);
        __syncwarp();
    }
    __syncthreads();
    if (threadIdx.x == 0) finish(a);
    __syncwarp();
    cluster_barrier(); // a block's shared memory stays until nobody sends to it
}
