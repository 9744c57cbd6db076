// The layers of decode.cu where every product's rows are spread over all blocks.
#pragma once
#include "decode_worker.cuh"

// A lane's columns of a row in front of a norm.
template <typename Split> __device__ void read_stream(float4 (&x)[Split::FOURS], Stream &stream) {
    static_assert(Split::LANE_COLUMNS % OUT_ROWS == 0 || OUT_ROWS % Split::LANE_COLUMNS == 0, "a lane has columns of one block or of whole ones");
    const float *first = stream.scaled(Split::column(threadIdx.x / WARP, threadIdx.x % WARP));
#pragma unroll
    for (int i = 0; i < int(Split::FOURS); i++) x[i] = load4(first + 4 * i / OUT_ROWS * 2 * OUT_ROWS + 4 * i % OUT_ROWS);
}

    // The sum of x over the columns of a warp, in half of the lanes, and that of its squares: each four lanes read all of it.
    __device__ inline float moments(Stream &x) {
        constexpr u32 COLUMNS = C / WARPS;
        u32 first = threadIdx.x / WARP * COLUMNS + threadIdx.x % 4 * 4;
        float sum = 0, squares = 0;
#pragma unroll
        for (u32 i = 0; i < COLUMNS; i += 16) {
            float4 v = load4(x.centered(first + i));
            sum += (v.x + v.y) + (v.z + v.w), squares = dot4(v, v, squares);
        }
        return sum_over<1, 4>(threadIdx.x % WARP >= WARP / 2 ? squares : sum);
    }

struct Decoder : Worker {
    float shift = 0;           // the mean of the row before the last norm, in warps that finish
    float own[OutSplit::ROWS]; // the residual's rows that this lane sums, likewise
    KeySlot key_slot;
    Rows rows; // of a round of keys

    using Worker::Worker;

    // Sends the block's rows of the residual to all blocks, for a norm with these gammas.
    template <u32 HANDOFF> __device__ void send_rows(const Stream &stream, const float (&gamma)[OutSplit::ROWS]) const {
        constexpr u32 BLOCKS = OutSplit::PARTS / 2; // of a warp's stores
        static_assert(OutSplit::PARTS % 2 == 0, "half of the lanes send what is scaled");
        u32 centered = lane / OutSplit::ROW_LANES % 2, first = lane / OutSplit::ROW_LANES / 2;
#pragma unroll
        for (u32 r = 0; r < OutSplit::ROWS; r++) {
            float x = own[r] - shift, value = centered ? x : x * gamma[r];
            u32 at = offset(&stream.values[rank][centered][OutSplit::row(r, lane)]);
#pragma unroll
            for (u32 i = 0; i < N / FINISHERS; i += BLOCKS) {
                u32 there = in_block(base(), warp + (i + first) * FINISHERS);
                if (i + first < N / FINISHERS) send(there + at, value, there + barrier(HANDOFF));
            }
        }
    }

    // Where registers are short, the many addresses that follow from the lane are not kept over all tokens, or over all layers.
    __device__ void forget_addresses() { asm volatile("" : "+r"(lane)); }
    // Of this lane's rows of the residual.
    __device__ void own_constants(float (&to)[OutSplit::ROWS], const float *from) const {
#pragma unroll
        for (u32 r = 0; r < OutSplit::ROWS; r++) to[r] = from[OutSplit::row(r, lane)];
    }

    __device__ void begin(u32, u32) { meet(); }
    __device__ void embed(u32 token);
    __device__ void layer(u32 layer, u32 past, u32 end) {
        if (C * sizeof(Element) > 1024) forget_addresses();
        attention(layer, past);
        if (layer == 0) prepare(s.step + past, past + 1, end);
        out(layer);
        mlp(layer);
    }
    __device__ float final_input(float4 (&x)[HeadSplit::FOURS]) {
        await<RESIDUAL>();
        read_stream<HeadSplit>(x, s.residual);
        return moments(s.residual);
    }

    __device__ void attention(u32 layer, u32 past);
    __device__ void leave_qkv(const float *pairs, float2 pair);
    __device__ void send_qkv(float value, u32 r) const;
    __device__ bool has_keys(u32 round, u32 past) const;
    __device__ void load_keys(Rows &rows) const;
    __device__ void release_keys(const Rows &rows);
    __device__ void core(u32 layer, u32 past);
    __device__ void merge();
    __device__ void out(u32 layer);
    __device__ void mlp(u32 layer);
    __device__ void send_hidden(u32 layer);
    template <typename Split, u32 HANDOFF>
    __device__ void send_residual(const Sums<Split> &sums, const Stream &to, const float *bias, const float *gamma);
};

// x = token + position: each warp leaves its columns for the first norm.
__device__ void Decoder::embed(u32 token) {
    constexpr u32 COLUMNS = C / WARPS;
    if (C * sizeof(Element) == 1024) forget_addresses();
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
        moments = ::moments(s.middle);
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
