// Attention of decode_spread.cuh: from the residual to the values that each part of the keys gives, and their sum.
#pragma once
#include "decode_spread.cuh"

// q, k and v of ln1(x), made by the blocks of their heads or sent to them; there attention.
__device__ void Decoder::attention(u32 layer, u32 past) {
    float4 x[QkvSplit::FOURS];
    float moments;
    float2 pair = ab<QkvSplit>(constants(layer) + QKV_AB, min(warp, QkvSplit::ROWS - 1));
    if (KEYS_EARLY && has_keys(0, past)) load_keys(rows);
    auto sums = product<QKV_PRODUCT, QkvSplit>(reader, x, [&] {
        if (SOON && KEYS_EARLY && has_keys(0, past)) release_keys(rows);
        if (layer > 0) await<RESIDUAL>();
        read_stream<QkvSplit>(x, s.residual);
        moments = ::moments(s.residual);
    });
    sums.leave(s.partial[0]);
    Norm::leave(s, moments);
    meet();
    leave_qkv(constants(layer) + QKV_AB, pair);
    reader.release<QKV_PRODUCT>();
    if (LOCAL) meet();
    else if (rank / S < H) await<QKV>();
    if (rank / S < H) core(layer, past);
}

// q, k and v of the block's rows from the products, to this block or to the blocks of their heads: q for scores in powers of two, k and v as they
// are cached. `pair` belongs to the warp's first row.
__device__ void Decoder::leave_qkv(const float *pairs, float2 pair) {
    const float factor = rsqrtf(float(D)) * 1.4426950408889634f;
    if (warp >= larger(FINISHERS, QkvSplit::ROWS)) return;
    float sum = whole_sum<QkvSplit>(s.partial[0], min(warp, QkvSplit::ROWS - 1));
    Norm norm(s, a.eps);
    shift += norm.mean;
#pragma unroll
    for (u32 first = 0; first < QkvSplit::ROWS; first += WARPS) {
        u32 i = first + warp;
        if (i >= QkvSplit::ROWS) continue;
        float value = first == 0 ? norm.apply(sum, pair) : norm.apply(whole_sum<QkvSplit>(s.partial[0], i), ab<QkvSplit>(pairs, i));
        u32 mine = QkvSplit::row(i, lane), r = qkv_index(rank, mine), channel = r % D;
        if (LOCAL) {
            if (r < C) s.q[channel] = value * factor;
            else s.newest[r / C - 1][channel] = from_float<Element>(value);
            continue;
        }
        send_qkv(r < C ? value * factor : value, r);
    }
}

// Sends row `r` of q, then k, then v to the blocks of its head; neighbouring rows are with neighbouring lanes.
__device__ void Decoder::send_qkv(float value, u32 r) const {
    u32 channel = r % D, word = __float_as_uint(value);
    bool sends = true;
    if (sizeof(Element) == 2) {
        u32 mine = from_float<bf16>(value).bits, other = __shfl_xor_sync(ALL_LANES, mine, 1);
        if (r >= C) word = mine | other << 16, sends = r % 2 == 0;
    }
    u32 at = r < C ? offset(s.q + channel) : offset(&s.newest[r / C - 1][channel]);
#pragma unroll
    for (u32 to = 0; to < S; to += QkvSplit::PARTS) {
        u32 copy = to + lane / QkvSplit::ROW_LANES, there = in_block(base(), r % C / D * S + copy);
        if (sends && copy < S) send(there + at, word, there + barrier(QKV));
    }
}

// softmax(q . keys) values over this block's keys of its head, to all blocks.
__device__ void Decoder::core(u32 layer, u32 past) {
    u32 head = rank / S, part = rank % S;
    Weighted weighted(s);
#pragma unroll 1
    for (u32 round = 0; round < ROUNDS && has_keys(round, past); round++) {
        if (!SOON && round > 0) release_keys(rows);
        if (round > 0 || !KEYS_EARLY) load_keys(rows);
        if (SOON && (round > 0 || !KEYS_EARLY)) release_keys(rows);
        weighted.add(rows, first_position(round, part) + warp * GROUPS, past);
    }
    weighted.leave();
    meet();
    if (warp < FINISHERS) send_core(head, part);
    u32 i = THREADS - 1 - threadIdx.x; // of the warps that do not finish
    if (past / BLOCK_KEYS % S == part && i < 2 * D)
        (i < D ? a.keys : a.values)[layer][(u64(head) * P + past) * D + i % D] = s.newest[i / D][i % D];
    if (!SOON && has_keys(0, past)) release_keys(rows);
}
// Whether this block has a round of keys up to position `past`.
__device__ bool Decoder::has_keys(u32 round, u32 past) const { return rank / S < H && first_position(round, rank % S) <= past; }
__device__ void Decoder::load_keys(Rows &rows) const {
    barrier_await_soon(shared_address(&s.keys_full[key_slot.slot]), key_slot.parity);
    rows.load(KeySlot::at(s, key_slot.slot));
}
// Gives a slot back when what was read is there: an arrival does not wait for loads under way.
__device__ void Decoder::release_keys(const Rows &rows) {
    bool there = __any_sync(ALL_LANES, rows.there());
    if (there && lane == 0) barrier_arrive(shared_address(&s.keys_empty[key_slot.slot]));
    key_slot.advance();
}

// A head's S results, merged by their masses: of the warp's columns.
__device__ void Decoder::merge() {
    constexpr u32 COLUMNS = C / WARPS;
#pragma unroll
    for (u32 i = 0; i < COLUMNS; i += WARP) {
        u32 k = warp * COLUMNS + i + lane % (COLUMNS < WARP ? COLUMNS : WARP);
        if (i + lane % WARP >= larger(COLUMNS, WARP)) continue;
        Mass mass[S];
        int most = NO_SCORE;
        float total = 0, sum = 0;
#pragma unroll
        for (int p = 0; p < int(S); p++) mass[p] = s.core_mass[p][k / D], most = max(most, mass[p].most);
#pragma unroll
        for (int p = 0; p < int(S); p++) {
            float weight = whole_power(mass[p].most - most);
            total = fmaf(weight, mass[p].mass, total), sum = fmaf(weight, to_float(s.core[p][k]), sum);
        }
        s.merged[k] = sum * reciprocal(total);
    }
    __syncwarp();
}
