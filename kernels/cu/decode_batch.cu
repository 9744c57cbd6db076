// `steps` tokens of every sequence of a batch in one launch: each cluster of N blocks runs the whole model for up to B of them and samples.
//
// It is decode.cu's loop with several sequences a step, in bfloat16; the clusters know nothing of each other. A block owns rows of every product, whose
// weights its warps stream through rings (batch_ring.cuh) into tensor cores (batch_product.cuh). What it makes goes at once to every block that needs
// it, by stores that count themselves on the receiver's barrier. A layer is five such handoffs: q, k, v to the blocks of their heads; attention;
// the residual; what each block's share of hidden adds to it; the residual. Of the residual travels what the next norm needs: gamma (x - shift),
// in the working precision, and the block's moments; the sum itself stays with the thread that made it.
// A handoff's buffer is free again before its next values come: they need, through the handoffs between, something of every warp that reads it.
// Grid: clusters of N blocks of 8 warps; the batch is spread evenly over them, and what a cluster has not to do it does for nobody. Needs sm_90.
// Deterministic. Launcher: src/decoder/batch.rs.
#include "batch_attention.cuh"
#include "hopper.cuh"

struct BatchArguments {
    const char *stream;                      // decode_batch_pack.cu
    const float *constants;                  // [N][CONSTANTS]
    const float *token_mean, *position_mean; // [V], [P]
    const bf16 *token, *position;
    bf16 *keys[LAYERS], *values[LAYERS]; // [batch, H, P, D]
    float *logits;                       // [batch, V]
    u32 *tokens;                         // [batch]
    Cursor *cursor;                      // [batch]
    volatile u64 *outbox;                // [slots, batch]
    OutboxState *state;
    u32 slots, steps, batch;
    float eps;
};
static_assert(sizeof(BatchArguments) == 8 * (13 + 2 * LAYERS), "BatchArguments are laid out in Rust");

__device__ inline float gelu_exact(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }

#ifndef MARK
#define MARK(i)
#endif

// A thread that computes.
struct Decoder {
    const BatchArguments &a;
    Shared &s;
    const u32 rank, warp, lane;
    Ring ring;
    u32 parities = 0; // of the handoffs awaited next
    float own = 0;    // an element of the residual: that of Place(threadIdx.x)

    __device__ Decoder(const BatchArguments &a, Shared &s)
        : a(a), s(s), rank(cluster_rank()), warp(threadIdx.x / WARP), lane(threadIdx.x % WARP), ring(s) {}

    // The thread's number, as if it were another each time: else the compiler keeps all that follows from it, and runs out of registers.
    static __device__ u32 thread() {
        u32 t = threadIdx.x;
        asm volatile("" : "+r"(t));
        return t;
    }

    // ---- handoffs ----

    __device__ u32 base() const { return shared_address(&s); }
    // What one brings to block `rank`.
    static __device__ u32 bytes(u32 handoff, u32 rank) {
        return handoff == QKV      ? min(PAIRS - min(rank * PAIRS_HERE, PAIRS), PAIRS_HERE) * 3 * D * sizeof(bf16)
               : handoff == CORE   ? B * C * sizeof(bf16)
               : handoff == DOWN   ? sizeof(Shared::down)
               : handoff == LOGITS ? sizeof(Shared::logits)
                                   : sizeof(NormInput);
    }
    __device__ u32 barrier(u32 handoff) const { return handoff * sizeof(u64); }
    __device__ u32 offset(const void *p) const { return shared_address(p) - base(); }

    // Waits for a handoff and makes its barrier ready for the next.
    template <u32 HANDOFF> __device__ void await() {
        barrier_await_together(base() + barrier(HANDOFF), parities >> HANDOFF & 1);
        parities ^= 1u << HANDOFF;
        if (threadIdx.x == 0) barrier_expect(base() + barrier(HANDOFF), bytes(HANDOFF, rank));
    }

    // ---- the residual ----

