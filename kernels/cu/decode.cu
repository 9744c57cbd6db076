// `steps` tokens of one sequence in one launch: a cluster of N blocks runs the whole model and samples, compiled for its dimensions.
//
// Every product's rows are spread evenly over the warps of the cluster, and each block streams its rows through a window (decode_window.cuh).
// What a warp makes goes at once to every block that needs it, by stores that count themselves on the receiver's barrier. A layer is five such
// handoffs: q, k, v to the blocks of their head, unless these make all of it themselves (LOCAL); attention; the residual; hidden; the residual.
// LayerNorm is computed by every warp and sampling too; a row of the residual stays with the warp that sums it. A head's keys lie with S blocks,
// key p with number p % S of them, and the receivers merge the S results.
// A handoff's buffer is free again before its next values come: they need, through the handoffs between, something of every warp that reads it.
// Grid: one cluster of N blocks, each of 8 warps that compute and one that fills the window. Needs sm_90. Deterministic.
// Launcher: src/decoder/cluster.rs.
#include "decode_keys.cuh"
#include "decode_window.cuh"

struct DecodeArguments {
    const char *stream;     // decode_pack.cu
    const float *constants; // [N][CONSTANTS]
    const Element *token, *position;
    Element *keys[LAYERS], *values[LAYERS]; // [H, P, D]
    float *logits;
    u32 *tokens;
    Cursor *cursor;
    volatile u64 *outbox;
    OutboxState *state;
    u32 slots, steps;
    float eps;
};
static_assert(sizeof(DecodeArguments) == 8 * (11 + 2 * LAYERS), "DecodeArguments are laid out in Rust");

__device__ inline float gelu_exact(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }

// The warps that compute meet.
__device__ inline void meet() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }

// A warp that computes.
struct Decoder {
    const DecodeArguments &a;
    Shared &s;
    Reader reader;
    const u32 rank, warp, lane;
    u32 parities = 0;        // of the handoffs awaited next
    float mean = 0, own = 0; // of the last norm; the residual's row that this lane sums
    Four<Element> head_rows[HEAD_ROWS][C / CHUNK];

    __device__ Decoder(const DecodeArguments &a, Shared &s)
        : a(a), s(s), reader(s), rank(cluster_rank()), warp(threadIdx.x / WARP), lane(threadIdx.x % WARP) {
        if (HEAD_HELD) load_head();
    }
    __device__ void load_head() {
#pragma unroll
        for (int r = 0; r < int(HEAD_ROWS); r++) {
            const Element *row = a.token + u64(min(first_row(rank, warp, HEAD_ROWS) + r, V - 1)) * C;
#pragma unroll
            for (int c = 0; c < int(C / CHUNK); c++) head_rows[r][c] = reinterpret_cast<const Four<Element> *>(row)[c * WARP + lane];
        }
    }

    // ---- handoffs ----

    __device__ u32 base() const { return shared_address(&s); }

    // What one brings to a block.
    static __device__ constexpr u32 bytes(u32 handoff) {
        return handoff == QKV      ? 3 * D * sizeof(float)
               : handoff == CORE   ? S * C * sizeof(Element) + S * H * sizeof(Mass)
               : handoff == HIDDEN ? F * sizeof(Element)
               : handoff == LOGITS ? V * sizeof(float)
                                   : C * sizeof(float);
    }
    __device__ u32 barrier(u32 handoff) const { return handoff * sizeof(u64); }
    __device__ u32 offset(const void *p) const { return shared_address(p) - base(); }

    // Waits for a handoff and makes its barrier ready for the next.
    template <u32 HANDOFF> __device__ void await() {
        barrier_await_together(base() + barrier(HANDOFF), parities >> HANDOFF & 1);
        parities ^= 1u << HANDOFF;
        if (threadIdx.x == 0) barrier_expect(base() + barrier(HANDOFF), bytes(HANDOFF));
    }

