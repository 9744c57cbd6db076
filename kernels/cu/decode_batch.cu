// `steps` tokens of every sequence of a batch in one launch: each cluster of N blocks runs the whole model for up to B of them and samples.
//
// It is decode.cu's loop with several sequences a step, in bfloat16; the clusters know nothing of each other. A block owns rows of every product, and
// their weights come through a ring (batch_ring.cuh) to tensor cores (batch_product.cuh). What it makes goes at once to every block that needs it,
// by stores that count themselves on the receiver's barrier. A layer is five such handoffs: q, k, v to the blocks of their heads; attention; the
// residual; what each block's share of hidden adds to it; the residual.
// A handoff's buffer is free again before its next values come: they need, through the handoffs between, something of every warp that reads it.
// Grid: clusters of N blocks, each of 8 warps that compute and four of which one thread fills the ring. The batch is spread evenly over the
// clusters; each computes for as many sequences as it has room for, and leaves what belongs to one. Needs sm_90. Deterministic.
// Launcher: src/decoder/batch.rs.
#include "batch_block.cuh"
#include "gelu_rounded.cuh"
#include "hopper.cuh"

// A thread that computes.
struct Decoder : Block {
    using Block::Block;

    __device__ void embed(u32 step);
    __device__ void attention(u32 layer, u32 step);
    __device__ void send_qkv();
    __device__ void send_core(u32 layer, u32 step);
    __device__ void out(u32 layer);
    __device__ void mlp(u32 layer);
    __device__ void head();
    __device__ void pick(u32 n);
};

// x = token + position, of this block's channels.
__device__ void Decoder::embed(u32 step) {
    Place place(min(threadIdx.x, OUTS - 1));
    u32 token = min(s.token[place.sequence], V - 1), position = min(s.cursor[place.sequence].past + step, P - 1);
    own = to_float(s.table[token][place.row]) + to_float(a.position[u64(position) * C + rank * OUT_ROWS + place.row]);
    if (place.row == 0) s.shift[place.sequence] = s.token_mean[token] + a.position_mean[position];
    meet();
    publish<RESIDUAL>(s.residual, constants(0) + GAMMA_1);
}

