// `steps` tokens of one sequence in one launch: a cluster of N blocks runs the whole model and samples, compiled for its dimensions.
//
// Every product's rows are spread evenly over the blocks, and each block streams its rows through a window (decode_window.cuh). Its warps share the
// columns: each needs only an eighth of the input, and what they sum up meets in shared memory, which is sooner done than sums over lanes. A few
// of the warps, FINISHERS, finish what all have summed up and send it: each takes the block's rows to some of the blocks, because what a warp
// stores into neighbouring words of one block travels as one. These stores count themselves on the receiver's barrier.
// A layer is five such handoffs: q, k, v to the blocks of their head, unless these make all of it themselves (LOCAL); attention; the residual;
// hidden; the residual. A row of the residual stays with the block that sums it, and is sent as the norm behind it needs it. A head's keys lie with S
// blocks, and the receivers merge the S results.
// A handoff's buffer is free again before its next values come: they need, through the handoffs between, something of every block, and a block
// sends nothing before its warps have met, each with what it has read. What they leave for each other in shared memory alternates between two
// places, or is read before they meet again.
// Grid: one cluster of N blocks, each of 8 warps that compute, one that fetches weights and one that fetches keys. Needs sm_90. Deterministic.
// Files: decode_layout.cuh, what lies where; decode_warp.cuh, a warp and its handoffs; decode_product.cuh; decode_attention.cuh, decode_keys.cuh.
// Launcher: src/decoder/cluster.rs.
#include "decode_attention.cuh"
#include "gelu_rounded.cuh"

__device__ inline float gelu(float x) {
    return sizeof(Element) == 2 ? gelu_rounded(x) : 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
}

// Waits for the next token's position, by one warp for all that meet it later.
__device__ void Decoder::await_position() {
    if (warp < WARPS - 1) return;
    float sum = 0;
    await<POSITION>();
#pragma unroll
    for (u32 k = lane; k < C; k += WARP) sum += to_float(s.position[k]);
    sum = warp_sum(sum);
    if (lane == 0) s.position_mean = sum * (1.0f / C);
}

// One thread has a row of the position embedding fetched for the next token.
__device__ void Decoder::fetch_position(u32 position) const {
    if (threadIdx.x > 0) return;
    fetch(shared_address(s.position), a.position + u64(position) * C, C * sizeof(Element), base() + barrier(POSITION));
}

// What this token's pick and the next token need, where there is time for it.
__device__ void Decoder::prepare(u32 step, u32 next, u32 end) const {
    if (next < end) fetch_position(next);
    u32 noisy = THREADS - 1 - threadIdx.x; // by the warps that do not finish
    if (!s.rule.greedy && noisy < V) s.noise[noisy] = gumbel(noisy, step, s.rule);
}

// x = token + position: each warp leaves its columns for the first norm.
__device__ void Decoder::embed(u32 token) {
    constexpr u32 COLUMNS = C / WARPS;
    const Element *held = reinterpret_cast<const Element *>(reinterpret_cast<const char *>(&s) + TABLE_START);
    const Element *t = (TABLE_HELD ? held : a.token) + u64(token) * C;
    shift = s.constants[TOKEN_MEANS + token] + s.position_mean;
#pragma unroll
    for (u32 i = 0; i < COLUMNS; i += WARP) {
        u32 k = warp * COLUMNS + min(i + lane, COLUMNS - 1);
        float x = to_float(t[k]) + to_float(s.position[k]) - shift;
        *s.residual.centered(k) = x, *s.residual.scaled(k) = x * s.constants[FIRST_GAMMA + k];
    }
#pragma unroll
    for (int r = 0; r < int(OutSplit::ROWS); r++) {
        u32 mine = rank * OUT_ROWS + OutSplit::row(r, lane);
        own[r] = to_float(t[mine]) + to_float(s.position[mine]);
    }
    __syncwarp();
}

