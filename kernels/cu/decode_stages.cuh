// The layers of decode.cu where there are stages: a team of blocks has each fourth layer, and each of its blocks a head and a share of the hidden
// units (tensor parallelism within a team, a pipeline of teams).
//
// A block's products that lead back to the residual are shares of all rows, and each warp sums up what the blocks of a team have sent of its columns:
// so a layer hands over twice, its attention within the team, its MLP to the next. While the others work, a block has time to hold all weights and
// keys of its next layer in registers; so that the first layer has its own before a token is picked, this is the last thing that a layer does. It
// keeps its layers' keys and values in shared memory, and has the copy engine bring its next layer's weights as soon as this one's are used.
#pragma once
#include "decode_worker.cuh"

// A product's weights in registers, ahead of what they multiply.
template <u32 PRODUCT, typename Split> struct Held {
    Four<Element> unit[Split::UNITS];

    __device__ void load(const Reader &reader) {
        auto from = reinterpret_cast<const Four<Element> *>(reader.at<PRODUCT>()) + threadIdx.x % WARP;
#pragma unroll
        for (int i = 0; i < int(Split::UNITS); i++) unit[i] = from[i * WARP];
    }
};
// The same, unpacked.
template <typename Split> struct Unpacked {
    float4 unit[Split::UNITS];

    template <u32 PRODUCT> __device__ void load(const Held<PRODUCT, Split> &held) {
#pragma unroll
        for (int i = 0; i < int(Split::UNITS); i++) unit[i] = held.unit[i].values(), ::pin(unit[i]);
    }
    // Has them made before this, not where they are used, nor there once more: the compiler cannot know that nobody ever stores them.
    __device__ void pin(bool never, float (*to)[ROWS_MAX][WARP]) const {
        if (!never) return;
#pragma unroll
        for (int i = 0; i < int(Split::UNITS); i++) reinterpret_cast<float4 *>(to)[i] = unit[i];
    }
    __device__ Sums<Split> times(const float4 (&x)[Split::FOURS]) const {
        Sums<Split> sums;
#pragma unroll
        for (int i = 0; i < int(Split::UNITS); i++) sums.add(i % Split::ROWS, unit[i], x[i / Split::ROWS]);
        return sums;
    }
};

// The warp's columns of the residual, and as many hidden units: one a lane, twice.
constexpr u32 LANE_ROWS = C / WARPS;
static_assert(2 * LANE_ROWS == WARP && UP_ROWS == C, "half of the lanes have all of a warp's rows");

struct Decoder : Worker {
    float own; // the lane's row of the residual, less a number near the mean
    // Of the next layer: weights, keys and values, and what goes with the lane's row of the first norm and that of q, k and v.
    Unpacked<QkvSplit> qkv;
    Unpacked<OutSplit> out;
    Held<UP_PRODUCT, UpSplit> up_held;
    Held<DOWN_PRODUCT, DownSplit> down_held;
    Rows rows[ROUNDS];
    float gamma;
    float2 qkv_ab;

    using Worker::Worker;

    __device__ void begin(u32 past, u32 end);
    __device__ void embed(u32 token);
    __device__ void layer(u32 layer, u32 past, u32 end);
    __device__ float final_input(float4 (&x)[HeadSplit::FOURS]);

  private:
    __device__ u32 row() const { return warp * LANE_ROWS + lane % LANE_ROWS; }
    __device__ char *keys(u32 layer, u32 round) const { return KeySlot::at(s, layer / STAGES * ROUNDS + round); }
    // A value a lane, seen by all lanes of the warp: FOURS from `first` on.
    template <u32 FOURS> __device__ void exchange(float4 (&x)[FOURS], float value, u32 first = 0) {
        s.input[warp][lane] = value;
        __syncwarp();
        read(x, s.input[warp] + first);
    }
    // Of the warp's columns: the sum in the lower lanes, that of squares in the upper.
    __device__ float moments() const { return sum_over<1, LANE_ROWS>(lane >= LANE_ROWS ? own * own : own); }
    __device__ void fetch_layer(u32 layer) const;
    __device__ void hold(u32 layer, bool fetched);
    template <u32 HANDOFF> __device__ float await_shares(const Stream &stream);
    __device__ void attention(u32 layer, u32 past);
    __device__ void leave_row(u32 layer, u32 past, float value) const;
    __device__ float core_share(const Weighted &weighted, float &mass);
    __device__ void send_share(float share) const;
    __device__ void send_to_next(Sums<DownSplit> &sums, u32 layer, float bias);
};