    // Sends R rows that a warp has summed (see `spread_sum`) to all blocks: to `buffer`, the first row's place.
    template <u32 HANDOFF, u32 R> __device__ void broadcast(float value, const float *buffer) const {
        u32 row = lane % LANES<R>, at = offset(buffer + row);
#pragma unroll
        for (u32 i = 0; i < (N * LANES<R> + WARP - 1) / WARP; i++) {
            u32 to = lane / LANES<R> + i * (WARP / LANES<R>), there = in_block(base(), to);
            if (row < R && to < N) send(there + at, value, there + barrier(HANDOFF));
        }
    }
    // The same in bfloat16, two rows a word: lanes of even rows send to every other block, those of odd rows to the rest.
    template <u32 HANDOFF, u32 R> __device__ void broadcast(float value, const bf16 *buffer) const {
        static_assert(R % 2 == 0, "rows come in pairs");
        constexpr u32 GROUPS = WARP / LANES<R>;
        u32 row = lane % LANES<R>, odd = row % 2, mine = from_float<bf16>(value).bits, other = __shfl_xor_sync(ALL_LANES, mine, 1);
        u32 word = odd ? mine << 16 | other : other << 16 | mine, at = offset(buffer + row - odd);
#pragma unroll
        for (u32 i = 0; i < (N + 2 * GROUPS - 1) / (2 * GROUPS); i++) {
            u32 to = lane / LANES<R> + (2 * i + odd) * GROUPS, there = in_block(base(), to);
            if (row < R && to < N) send(there + at, word, there + barrier(HANDOFF));
        }
    }

    // ---- products ----

    // sum[r] += row r of the product times x, for this lane's columns; chunk c of x is x(c). The first weights are in registers before
    // `await_x`. The last part of the window is not given back yet: `reader.release`, once the result is on its way.
    template <u32 PRODUCT, u32 R, u32 K, typename X, typename Await>
    __device__ void product(float (&sum)[R], X x, Await await_x) {
        constexpr u32 UNITS = R * (K / CHUNK), EACH = Window::bytes(PRODUCT) / UNIT;
        constexpr u32 HELD = divisor_up_to(EACH, sizeof(Element) == 2 || C > 256 ? 9 : 6);
        Four<Element> held[2][HELD];
        const Four<Element> *part;
        auto load = [&](u32 unit, Four<Element>(&to)[HELD]) {
            if (unit % EACH == 0) part = reinterpret_cast<const Four<Element> *>(reader.await<PRODUCT>()) + lane;
#pragma unroll
            for (int i = 0; i < int(HELD); i++) to[i] = part[(unit % EACH + i) * WARP];
        };
        load(0, held[0]);
        await_x();
#pragma unroll
        for (u32 done = 0; done < UNITS; done += HELD) {
            u32 next = done + HELD;
            if (next % EACH == 0 && next < UNITS) reader.release<PRODUCT>(held[done / HELD % 2]);
            if (next < UNITS) load(next, held[next / HELD % 2]);
#pragma unroll
            for (int i = 0; i < int(HELD); i++) {
                int r = (done + i) % R, c = (done + i) / R;
                sum[r] = dot4(held[done / HELD % 2][i].values(), x(c), sum[r]);
            }
        }
    }

    __device__ const float *constants(u32 layer) const { return s.constants + layer * LAYER_CONSTANTS; }
    template <u32 R> __device__ float2 ab(const float *pairs) const {
        return reinterpret_cast<const float2 *>(pairs)[warp * R + min(lane % LANES<R>, R - 1)];
    }
    // The row of the residual that this lane sums: of its warp's, of all.
    __device__ u32 own_row() const { return min(lane % LANES<OUT_ROWS>, OUT_ROWS - 1); }

    __device__ void embed(Row &row, u32 token, u32 position);
    __device__ void attention(Row &row, u32 layer, u32 past);
    __device__ void send_qkv(float value) const;
    __device__ void core(Element *keys, Element *values, Batch (&batches)[AHEAD], u32 past);
    __device__ void out(u32 layer);
    __device__ void mlp(u32 layer);
    __device__ void send_hidden(float value) const;
    __device__ u32 head(u32 step);
};

// x = token + position: all of it in every warp.
__device__ void Decoder::embed(Row &row, u32 token, u32 position) {
    const Element *held = reinterpret_cast<const Element *>(reinterpret_cast<const char *>(&s) + TABLE_START);
    const Element *t = (TABLE_HELD ? held : a.token) + u64(token) * C, *p = a.position + u64(position) * C;
    float sum = 0;
#pragma unroll
    for (int c = 0; c < int(C / CHUNK); c++) {
        float4 x = load4(t + c * CHUNK + lane * 4), y = load4(p + c * CHUNK + lane * 4);
        row.x[c] = make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
        sum += (row.x[c].x + row.x[c].y) + (row.x[c].z + row.x[c].w);
    }
    u32 mine = first_row(rank, warp, OUT_ROWS) + own_row();
    own = to_float(t[mine]) + to_float(p[mine]);
    mean = warp_sum(sum) * (1.0f / C);
}