    // Sends what the next norm needs of the residual: all blocks get it.
    template <u32 HANDOFF> __device__ void publish(NormInput &to, const float *gamma) {
        u32 t = thread(), lane = t % WARP, warp = t / WARP;
        Place place(min(t, OUTS - 1));
        float x = own - s.shift[place.sequence], sum = x, squares = x * x;
        if (t < OUTS) s.outgoing[t] = from_float<bf16>(x * gamma[place.row]);
#pragma unroll
        for (u32 lanes = 1; lanes < 8; lanes *= 2) {
            sum += __shfl_xor_sync(ALL_LANES, sum, lanes);
            squares += __shfl_xor_sync(ALL_LANES, squares, lanes);
        }
        if (t < OUTS && lane % 8 == 0) s.own_moments[place.row / 8][place.sequence] = {sum, squares};
#if BULK
        fence_copies();
#endif
        meet();
        if (lane < B) {
            Moments all = {0, 0};
#pragma unroll
            for (u32 i = 0; i < OUT_ROWS / 8; i++) all.sum += s.own_moments[i][lane].sum, all.squares += s.own_moments[i][lane].squares;
#pragma unroll
            for (u32 j = 0; j < N; j += WARPS) {
                u32 there = in_block(base(), j + warp);
                send(there + offset(&to.moments[lane][rank]), all.sum, all.squares, there + barrier(HANDOFF));
            }
        }
#if BULK
        if (lane == 0)
#pragma unroll
            for (u32 j = 0; j < N; j += WARPS) {
                u32 there = in_block(base(), j + warp);
                copy_to_block(there + offset(to.eight[rank * (OUT_ROWS / 8)]), shared_address(s.outgoing), OUTS * sizeof(bf16), there + barrier(HANDOFF));
            }
#else
        constexpr u32 VECTORS = OUTS / 8;
#pragma unroll
        for (u32 i = 0; i < (VECTORS + WARP - 1) / WARP; i++) {
            u32 v = i * WARP + lane;
            if (v >= VECTORS) continue;
            uint4 x = reinterpret_cast<const uint4 *>(s.outgoing)[v];
#pragma unroll
            for (u32 j = 0; j < N; j += WARPS) {
                u32 there = in_block(base(), j + warp);
                send(there + offset(to.eight[rank * (OUT_ROWS / 8)]) + v * 16, x, there + barrier(HANDOFF));
            }
        }
#endif
    }

    // Every sequence's norm, from what the blocks sent: four lanes each. All have it when they have met.
    __device__ void norm(const NormInput &from) {
        if (warp >= (4 * B + WARP - 1) / WARP) return;
        u32 n = min(threadIdx.x / 4, B - 1);
        float sum = 0, squares = 0;
#pragma unroll
        for (u32 i = 0; i < N / 4; i++) {
            Moments m = from.moments[n][lane % 4 * (N / 4) + i];
            sum += m.sum, squares += m.squares;
        }
        float mean = quad_sum(sum) * (1.0f / C), square = quad_sum(squares) * (1.0f / C);
        if (threadIdx.x < 4 * B && lane % 4 == 0) {
            s.norm[n] = {mean, rsqrtf(fmaxf(square - mean * mean, 0.0f) + a.eps)};
            s.shift[n] += mean;
        }
    }
    // Elements 2 i and 2 i + 1 of a product behind it.
    __device__ float2 normed(const float *ab, u32 i) const {
        Place place(2 * i);
        Norm n = s.norm[place.sequence];
        float4 x = *reinterpret_cast<const float4 *>(ab + 2 * place.row);
        float2 dot = summed(s.partial, i);
        return make_float2(fmaf(n.scale, fmaf(-n.mean, x.x, dot.x), x.y), fmaf(n.scale, fmaf(-n.mean, x.z, dot.y), x.w));
    }

    // f(i, elements 2 i and 2 i + 1) for the thread's elements of so many rows; all are read before the first is used.
    template <u32 ROWS, typename F> __device__ void each_normed(const float *ab, F f) const {
        constexpr u32 COUNT = ROWS * B / 2, EACH = (COUNT + THREADS - 1) / THREADS;
        u32 t = thread();
        float2 x[EACH];
#pragma unroll
        for (u32 j = 0; j < EACH; j++) x[j] = normed(ab, min(j * THREADS + t, COUNT - 1));
#pragma unroll
        for (u32 j = 0; j < EACH; j++)
            if (j * THREADS + t < COUNT) f(j * THREADS + t, x[j]);
    }

    __device__ const float *constants(u32 layer) const { return s.constants + layer * LAYER_CONSTANTS; }