// Fetches what the team's first layer needs, and the cache of all its layers.
__device__ void Decoder::begin(u32 past, u32 end) {
    if (threadIdx.x == 0 && stage < LAYERS) fetch_layer(stage);
    for (u32 layer = stage; layer < LAYERS; layer += STAGES)
        for (u32 i = threadIdx.x; i < 2 * past * (D * sizeof(Element) / 16); i += THREADS) {
            u32 byte = i / 2 * 16, round = byte / KEY_BYTES;
            u64 from = u64(rank) * P * D * sizeof(Element) + byte;
            const Element *cache = i % 2 == 0 ? a.keys[layer] : a.values[layer];
            *reinterpret_cast<uint4 *>(keys(layer, round) + i % 2 * KEY_BYTES + byte % KEY_BYTES) =
                *reinterpret_cast<const uint4 *>(reinterpret_cast<const char *>(cache) + from);
        }
    meet();
    hold(min(stage, LAYERS - 1), stage < LAYERS);
}

// One thread has all weights of a layer fetched.
__device__ void Decoder::fetch_layer(u32 layer) const {
    const char *stream = a.stream + (u64(block) * LAYERS_HELD + layer / STAGES) * LAYER_BYTES * WARPS;
#pragma unroll
    for (u32 product = 0; product < PRODUCTS; product++)
        Window::fetch_product(product, base() + WINDOW_START, shared_address(s.full), stream);
}

// Takes a layer's weights and keys into registers, some of them unpacked; what is not `fetched` nobody will use.
__device__ void Decoder::hold(u32 layer, bool fetched) {
    if (fetched) reader.await<QKV_PRODUCT>(), reader.await<OUT_PRODUCT>(), reader.await<UP_PRODUCT>(), reader.await<DOWN_PRODUCT>();
    Held<QKV_PRODUCT, QkvSplit> qkv_held;
    Held<OUT_PRODUCT, OutSplit> out_held;
    qkv_held.load(reader), out_held.load(reader), up_held.load(reader), down_held.load(reader);
    qkv.load(qkv_held), out.load(out_held);
#pragma unroll
    for (u32 i = 0; i < ROUNDS; i++) rows[i].load(keys(layer, i));
    gamma = constants(layer)[GAMMA_1 + row()];
    qkv_ab = ab<QkvSplit>(constants(layer) + QKV_AB, min(warp, QkvSplit::ROWS - 1));
    qkv.pin(a.slots == 0, s.partial[0]), out.pin(a.slots == 0, s.partial[1]);
}

// x = token + position.
__device__ void Decoder::embed(u32 token) {
    const Element *held = reinterpret_cast<const Element *>(reinterpret_cast<const char *>(&s) + TABLE_START);
    const Element *t = (TABLE_HELD ? held : a.token) + u64(token) * C;
    own = to_float(t[row()]) + to_float(s.position[row()]) - (s.constants[TOKEN_MEANS + token] + s.position_mean);
}

// The sum of what the blocks of a team have sent of the lane's row.
template <u32 HANDOFF> __device__ float Decoder::await_shares(const Stream &stream) {
    static_assert(TEAM == 4, "four shares");
    await<HANDOFF>();
    const float *first = &stream.shares[0][row()];
    return (first[0] + first[C]) + (first[2 * C] + first[3 * C]);
}

// A layer: x += out(attention(ln1(x))), x += down(gelu(up(ln2(x)))).
__device__ void Decoder::layer(u32 layer, u32 past, u32 end) {
    Unpacked<UpSplit> up;
    up.load(up_held);
    up.pin(a.slots == 0, s.partial[0]);
    attention(layer, past);
    const float *with = constants(layer);
    Unpacked<DownSplit> down;
    down.load(down_held);
    float gamma_2 = with[GAMMA_2 + row()], out_bias = with[OUT_BIAS + row()], down_bias = with[DOWN_BIAS + row()];
    float2 ab = reinterpret_cast<const float2 *>(with + UP_AB)[row()];
    down.pin(a.slots == 0, s.partial[1]);
    float4 x[UpSplit::FOURS];
    own += await_shares<MIDDLE>(s.middle) + out_bias;
    exchange(x, own * gamma_2);
    float both = moments();
    up.times(x).leave(s.partial[0]);
    Norm::leave(s, both);
    meet();
    float part[WARPS / 2], (&of)[WARPS][ROWS_MAX][WARP] = s.partial[0];
#pragma unroll
    for (int i = 0; i < int(WARPS / 2); i++) part[i] = of[lane / LANE_ROWS * (WARPS / 2) + i][row() / WARP][row() % WARP];
    Norm norm(s, a.eps);
    own -= norm.mean;
    float sum = sum_over<LANE_ROWS, WARP>((part[0] + part[1]) + (part[2] + part[3])), hidden = gelu(norm.apply(sum, ab));
    exchange(x, hidden);
    Sums<DownSplit> sums = down.times(x);
    send_to_next(sums, layer, down_bias);
    reader.parity ^= 1;
    u32 next = layer + STAGES < LAYERS ? layer + STAGES : stage;
    bool more = past + 1 < end || next > layer;
    if (threadIdx.x == 0 && more) fetch_layer(next);
    if (layer == 0) prepare(s.step + past, past + 1, end);
    hold(next, more);
}