// The block's rows of the residual, with a product's sums, to all blocks.
template <typename Split, u32 HANDOFF>
__device__ void Decoder::send_residual(const Sums<Split> &sums, const Stream &to, const float *bias, const float *gamma) {
    sums.leave(s.partial[1]);
    meet();
    if (warp >= FINISHERS) return;
    float own_bias[OutSplit::ROWS], own_gamma[OutSplit::ROWS];
    own_constants(own_bias, bias), own_constants(own_gamma, gamma);
#pragma unroll
    for (u32 r = 0; r < OutSplit::ROWS; r++) own[r] += whole_sum<Split>(s.partial[1], r) + own_bias[r];
    send_rows<HANDOFF>(to, own_gamma);
}

// x += out(core).
__device__ void Decoder::out(u32 layer) {
    float4 x[OutSplit::FOURS];
    auto sums = product<OUT_PRODUCT, OutSplit>(reader, x, [&] {
        await<CORE>();
        merge();
        read(x, s.merged + OutSplit::column(warp, lane));
    });
    send_residual<OutSplit, MIDDLE>(sums, s.middle, constants(layer) + OUT_BIAS, constants(layer) + GAMMA_2);
    reader.release<OUT_PRODUCT>();
}

// gelu of the block's rows of up, to all blocks: a warp takes one row a lane to some of the blocks where that comes out even.
__device__ void Decoder::send_hidden(u32 layer) {
    constexpr u32 SHARES = FINISHERS % UpSplit::ROWS == 0 ? UpSplit::ROWS : 1, EACH = UpSplit::ROWS / SHARES;
    Norm norm(s, a.eps);
    shift += norm.mean;
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        u32 row = warp % SHARES * EACH + i;
        float hidden = gelu(norm.apply(whole_sum<UpSplit>(s.partial[0], row), ab<UpSplit>(constants(layer) + UP_AB, row)));
        const Element *place = s.hidden + rank * UP_ROWS + row * UpSplit::ROW_LANES;
        deliver<HIDDEN, UpSplit::ROW_LANES, N * SHARES / FINISHERS, FINISHERS / SHARES>(hidden, place, warp / SHARES);
    }
}

// x += down(gelu(up(ln2(x)))).
__device__ void Decoder::mlp(u32 layer) {
    float4 x[UpSplit::FOURS];
    float moments;
    auto sums = product<UP_PRODUCT, UpSplit>(reader, x, [&] {
        await<MIDDLE>();
        read_stream<UpSplit>(x, s.middle);
        moments = Norm::moments(s.middle);
    });
    sums.leave(s.partial[0]);
    Norm::leave(s, moments);
    meet();
    if (warp < FINISHERS) send_hidden(layer);
    reader.release<UP_PRODUCT>();
    float4 y[DownSplit::FOURS];
    auto total = product<DOWN_PRODUCT, DownSplit>(reader, y, [&] {
        await<HIDDEN>();
        read(y, s.hidden + DownSplit::column(warp, lane));
    });
    send_residual<DownSplit, RESIDUAL>(total, s.residual, constants(layer) + DOWN_BIAS, constants(layer + 1) + GAMMA_1);
    reader.release<DOWN_PRODUCT>();
}

// logits = final_norm(x) . token, to all blocks, and the next token from them. The noise of the draw is made meanwhile.
__device__ u32 Decoder::head(bool last) {
    if (!last) await_position();
    if (!HEAD_HELD) load_head();
    await<RESIDUAL>();
    float4 x[HeadSplit::FOURS];
    read_stream<HeadSplit>(x, s.residual);
    float moments = Norm::moments(s.residual);
    Sums<HeadSplit> sums;
#pragma unroll
    for (int i = 0; i < int(HeadSplit::UNITS); i++) sums.add(0, head_rows[i].values(), x[i]);
    sums.leave(s.partial[0]);
    Norm::leave(s, moments);
    meet();
    if (warp < FINISHERS) send_logits();
    if (warp == 0) pick();
    meet(); // what was picked is there, and the next product may leave its sums
    return s.token;
}

// The block's logits, to all blocks.
__device__ void Decoder::send_logits() const {
    Norm norm(s, a.eps);
    float value = norm.apply(whole_sum<HeadSplit>(s.partial[0], 0), ab<HeadSplit>(s.constants + HEAD_AB, 0));
    u32 v = rank * HEAD_ROWS + lane % HeadSplit::ROW_LANES, copy = lane / HeadSplit::ROW_LANES;
#pragma unroll
    for (u32 i = 0; i < N / FINISHERS; i += HeadSplit::PARTS) {
        u32 there = in_block(base(), warp + (i + copy) * FINISHERS);
        if (v < V && i + copy < N / FINISHERS) send(there + offset(s.logits + v), value, there + barrier(LOGITS));
    }
}