    __device__ void embed(u32 step);
    __device__ void attention(u32 layer, u32 step);
    __device__ void load(Keys (&held)[TILES_AHEAD], u32 here, u32 part, u32 old, u32 &tile, u32 tiles);
    __device__ void send_qkv();
    __device__ void send_core(u32 layer, u32 step);
    __device__ void out(u32 layer);
    __device__ void mlp(u32 layer);
    __device__ void head(u32 step);
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
    u32 here = warp / PAIR_PARTS, pair = rank * PAIRS_HERE + here, n = min(pair / H, B - 1), h = pair % H, past = min(s.cursor[n].past + step, P);
    bool busy = here < PAIRS_HERE && pair < PAIRS && n < s.count;
    u32 part = warp % PAIR_PARTS, old = busy ? past : 0;
    MARK(0);
    uint2 w[QKV_UNITS];
    ring.read(w);
    MARK(26);
    await<RESIDUAL>();
    MARK(1);
    norm(s.residual);
    Sums<QKV_ROWS / 8> sums;
    sums.add(w, s.residual, warp * TILES);
    sums.leave(s.partial[warp]);
    MARK(2);
    meet();
    MARK(3);
    each_normed<QKV_ROWS>(constants(layer) + QKV_AB, [&](u32 i, float2 x) { reinterpret_cast<u32 *>(s.outgoing)[i] = pack(x.x, x.y); });
    meet();
    send_qkv();
    MARK(4);
    u32 tiles = (Filler::cached(s.longest, step) + TILE_KEYS - 1) / TILE_KEYS, tile = 0;
    Weighted weighted;
#pragma unroll 1
    for (u32 at = part * TILE_KEYS; tile < tiles || at <= old || at < AHEAD_KEYS; at += AHEAD_KEYS) {
        Keys held[TILES_AHEAD];
        load(held, here, part, old, tile, tiles);
        MARK(29);
        // Of nothing, phases would end before all have seen them.
        if (at < AHEAD_KEYS && rank * PAIRS_HERE < PAIRS) await<QKV>();
        MARK(5);
        if (here < PAIRS_HERE && at <= old) {
#pragma unroll
            for (u32 i = 0; i < TILES_AHEAD; i++) {
                u32 first = at + i * PAIR_PARTS * TILE_KEYS;
                if (first <= old && old < first + TILE_KEYS) held[i].insert(old - first, s.qkv[1][here], s.qkv[2][here]);
            }
            weighted.add(held, s.qkv[0][here], at, old);
        }
    }
    if (here < PAIRS_HERE) weighted.leave(s.attention.part[here][part], s.attention.mass[here][part]);
    MARK(6);
    meet();
    MARK(7);
    send_core(layer, step);
    MARK(8);
}

// Reads the ring's next tiles, of `tiles` in all: of its pair, each of a pair's warps its own.
__device__ __forceinline__ void Decoder::load(Keys (&held)[TILES_AHEAD], u32 here, u32 part, u32 old, u32 &tile, u32 tiles) {
    auto pass = [&](u32 end) {
#pragma unroll 1
        for (; tile < end; tile++) ring.await(), ring.advance(), ring.release(0u);
    };
#pragma unroll
    for (u32 i = 0; i < TILES_AHEAD; i++) {
        u32 group = tile;
        pass(min(group + part, tiles));
        if (tile < tiles) {
            ring.await();
            const bf16 *keys = ring.tile(min(here, PAIRS_HERE - 1));
            held[i].load(keys, keys + PAIRS_HERE * TILE_KEYS * D, int(old) - int(tile * TILE_KEYS));
            ring.advance(), ring.release(held[i].bits()), tile++;
        } else {
            held[i].clear();
        }
        pass(min(group + PAIR_PARTS, tiles));
    }
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
                        float rows = 0;
#pragma unroll
            for (u32 r = 0; r < PART_ROWS; r++) rows += s.attention.part[here][p][r][i % D];
            mass = fmaf(weight, theirs.mass, mass), sum = fmaf(weight, rows, sum);
        }
        s.outgoing[i] = from_float<bf16>(__fdividef(sum, mass));
    }