// The block's share of out(attention(ln1(x))), to its team.
__device__ void Decoder::attention(u32 layer, u32 past) {
    float4 x[QkvSplit::FOURS];
    if (layer > 0) own = await_shares<RESIDUAL>(s.residual);
    exchange(x, own * gamma);
    float both = moments(), made = 0;
    qkv.times(x).leave(s.partial[0]);
    Norm::leave(s, both);
    meet();
    if (warp < QkvSplit::ROWS) {
        float sum = whole_sum<QkvSplit>(s.partial[0], warp);
        made = Norm(s, a.eps).apply(sum, qkv_ab);
        leave_row(layer, past, made);
    }
    meet();
#pragma unroll
    for (u32 i = 0; i < ROUNDS; i++) // the new token's are among these
        if (past / GROUPS == i * WARPS + warp) rows[i].load(keys(layer, i));
    Weighted weighted(s);
    float share, mass, bound = 0;
    // Weights are 2^score as it is. Where their sum comes near the ends of what a float holds, all is made again relative to the largest.
#pragma unroll 1
    for (bool again = false;; again = true) {
        weighted.clear();
        if (past >= BLOCK_KEYS) weighted.add_all<ROUNDS>(rows, warp * GROUPS, past, bound);
        else if (past >= warp * GROUPS) weighted.add_all<1>(rows, warp * GROUPS, past, bound);
        share = core_share(weighted, mass);
        if (again || (mass > 5e-20f && mass < 2e19f)) break;
        s.most[warp] = weighted.largest(past);
        meet();
        bound = s.most[0];
#pragma unroll
        for (int i = 1; i < int(WARPS); i++) bound = fmaxf(bound, s.most[i]);
    }
    send_share(share);
    if (warp == 1 || warp == 2) (warp == 1 ? a.keys : a.values)[layer][(u64(rank) * P + past) * D + lane] = from_float<Element>(made);
}

// The new token's q, for scores in powers of two, key or value: a warp each, a channel a lane. Keys and values go to where the block keeps them; to
// the cache later, when nobody waits for it.
__device__ void Decoder::leave_row(u32 layer, u32 past, float value) const {
    char *slot = keys(layer, past / BLOCK_KEYS) + (warp - 1) * KEY_BYTES;
    if (warp == 0) s.q[lane] = value * (rsqrtf(float(D)) * 1.4426950408889634f);
    else reinterpret_cast<Element *>(slot)[past % BLOCK_KEYS * D + lane] = from_float<Element>(value);
}

// The block's share of out's row of the lane, of the warps' weighted values summed, and the mass of all keys.
__device__ float Decoder::core_share(const Weighted &weighted, float &mass) {
    float x[WARPS];
    float4 core[OutSplit::FOURS];
    weighted.leave();
    meet();
    float4 m[2] = {load4(s.mass), load4(s.mass + 4)};
#pragma unroll
    for (int i = 0; i < int(WARPS); i++) x[i] = s.part[i][lane];
    exchange(core, ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7])), OutSplit::column(warp, lane));
    mass = ((m[0].x + m[0].y) + (m[0].z + m[0].w)) + ((m[1].x + m[1].y) + (m[1].z + m[1].w));
    return sum_over<OutSplit::ROW_LANES, WARP>(out.times(core).total(0)) * reciprocal(mass);
}

// To the blocks of the team.
__device__ void Decoder::send_share(float share) const {
    u32 at = offset(&s.middle.shares[rank][row()]);
#pragma unroll
    for (u32 i = 0; i < TEAM; i += WARP / LANE_ROWS) {
        u32 there = in_block(base(), stage * TEAM + i + lane / LANE_ROWS);
        send(there + at, share, there + barrier(MIDDLE));
    }
}

// To the next team, a warp some rows to some of the blocks. One block adds the residual as it was.
__device__ void Decoder::send_to_next(Sums<DownSplit> &sums, u32 layer, float bias) {
    constexpr u32 SHARES = DownSplit::ROWS, EACH = WARPS / SHARES;
#pragma unroll
    for (u32 i = 0; i < SHARES; i++)
        if (rank == 0 && i * WARP + lane == row()) sums.sum[i][0] += own + bias;
    sums.leave(s.partial[1]);
    meet();
    u32 mine = warp % SHARES, first = layer + 1 < LAYERS ? (layer + 1) % STAGES * TEAM : 0;
    u32 at = offset(&s.residual.shares[rank][mine * WARP + lane]);
    float share = whole_sum<DownSplit>(s.partial[1], mine);
#pragma unroll
    for (u32 i = 0; i < TEAM; i += EACH) {
        u32 there = in_block(base(), first + i + warp / SHARES);
        send(there + at, share, there + barrier(RESIDUAL));
    }
}

// gamma x before the head, and the moments of x.
__device__ float Decoder::final_input(float4 (&x)[HeadSplit::FOURS]) {
    float gamma = s.constants[FINAL_GAMMA + row()];
    own = await_shares<RESIDUAL>(s.residual);
    exchange(x, own * gamma);
    return moments();
}