// Picks the next token: one warp.
__device__ void Decoder::pick() {
    constexpr u32 EACH = (V + WARP - 1) / WARP;
    Sampling rule = s.rule;
    Scores<EACH, WholeWarp> scores(rule, {}, [&](u32 token) { return s.noise[token]; });
    await<LOGITS>();
    scores.read(s.logits);
    u32 token = scores.pick();
    if (lane == 0) s.token = token;
#pragma unroll
    for (u32 v = lane; v < V; v += WARP)
        if (rank == 0) a.logits[v] = s.logits[v];
}

__device__ inline void generate(const DecodeArguments &a, Shared &s) {
    Decoder decoder(a, s);
    u32 past = a.cursor->past, end = past + a.steps, token = a.tokens[0];
    bool speaker = decoder.rank == 0 && threadIdx.x == 0;
    if (past < end) decoder.fetch_position(past), decoder.await_position(), meet();
#pragma unroll 1
    for (; past < end; past++) {
        decoder.embed(token);
#pragma unroll 1
        for (u32 layer = 0; layer < LAYERS; layer++) {
            decoder.attention(layer, past);
            if (layer == 0) decoder.prepare(s.step + past, past + 1, end);
            decoder.out(layer);
            decoder.mlp(layer);
        }
        token = decoder.head(past + 1 == end);
        if (speaker) a.outbox[(s.issue + past) % a.slots] = u64(s.issue + past + 1) << 32 | token;
    }
    // All blocks have read what changes here: the last logits came from each of them.
    if (speaker) {
        a.tokens[0] = token;
        a.state->issued = s.issue + past;
        a.cursor->past = past, a.cursor->step = s.step + past;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS + 2 * WARP, 1) ENTRY(decode)(const __grid_constant__ DecodeArguments a) {
    extern __shared__ __align__(128) char memory[];
    Shared *start = reinterpret_cast<Shared *>(memory);
    asm volatile("" : "+l"(start)); // kept in a register, not made again and again from the block's number
    __builtin_assume(__isShared(start));
    Shared &s = *start;
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
#pragma unroll 1
        for (u32 i = 0; i < KEY_SLOTS; i++) {
            barrier_init(shared_address(&s.keys_full[i]), 1);
            barrier_init(shared_address(&s.keys_empty[i]), WARPS);
        }
        publish_barriers();
        s.rule = sampling(V, 0, *a.state);
        s.step = a.cursor->step - a.cursor->past, s.issue = a.state->issued - a.cursor->past;
    }
    for (u32 i = threadIdx.x; i < CONSTANTS; i += blockDim.x) s.constants[i] = a.constants[u64(rank) * CONSTANTS + i];
    // A weight of 0 must not meet a NaN: rows without a key yet are 0.
    for (u32 i = threadIdx.x; i < KEY_SLOTS * SLOT_BYTES / 16; i += blockDim.x)
        reinterpret_cast<uint4 *>(memory + KEYS_START)[i] = make_uint4(0, 0, 0, 0);
    for (u32 i = threadIdx.x; TABLE_HELD && i < V * C / 4; i += blockDim.x)
        reinterpret_cast<Four<Element> *>(memory + TABLE_START)[i] = reinterpret_cast<const Four<Element> *>(a.token)[i];
    __syncthreads();
    cluster_barrier();
    if (threadIdx.x < THREADS) {
        generate(a, s);
    } else if (threadIdx.x == THREADS) {
        const char *stream = a.stream + u64(rank) * LAYERS * LAYER_BYTES * WARPS;
        Window::fill(shared_address(memory + WINDOW_START), shared_address(s.full), shared_address(s.empty), stream, a.steps * LAYERS);
    } else if (threadIdx.x == THREADS + WARP && rank / S < H) {
        u32 past = a.cursor->past;
        fill_keys(s, a.keys, a.values, rank / S, rank % S, past, past + a.steps);
    }
    __syncwarp();
    cluster_barrier(); // a block's shared memory stays until nobody sends to it
}