#pragma unroll
    for (u32 i = t; i < 2 * PAIRS_HERE * VECTORS; i += THREADS) {
        u32 which = i / (PAIRS_HERE * VECTORS), here = i / VECTORS % PAIRS_HERE, pair = rank * PAIRS_HERE + here, n = pair / H, c = i % VECTORS * 8;
        if (n >= s.count) continue;
        u32 past = s.cursor[n].past + step;
        bf16 *to = (which == 0 ? a.keys : a.values)[layer] + ((u64(s.first + n) * H + pair % H) * P + past) * D + c;
        if (past < P) *reinterpret_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(&s.qkv[1 + which][here][c]);
    }
    fence_copies(); // the cache's new rows will be copied
    meet();
#if BULK
    for (u32 i = t; i < PAIRS_HERE * N; i += THREADS) {
        u32 here = i % PAIRS_HERE, pair = rank * PAIRS_HERE + here, there = in_block(base(), i / PAIRS_HERE);
        if (pair < PAIRS) copy_to_block(there + offset(&s.core.row[pair / H][pair % H * D]), shared_address(s.outgoing + here * D), D * sizeof(bf16), there + barrier(CORE));
    }
#else
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
#endif
}

// x += out(core).
__device__ void Decoder::out(u32 layer) {
    uint2 w[OUT_UNITS];
    ring.read(w);
    await<CORE>();
    MARK(9);
    Sums<OUT_ROWS / 8> sums;
    sums.add(w, s.core, warp * TILES);
    sums.leave(s.partial[warp]);
    meet();
    MARK(10);
    u32 e = min(thread(), OUTS - 1);
    float sum = constants(layer)[OUT_BIAS + Place(e).row];
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) sum += s.partial[w][e];
    own += sum;
    publish<MIDDLE>(s.middle, constants(layer) + GAMMA_2);
    MARK(11);
}

// x += down(gelu(up(ln2(x)))): a block's rows of hidden stay there, and what they add to the others' rows of the residual is sent.
__device__ void Decoder::mlp(u32 layer) {
    uint2 w[UP_UNITS];
    ring.read(w);
    MARK(27);
    await<MIDDLE>();
    MARK(12);
    norm(s.middle);
    Sums<UP_ROWS / 8> sums;
    sums.add(w, s.middle, warp * TILES);
    sums.leave(s.partial[warp]);
    MARK(13);
    uint2 v[DOWN_UNITS];
    ring.read(v);
    MARK(28);
    meet();
    MARK(14);
    each_normed<UP_ROWS>(constants(layer) + UP_AB, [&](u32 i, float2 x) {
        Place place(2 * i);
        *reinterpret_cast<u32 *>(&s.hidden.row[place.sequence][place.row]) = pack(gelu_exact(x.x), gelu_exact(x.y));
    });
    MARK(15);
    meet();
    MARK(16);
    Sums<DOWN_EIGHTS> parts;
    parts.add(v, s.hidden, 0);
    MARK(17);
    parts.each([&](u32 eight, float4 x) {
        u32 first = warp * DOWN_EIGHTS + eight, there = in_block(base(), first / (OUT_ROWS / 8)), to = there + offset(s.down[rank]);
        to += (first % (OUT_ROWS / 8) * 8 * B + 2 * lane) * sizeof(float);
        if (parts.has_first()) send(to, x.x, x.y, there + barrier(DOWN));
        if (parts.has_second()) send(to + 64 * sizeof(float), x.z, x.w, there + barrier(DOWN));
    });
    MARK(18);
    u32 e = min(thread(), OUTS - 1);
    float sum = constants(layer)[DOWN_BIAS + Place(e).row];
    await<DOWN>();
    MARK(19);
#pragma unroll
    for (u32 i = 0; i < N; i++) sum += s.down[i][e];
    own += sum;
    publish<RESIDUAL>(s.residual, layer + 1 < LAYERS ? constants(layer + 1) + GAMMA_1 : s.constants + FINAL_GAMMA);
    MARK(20);
}