// q, k and v of ln1(x), made by the blocks of their heads or sent to them; there attention. The cache's first rows are on their way meanwhile.
__device__ void Decoder::attention(Row &row, u32 layer, u32 past) {
    u32 head = rank / S, part = rank % S;
    Element *keys = a.keys[layer] + (u64(head) * P + part) * D, *values = a.values[layer] + (u64(head) * P + part) * D;
    Batch batches[AHEAD];
    u32 old = (past + S - 1 - part) / S;
    if (head < H) batches[0].load(keys, values, 0, old);
    float sum[QKV_ROWS] = {};
    product<QKV_PRODUCT, QKV_ROWS, C>(sum, [&](int c) { return row.x[c]; }, [&] {
        if (layer > 0) {
            await<RESIDUAL>();
            row.read(s.residual);
        }
        row.center(mean, constants(layer) + GAMMA_1);
    });
    float value = row.normed(sum, ab<QKV_ROWS>(constants(layer) + QKV_AB), a.eps, mean);
    if (LOCAL) {
        if (lane < QKV_ROWS) s.qkv[warp * QKV_ROWS + lane] = value;
        meet();
    } else {
        send_qkv(value);
    }
    reader.release<QKV_PRODUCT>();
    if (head < H) {
#pragma unroll
        for (int i = 1; i < int(AHEAD); i++) batches[i].load(keys, values, i * BATCH_KEYS, old);
        if (!LOCAL) await<QKV>();
        core(keys, values, batches, past);
    }
}

// Sends a warp's rows to the blocks of their heads.
__device__ void Decoder::send_qkv(float value) const {
    u32 mine = lane % LANES<QKV_ROWS>, r = first_row(rank, warp, QKV_ROWS) + mine, at = offset(s.qkv + r / C * D + r % D);
#pragma unroll
    for (u32 i = 0; i < (S * LANES<QKV_ROWS> + WARP - 1) / WARP; i++) {
        u32 to = lane / LANES<QKV_ROWS> + i * (WARP / LANES<QKV_ROWS>), there = in_block(base(), r % C / D * S + to);
        if (mine < QKV_ROWS && to < S) send(there + at, value, there + barrier(QKV));
    }
}

// softmax(q . keys) values over this block's keys of its head, to all blocks.
__device__ void Decoder::core(Element *keys, Element *values, Batch (&batches)[AHEAD], u32 past) {
    u32 head = rank / S, part = rank % S, old = (past + S - 1 - part) / S;
    bool newest = past % S == part;
    Weighted weighted(s.qkv);
#pragma unroll 1
    for (u32 first = 0; first < old + newest; first += AHEAD * BATCH_KEYS) {
#pragma unroll
        for (int i = 0; i < int(AHEAD); i++) {
            u32 here = first + i * BATCH_KEYS;
            weighted.add(batches[i], here, old, old + newest, s.qkv);
            if (BATCHES > AHEAD) batches[i].load(keys, values, here + AHEAD * BATCH_KEYS, old);
        }
    }
    weighted.leave(s.part[warp], s.part_mass[warp]);
    meet();
    // Over the warps: a warp has an eighth of the channels.
    constexpr u32 CHANNELS_A_WARP = D / WARPS;
    u32 first = warp * CHANNELS_A_WARP;
    int most = NO_SCORE;
    float mass = 0, sum = 0;
#pragma unroll
    for (int i = 0; i < int(WARPS); i++) most = max(most, s.part_mass[i].most);
#pragma unroll
    for (int i = 0; i < int(WARPS); i++) {
        Mass theirs = s.part_mass[i];
        float weight = whole_power(theirs.most - most);
        mass = fmaf(weight, theirs.mass, mass), sum = fmaf(weight, s.part[i][first + lane % CHANNELS_A_WARP], sum);
    }
    broadcast<CORE, CHANNELS_A_WARP>(sum, s.core[part] + head * D + first);
    if (warp == 0 && lane < N) {
        u32 there = in_block(base(), lane);
        send(there + offset(&s.core_mass[part][head]), __int_as_float(most), mass, there + barrier(CORE));
    }
    if (newest && threadIdx.x < 2 * D)
        (threadIdx.x < D ? keys : values)[u64(old * S) * D + threadIdx.x % D] = from_float<Element>(s.qkv[D + threadIdx.x]);
}