// q, k and v of ln1(x), sent to the blocks of their heads; there attention. The first keys are on their way meanwhile.
__device__ void Decoder::attention(u32 layer, u32 step) {
    u32 t = thread(), lane = t % WARP, warp = t / WARP;
    u32 here = warp / PAIR_PARTS, pair = rank * PAIRS_HERE + here, n = min(pair / H, B - 1), h = pair % H, past = min(s.cursor[n].past + step, P);
    bool busy = here < PAIRS_HERE && pair < PAIRS && n < s.count;
    u64 cached = (u64(s.first + n) * H + h) * P * D;
    u32 start = warp % PAIR_PARTS * TILE_KEYS, old = busy ? past : 0;
    cached += start * D;
    const bf16 *keys = plain_address(a.keys[layer] + cached + lane / 4 * D + lane % 4 * 8);
    const bf16 *values = plain_address(a.values[layer] + cached + lane % 4 * 2 * D + lane / 4 * WIDE);
    Keys held[TILES_AHEAD];
    auto load_keys = [&](int left) {
#pragma unroll
        for (u32 i = 0; i < TILES_AHEAD; i++) held[i].load_keys(keys + i * PAIR_PARTS * TILE_KEYS * D, left - int(i * PAIR_PARTS * TILE_KEYS));
    };
    auto load_values = [&](int left) {
#pragma unroll
        for (u32 i = 0; i < TILES_AHEAD; i++) held[i].load_values(values + i * PAIR_PARTS * TILE_KEYS * D, left - int(i * PAIR_PARTS * TILE_KEYS));
    };
    uint2 w[QKV_UNITS];
    ring.read(w);
    load_keys(int(old) - int(start));
    await<RESIDUAL>();
    Sums<QKV_ROWS / 8> sums;
    sums.add(w, s.residual, warp * TILES);
    sums.leave(s.partial[warp]);
    meet<NORMED, NORM_THREADS>();
    each_normed<QKV_ROWS>(constants(layer) + QKV_AB, [&](u32 i, float2 x) { reinterpret_cast<u32 *>(s.outgoing)[i] = pack(x.x, x.y); });
    meet();
    send_qkv();
    load_values(int(old) - int(start));
    if (rank * PAIRS_HERE < PAIRS) await<QKV>(); // of nothing, phases would end before all have seen them
    if (here < PAIRS_HERE) {
        Weighted weighted;
        const bf16 *k = s.qkv[1][here], *v = s.qkv[2][here];
#pragma unroll 1
        for (u32 at = start; at <= old; at += AHEAD_KEYS) {
#pragma unroll
            for (u32 i = 0; i < TILES_AHEAD; i++) {
                u32 tile = at + i * PAIR_PARTS * TILE_KEYS;
                if (tile <= old && old < tile + TILE_KEYS) held[i].insert(old - tile, k, v);
            }
            weighted.add(held, s.qkv[0][here], at, old);
            if (at + AHEAD_KEYS > old) continue;
            keys = plain_address(keys + AHEAD_KEYS * D), values = plain_address(values + AHEAD_KEYS * D);
            load_keys(int(old) - int(at + AHEAD_KEYS)), load_values(int(old) - int(at + AHEAD_KEYS));
        }
        weighted.leave(s.attention.part[here][warp % PAIR_PARTS], s.attention.mass[here][warp % PAIR_PARTS]);
    }
    if (lane == 0) barrier_arrive(shared_address(&s.attended));
    meet();
    send_core(layer, step);
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

// Merges the warps' parts of attention and sends them to all blocks; the cache gets the new keys and values.
__device__ void Decoder::send_core(u32 layer, u32 step) {
    constexpr u32 VECTORS = D / 8; // of a pair
    u32 t = thread(), lane = t % WARP, warp = t / WARP;
#pragma unroll
    for (u32 i = t; i < PAIRS_HERE * D; i += THREADS) {
        u32 here = i / D;
        float most = NO_SCORE, mass = 0, sum = 0;
#pragma unroll
        for (u32 p = 0; p < PAIR_PARTS; p++) most = fmaxf(most, s.attention.mass[here][p].most);
#pragma unroll
        for (u32 p = 0; p < PAIR_PARTS; p++) {
            Mass theirs = s.attention.mass[here][p];
            float weight = power_of_two(theirs.most - most);
            mass = fmaf(weight, theirs.mass, mass), sum = fmaf(weight, s.attention.part[here][p][i % D], sum);
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
#pragma unroll
    for (u32 i = t; i < 2 * PAIRS_HERE * VECTORS; i += THREADS) {
        u32 which = i / (PAIRS_HERE * VECTORS), here = i / VECTORS % PAIRS_HERE, pair = rank * PAIRS_HERE + here, n = pair / H, c = i % VECTORS * 8;
        if (n >= s.count) continue;
        u32 past = s.cursor[n].past + step;
        bf16 *to = (which == 0 ? a.keys : a.values)[layer] + ((u64(s.first + n) * H + pair % H) * P + past) * D + c;
        if (past < P) *reinterpret_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(&s.qkv[1 + which][here][c]);
    }
}

// x += out(core).
__device__ void Decoder::out(u32 layer) {
    uint2 w[OUT_UNITS];
    ring.read(w);
    await<CORE>();
    Sums<OUT_ROWS / 8> sums;
    sums.add(w, s.core, warp * TILES);
    sums.leave(s.partial[warp]);
    meet();
    u32 e = min(thread(), OUTS - 1);
    float sum = constants(layer)[OUT_BIAS + Place(e).row];
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) sum += s.partial[w][e];
    own += sum;
    publish<MIDDLE>(s.middle, constants(layer) + GAMMA_2);
}

// x += down(gelu(up(ln2(x)))): a block's rows of hidden stay there, and what they add to the others' rows of the residual is sent.
__device__ void Decoder::mlp(u32 layer) {
    uint2 w[UP_UNITS];
    ring.read(w);
    await<MIDDLE>();
    Sums<UP_ROWS / 8> sums;
    sums.add(w, s.middle, warp * TILES);
    sums.leave(s.partial[warp]);
    uint2 v[DOWN_UNITS];
    ring.read(v);
    meet<NORMED, NORM_THREADS>();
    each_normed<UP_ROWS>(constants(layer) + UP_AB, [&](u32 i, float2 x) {
        Place place(2 * i);
        *reinterpret_cast<u32 *>(&s.hidden.row[place.sequence][place.row]) = pack(gelu_rounded(x.x), gelu_rounded(x.y));
    });
    meet();
    Sums<DOWN_EIGHTS> parts;
    parts.add(v, s.hidden, 0);
    u32 t = thread(), lane = t % WARP, warp = t / WARP;
    parts.each([&](u32 eight, float4 x) {
        u32 first = warp * DOWN_EIGHTS + eight, there = in_block(base(), first / (OUT_ROWS / 8)), to = there + offset(s.down[rank]);
        to += (first % (OUT_ROWS / 8) * 8 * B + 2 * lane) * sizeof(float);
        if (parts.has_first()) send(to, x.x, x.y, there + barrier(DOWN));
        if (parts.has_second()) send(to + 64 * sizeof(float), x.z, x.w, there + barrier(DOWN));
    });
    u32 e = min(thread(), OUTS - 1);
    float sum = constants(layer)[DOWN_BIAS + Place(e).row];
    await<DOWN>();
#pragma unroll
    for (u32 i = 0; i < N; i++) sum += s.down[i][e];
    own += sum;
    publish<RESIDUAL>(s.residual, layer + 1 < LAYERS ? constants(layer + 1) + GAMMA_1 : s.constants + FINAL_GAMMA);
}

// logits = final_norm(x) . token, to all blocks, which all pick every sequence's next token.
__device__ void Decoder::head() {
    Sums<HEAD_ROWS / 8> sums;
    const char *weights = a.stream + u64(N) * STREAM_BYTES + (rank * WARPS + warp) * HEAD_BYTES;
    uint2 w[HEAD_UNITS];
#pragma unroll
    for (u32 i = 0; i < HEAD_UNITS; i++) w[i] = reinterpret_cast<const uint2 *>(weights + i * UNIT)[lane];
    await<RESIDUAL>();
    sums.add(w, s.residual, warp * TILES);
    sums.leave(s.partial[warp]);
    meet<NORMED, NORM_THREADS>();
    // To every block, a sequence's rows together.
#pragma unroll
    for (u32 i = thread(); i < HEAD_ROWS * B / 2 * N; i += THREADS) {
        u32 e = i % (HEAD_ROWS * B / 2), v = rank * HEAD_ROWS + Place(2 * e).row, there = in_block(base(), i / (HEAD_ROWS * B / 2));
        float2 x = normed(s.constants + HEAD_AB, e);
        u32 at = there + offset(&s.logits[Place(2 * e).sequence][v]);
        if (v < V) send(at, x.x, there + barrier(LOGITS));
        if (v + 1 < V) send(at + sizeof(float), x.y, there + barrier(LOGITS));
    }
    meet<NOISY, WARP>();
    await<LOGITS>();
    pick(warp);
    if (warp + WARPS < s.count) pick(warp + WARPS);
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
    u32 first = s.first, count = s.count, issued = a.state->issued, n = threadIdx.x;
    bool speaks = decoder.rank == 0 && n < count;
#pragma unroll 1
    for (u32 step = 0; step < a.steps; step++) {
        decoder.embed(step);
#pragma unroll 1
        for (u32 layer = 0; layer < LAYERS; layer++) {
            decoder.attention(layer, step);
            decoder.out(layer);
            decoder.mlp(layer);
        }
        decoder.head();
        if (speaks) a.outbox[u64((issued + step) % a.slots) * a.batch + first + n] = u64(issued + step + 1) << 32 | s.token[n];
    }
    if (decoder.rank > 0) return;
    for (u32 i = threadIdx.x; i < count * V; i += THREADS) a.logits[u64(first) * V + i] = s.logits[i / V][i % V];
    if (speaks) {
        a.tokens[first + n] = s.token[n];
        a.cursor[first + n] = {s.cursor[n].past + a.steps, s.cursor[n].step + a.steps, 1};
    }
}

// The warps of norms: thread `thread` of theirs.
__device__ inline void make_norms(const BatchArguments &a, Shared &s, u32 thread) {
    u32 residual = 0, middle = 0, first = shared_address(s.arrived);
#pragma unroll 1
    for (u32 step = 0; step < a.steps; step++)
#pragma unroll 1
        for (u32 layer = 0; layer <= LAYERS; layer++) {
            barrier_await_together(first + RESIDUAL * sizeof(u64), residual);
            make_norms(s, s.residual, a.eps, thread);
            __syncwarp();
            help<NORMED, NORM_THREADS>();
            residual ^= 1;
            if (layer == LAYERS) continue;
            barrier_await_together(first + MIDDLE * sizeof(u64), middle);
            make_norms(s, s.middle, a.eps, thread);
            __syncwarp();
            help<NORMED, NORM_THREADS>();
            middle ^= 1;
        }
}

// The warp of noise: what each draw of a step adds to the scores, while the model runs.
__device__ inline void make_noise(const BatchArguments &a, Shared &s) {
#pragma unroll 1
    for (u32 step = 0; step < a.steps; step++) {
#pragma unroll 1
        for (u32 i = threadIdx.x % WARP; i < s.count * V; i += WARP) {
            u32 n = i / V;
            if (!s.rule[n].greedy) s.noise[n][i % V] = gumbel(i % V, s.cursor[n].step + step, s.rule[n]);
        }
        __syncwarp();
        help<NOISY, WARP>();
        meet<PICKED, WARP>();
    }
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
        barrier_init(shared_address(&s.attended), WARPS);
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
    __syncthreads();
    cluster_barrier();
    if (threadIdx.x < THREADS) {
        take_registers<240>();
        generate(a, s);
    } else {
        give_registers<24>();
        u32 helper = threadIdx.x - THREADS;
        if (helper < NORM_THREADS) make_norms(a, s, helper);
        else if (helper < NORM_THREADS + WARP) make_noise(a, s);
        else if (helper == NORM_THREADS + WARP) Ring::fill(s, a.stream + u64(rank) * STREAM_BYTES, a.steps * LAYERS);
        __syncwarp();
    }
    __syncthreads();
    if (threadIdx.x == 0) finish(a);
    __syncwarp();
    cluster_barrier(); // a block's shared memory stays until nobody sends to it
}