// logits = final_norm(x) . token, to all blocks, which all pick every sequence's next token. The noise of the draw is made meanwhile.
__device__ void Decoder::head(u32 step) {
    typedef Scores<(V + WARP - 1) / WARP, WholeWarp> RowScores;
    auto noise = [&](u32 n) { return [=](u32 token) { return gumbel(token, s.cursor[n].step + step, s.rule[n]); }; };
    Sums<HEAD_ROWS / 8> sums;
    const char *weights = a.stream + u64(N) * STREAM_BYTES + (rank * WARPS + warp) * HEAD_BYTES;
    uint2 w[HEAD_UNITS];
#pragma unroll
    for (u32 i = 0; i < HEAD_UNITS; i++) w[i] = reinterpret_cast<const uint2 *>(weights + i * UNIT)[lane];
    Sampling rule = s.rule[warp];
    RowScores scores(rule, {}, noise(warp));
    await<RESIDUAL>();
    norm(s.residual);
    MARK(21);
    sums.add(w, s.residual, warp * TILES);
    sums.leave(s.partial[warp]);
    meet();
    MARK(22);
    // To every block, a sequence's rows together.
#pragma unroll
    for (u32 i = thread(); i < HEAD_ROWS * B / 2 * N; i += THREADS) {
        u32 e = i % (HEAD_ROWS * B / 2), v = rank * HEAD_ROWS + Place(2 * e).row, there = in_block(base(), i / (HEAD_ROWS * B / 2));
        float2 x = normed(s.constants + HEAD_AB, e);
        u32 at = there + offset(&s.logits[Place(2 * e).sequence][v]);
        if (v < V) send(at, x.x, there + barrier(LOGITS));
        if (v + 1 < V) send(at + sizeof(float), x.y, there + barrier(LOGITS));
    }
    MARK(23);
    await<LOGITS>();
    MARK(24);
    scores.read(s.logits[warp]);
    u32 token = scores.pick();
    if (lane == 0) s.token[warp] = token;
    MARK(25);
    if (warp + WARPS < s.count) {
        Sampling rule = s.rule[warp + WARPS];
        RowScores scores(rule, {}, noise(warp + WARPS));
        scores.read(s.logits[warp + WARPS]);
        u32 token = scores.pick();
        if (lane == 0) s.token[warp + WARPS] = token;
    }
    meet();
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
        decoder.head(step);
        if (speaks) a.outbox[u64((issued + step) % a.slots) * a.batch + first + n] = u64(issued + step + 1) << 32 | s.token[n];
    }
    if (decoder.rank > 0) return;
    for (u32 i = threadIdx.x; i < count * V; i += THREADS) a.logits[u64(first) * V + i] = s.logits[i / V][i % V];
    if (speaks) {
        a.tokens[first + n] = s.token[n];
        a.cursor[first + n] = {s.cursor[n].past + a.steps, s.cursor[n].step + a.steps, 1};
    }
}

__device__ inline void fill(const BatchArguments &a, const Shared &s, u32 rank) {
    Filler filler = {s, a.stream + u64(rank) * STREAM_BYTES};
#pragma unroll 1
    for (u32 step = 0; step < a.steps; step++)
#pragma unroll 1
        for (u32 layer = 0; layer < LAYERS; layer++) {
            filler.weights(Ring::QKV_SLOTS);
            filler.cache(a.keys[layer], a.values[layer], rank * PAIRS_HERE, step);
            filler.weights(Ring::LAYER_SLOTS - Ring::QKV_SLOTS);
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
        s.first = first, s.count = count, s.longest = -1;
        for (u32 pair = rank * PAIRS_HERE; pair < min((rank + 1) * PAIRS_HERE, count * H); pair++)
            s.longest = max(s.longest, int(a.cursor[first + pair / H].past));
#pragma unroll
        for (u32 i = 0; i < HANDOFFS; i++) {
            barrier_init(shared_address(&s.arrived[i]), 1);
            barrier_expect(shared_address(&s.arrived[i]), Decoder::bytes(i, rank));
        }
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
        take_registers<232>();
#ifdef FREQ
        long long c0 = clock64(), t0; asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t0));
#endif
        generate(a, s);
#ifdef FREQ
        long long c1 = clock64(), t1; asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t1)); if (blockIdx.x + threadIdx.x == 0) freq[0] = c1 - c0, freq[1] = t1 - t0;
#endif
    } else {
        give_registers<40>();
        if (threadIdx.x == THREADS) fill(a, s, rank);
        __syncwarp();
    }
    __syncthreads();
    if (threadIdx.x == 0) finish(a);
    cluster_barrier(); // a block's shared memory stays until nobody sends to it
}