// x += out(core): a head's S results merged by their masses.
__device__ void Decoder::out(u32 layer) {
    float4 x[C / CHUNK];
    float sum[OUT_ROWS] = {};
    product<OUT_PRODUCT, OUT_ROWS, C>(sum, [&](int c) { return x[c]; }, [&] {
        await<CORE>();
#pragma unroll
        for (int c = 0; c < int(C / CHUNK); c++) {
            u32 k = c * CHUNK + lane * 4;
            Mass mass[S];
            int most = NO_SCORE;
            float total = 0, weight[S];
#pragma unroll
            for (int i = 0; i < int(S); i++) mass[i] = s.core_mass[i][k / D], most = max(most, mass[i].most);
#pragma unroll
            for (int i = 0; i < int(S); i++) weight[i] = whole_power(mass[i].most - most), total = fmaf(weight[i], mass[i].mass, total);
            float inverse = reciprocal(total);
            x[c] = make_float4(0, 0, 0, 0);
#pragma unroll
            for (int i = 0; i < int(S); i++) {
                float4 v = load4(s.core[i] + k);
                float w = weight[i] * inverse;
                x[c] = make_float4(fmaf(w, v.x, x[c].x), fmaf(w, v.y, x[c].y), fmaf(w, v.z, x[c].z), fmaf(w, v.w, x[c].w));
            }
        }
    });
    own += spread_sum(sum) + constants(layer)[OUT_BIAS + warp * OUT_ROWS + own_row()];
    broadcast<MIDDLE, OUT_ROWS>(own, s.middle + first_row(rank, warp, OUT_ROWS));
    reader.release<OUT_PRODUCT>();
}

// x += down(gelu(up(ln2(x)))).
__device__ void Decoder::mlp(u32 layer) {
    Row row;
    float sum[UP_ROWS] = {};
    product<UP_PRODUCT, UP_ROWS, C>(sum, [&](int c) { return row.x[c]; }, [&] {
        await<MIDDLE>();
        row.read(s.middle);
        row.center(mean, constants(layer) + GAMMA_2);
    });
    float hidden = gelu_exact(row.normed(sum, ab<UP_ROWS>(constants(layer) + UP_AB), a.eps, mean));
    if (HIDDEN_GATHERED) send_hidden(hidden);
    else broadcast<HIDDEN, UP_ROWS>(hidden, s.hidden + first_row(rank, warp, UP_ROWS));
    reader.release<UP_PRODUCT>();
    float total[OUT_ROWS] = {};
    auto x = [&](int c) { return load4(s.hidden + c * CHUNK + lane * 4); };
    product<DOWN_PRODUCT, OUT_ROWS, F>(total, x, [&] { await<HIDDEN>(); });
    own += spread_sum(total) + constants(layer)[DOWN_BIAS + warp * OUT_ROWS + own_row()];
    broadcast<RESIDUAL, OUT_ROWS>(own, s.residual + first_row(rank, warp, OUT_ROWS));
    reader.release<DOWN_PRODUCT>();
}

// Sends the block's rows of hidden together: a warp's store to neighbouring words of one block travels as one.
__device__ void Decoder::send_hidden(float value) const {
    constexpr u32 ROWS = WARPS * UP_ROWS, WORDS = ROWS * sizeof(Element) / sizeof(u32);
    if (lane < UP_ROWS) s.own_hidden[warp * UP_ROWS + lane] = from_float<Element>(value);
    meet();
#pragma unroll
    for (u32 i = 0; i < (WORDS + WARP - 1) / WARP; i++) {
        u32 word = i * WARP + lane;
        if (word >= WORDS) continue;
        u32 x = reinterpret_cast<const u32 *>(s.own_hidden)[word], at = offset(s.hidden + rank * ROWS) + word * sizeof(u32);
#pragma unroll
        for (u32 to = 0; to < N; to += WARPS) {
            u32 there = in_block(base(), to + warp);
            send(there + at, x, there + barrier(HIDDEN));
        }
    }
}

// logits = final_norm(x) . token, to all blocks, and the next token from them. The noise of the draw is made meanwhile.
__device__ u32 Decoder::head(u32 step) {
    if (!s.rule.greedy && threadIdx.x < V) s.noise[threadIdx.x] = gumbel(threadIdx.x, step, s.rule);
    if (!HEAD_HELD) load_head();
    Row row;
    await<RESIDUAL>();
    row.read(s.residual);
    row.center(mean, s.constants + FINAL_GAMMA);
    float sum[HEAD_ROWS] = {};
#pragma unroll
    for (int r = 0; r < int(HEAD_ROWS); r++)
#pragma unroll
        for (int c = 0; c < int(C / CHUNK); c++) sum[r] = dot4(head_rows[r][c].values(), row.x[c], sum[r]);
    float value = row.normed(sum, ab<HEAD_ROWS>(s.constants + HEAD_AB), a.eps, mean);
    u32 mine = lane % LANES<HEAD_ROWS>, v = first_row(rank, warp, HEAD_ROWS) + mine;
    if (mine < HEAD_ROWS && v < V)
        for (u32 to = lane / LANES<HEAD_ROWS>; to < N; to += WARP / LANES<HEAD_ROWS>) {
            u32 there = in_block(base(), to);
            send(there + offset(s.logits + v), value, there + barrier(LOGITS));
        }
    meet(); // the noise is there
    Sampling rule = s.rule;
    Scores<(V + WARP - 1) / WARP, WholeWarp> scores(rule, {}, [&](u32 token) { return s.noise[token]; });
    await<LOGITS>();
    scores.read(s.logits);
    u32 token = scores.pick();
    if (rank == 0 && threadIdx.x < V) a.logits[threadIdx.x] = s.logits[threadIdx.x];
    return token;
}

__device__ inline void generate(const DecodeArguments &a, Shared &s) {
    Decoder decoder(a, s);
    u32 past = a.cursor->past, end = past + a.steps, token = a.tokens[0];
    bool speaker = decoder.rank == 0 && threadIdx.x == 0;
#pragma unroll 1
    for (; past < end; past++) {
        Row row;
        decoder.embed(row, token, past);
#pragma unroll 1
        for (u32 layer = 0; layer < LAYERS; layer++) {
            decoder.attention(row, layer, past);
            decoder.out(layer);
            decoder.mlp(layer);
        }
        token = decoder.head(s.step + past);
        if (speaker) a.outbox[(s.issue + past) % a.slots] = u64(s.issue + past + 1) << 32 | token;
    }
    // All blocks have read what changes here: the last logits came from each of them.
    if (speaker) {
        a.tokens[0] = token;
        a.state->issued = s.issue + past;
        a.cursor->past = past, a.cursor->step = s.step + past;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS + WARP, 1) ENTRY(decode)(const __grid_constant__ DecodeArguments a) {
    extern __shared__ __align__(128) char memory[];
    Shared &s = *reinterpret_cast<Shared *>(memory);
    u32 rank = cluster_rank();
    if (threadIdx.x == 0) {
#pragma unroll
        for (u32 i = 0; i < HANDOFFS; i++) {
            barrier_init(shared_address(&s.arrived[i]), 1);
            barrier_expect(shared_address(&s.arrived[i]), Decoder::bytes(i));
        }
#pragma unroll 1
        for (u32 i = 0; i < Window::SLOTS; i++) {
            barrier_init(shared_address(&s.full[i]), 1);
            barrier_init(shared_address(&s.empty[i]), WARPS);
        }
        publish_barriers();
        s.rule = sampling(V, 0, *a.state);
        s.step = a.cursor->step - a.cursor->past, s.issue = a.state->issued - a.cursor->past;
    }
    for (u32 i = threadIdx.x; i < CONSTANTS; i += blockDim.x) s.constants[i] = a.constants[u64(rank) * CONSTANTS + i];
    for (u32 i = threadIdx.x; TABLE_HELD && i < V * C / 4; i += blockDim.x)
        reinterpret_cast<Four<Element> *>(memory + TABLE_START)[i] = reinterpret_cast<const Four<Element> *>(a.token)[i];
    __syncthreads();
    cluster_barrier();
    if (threadIdx.x < THREADS) {
        generate(a, s);
    } else if (threadIdx.x == THREADS) {
        const char *stream = a.stream + u64(rank) * LAYERS * LAYER_BYTES * WARPS;
        Window::fill(shared_address(memory + WINDOW_START), shared_address(s.full), shared_address(s.empty), stream, a.steps * LAYERS);
    }
    __syncwarp();
    cluster_barrier(); // a block's shared memory stays until nobody sends to it
}
