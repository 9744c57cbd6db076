// How a large model is spread over the clusters of decode_shards.cu, and what lies in a block's shared memory.
//
// Constants are those of grid_model.cuh, and GRID_CLUSTER: blocks of a cluster. A cluster is a shard of the model: whole heads, and hidden units of
// the MLP, as many as make the weights of all clusters alike. Its blocks share the rows of every product.
#pragma once
#include "cluster.cuh"
#include "grid_step.cuh"
#include "powers.cuh"
#include "spread.cuh"

constexpr u32 N = GRID_CLUSTER, SHARDS = BLOCKS / N, WORKERS = WARPS * WARP;
static_assert(BLOCKS % N == 0 && WORKERS == PICKERS, "whole clusters; all that compute pick");

// A stretch of rows, columns or heads.
struct Part {
    u32 first, count;
};
// Part `i` of `parts` that `total` is cut into.
__device__ constexpr Part part_of(u32 total, u32 parts, u32 i) { return {i * total / parts, (i + 1) * total / parts - i * total / parts}; }

// ---- a cluster's shard ----

__device__ constexpr Part heads_of(u32 cluster) { return part_of(H, SHARDS, cluster); }
// A head has the weights of 2 D hidden units: clusters with fewer heads have more units, as long as each gets some.
__device__ constexpr u32 units_before(u32 cluster, bool even) {
    return even ? cluster * (F / 16) / SHARDS * 16 : cluster * (2 * C + F) / SHARDS / 16 * 16 - 2 * D * heads_of(cluster).first;
}
__device__ constexpr bool all_get_units() {
    bool all = true;
    for (u32 i = 0; i < SHARDS; i++) all = all && units_before(i, false) < units_before(i + 1, false);
    return all;
}
__device__ constexpr u32 first_unit(u32 cluster) { return units_before(cluster, !all_get_units()); }
__device__ constexpr Part units_of(u32 cluster) { return {first_unit(cluster), first_unit(cluster + 1) - first_unit(cluster)}; }
__device__ constexpr u32 units_max() {
    u32 most = 0;
    for (u32 i = 0; i < SHARDS; i++) most = larger(most, units_of(i).count);
    return most;
}
constexpr u32 HEADS_MAX = divide_up(H, SHARDS), UNITS_MAX = units_max();
static_assert(H >= SHARDS && HEADS_MAX * SPLITS <= N, "each cluster has a head, whose pieces lie with blocks of their own");
static_assert(F / 16 >= SHARDS && UNITS_MAX <= C, "each cluster has units, and a section of the ring holds a row");

// ---- products: rows of a cluster, of a block, of a warp ----

__device__ constexpr u32 cluster_rows(Stage s, u32 cluster) {
    return s == QKV ? 3 * D * heads_of(cluster).count : s == UP ? units_of(cluster).count : C;
}
__device__ constexpr Part block_rows(Stage s, u32 cluster, u32 rank) {
    return s == HEAD ? part_of(VOCAB, BLOCKS, cluster * N + rank) : part_of(cluster_rows(s, cluster), N, rank);
}
__device__ constexpr Part within(Part whole, u32 parts, u32 i) {
    return {whole.first + part_of(whole.count, parts, i).first, part_of(whole.count, parts, i).count};
}
__device__ constexpr Part warp_rows(Stage s, u32 cluster, u32 rank, u32 warp) { return within(block_rows(s, cluster, rank), WARPS, warp); }

// Columns that a cluster multiplies: all, or those of its shard.
__device__ constexpr Part columns_of(Stage s, u32 cluster) {
    return s == OUT ? Part{heads_of(cluster).first * D, heads_of(cluster).count * D} : s == DOWN ? units_of(cluster) : Part{0, C};
}
__device__ constexpr u32 columns_max(Stage s) { return s == OUT ? HEADS_MAX * D : s == DOWN ? UNITS_MAX : C; }
// Rows of a warp at most.
__device__ constexpr u32 warp_rows_max(Stage s) {
    u32 most = s == QKV ? 3 * D * HEADS_MAX : s == UP ? UNITS_MAX : C;
    return divide_up(s == HEAD ? divide_up(VOCAB, BLOCKS) : divide_up(most, N), WARPS);
}
// A lane multiplies four neighbouring columns of every 128.
constexpr u32 CHUNK = 4 * WARP;
__device__ constexpr u32 chunks(Stage s) { return divide_up(columns_max(s), CHUNK); }

__device__ constexpr u32 row_bytes(Stage s) { return columns_max(s) * sizeof(Element); }

// ---- shared memory ----

// What blocks of a cluster hand each other. Each has a barrier and a buffer.
enum Handoff { RESIDUAL, QUERY, CORE, MIDDLE, HIDDEN, HANDOFFS };
CLOCK_NAMES("residual", "q, k, v", "attention", "residual between sublayers", "hidden",
            "sums of out, all clusters", "sums of down, all clusters")
constexpr u32 SLOTS_MAX = 32;

constexpr u32 CORE_PACK = sizeof(u32) / sizeof(Element); // attention's values of a word

// Sums that are added up by whole warps.
constexpr u32 MOMENTS = divide_up(N * WARPS, WARP) * WARP;

// The residual stream on its way to a norm: less the mean of the norm before, times the norm's weight; and the sums of each warp's rows and of their
// squares, before the weight.
struct Stream {
    float x[chunks(QKV) * CHUNK];
    float2 moments[MOMENTS];
};
struct Shared {
    u64 arrived[HANDOFFS];
    u64 full[SLOTS_MAX], empty[SLOTS_MAX];                 // of the ring's slots
    alignas(16) Stream residual, middle;                   // before and after attention
    alignas(16) float qkv[3 * D];                          // of this block's head
    alignas(16) Element core[SPLITS][chunks(OUT) * CHUNK]; // of each piece: weighted values, and their mass
    Mass core_mass[SPLITS][divide_up(chunks(OUT) * CHUNK, D)];
    alignas(16) float hidden[chunks(DOWN) * CHUNK];
    alignas(16) float part[WARPS][D];                      // of this block's piece, warp by warp
    alignas(16) Mass part_mass[WARPS];
    alignas(16) float logits[HEAD_ROWS];                   // of this block
    alignas(16) Layer layers[LAYERS + 1];                  // of the last only the norm
    Sampling rule;
};

// ---- the ring of weights ----

// A slot has a section for each warp, which two of them fill: one or two rows of C columns, or as many as fit of OUT and DOWN. What is read behind a
// row's end meets zeros.
constexpr u32 FETCHERS = 4, SECTIONS = WARPS / FETCHERS, MARGIN = CHUNK * sizeof(Element);
constexpr u32 RING_START = divide_up(sizeof(Shared), 128) * 128, RING_BYTES = GRID_SHARED - RING_START - MARGIN;
__device__ constexpr u32 ring_slots(u32 section) { return smaller(RING_BYTES / (WARPS * section), SLOTS_MAX); }
__device__ constexpr u32 slots(Stage s, u32 section) { return divide_up(warp_rows_max(s), section / row_bytes(s)); }
// Whether the ring holds a layer.
__device__ constexpr bool holds_layer(u32 section) {
    return ring_slots(section) >= slots(QKV, section) + slots(OUT, section) + slots(UP, section) + slots(DOWN, section);
}
constexpr u32 ROW = C * sizeof(Element), SECTION = ROW > 2048 || !holds_layer(2 * ROW) && holds_layer(ROW) ? ROW : 2 * ROW;
constexpr u32 SLOT_BYTES = WARPS * SECTION, SLOTS = ring_slots(SECTION), SHARED_BYTES = RING_START + SLOTS * SLOT_BYTES + MARGIN;
static_assert(SLOTS >= 4, "a ring fits");
__device__ constexpr u32 section_rows(Stage s) { return SECTION / row_bytes(s); }
__device__ constexpr u32 slots(Stage s) { return slots(s, SECTION); }

// Where it does, weights are there before the values that they are multiplied with; else nobody waits for weights before what others wait for
// is sent.
constexpr bool LAYER_HELD = holds_layer(SECTION);

// Bytes a clock that a block asks for: its share of the 4.8 TB a second that an H200's memory brings at 1.98 GHz. Asked for more, it brings less;
// and what arrives at once is in the way of what blocks hand each other.
constexpr u32 BYTES_A_CLOCK = larger(2400 / BLOCKS, 1);

// Rows whose weights a warp holds in registers at once, in so many of them that nothing spills. They lie in four slots at most.
constexpr u32 HELD_REGISTERS = 120;
__device__ constexpr u32 held_rows(Stage s) {
    return smaller(smaller(larger(HELD_REGISTERS / (chunks(s) * 4), 1), 3 * section_rows(s)), warp_rows_max(s));
}

// ---- rows behind a norm ----

// Row r of the product is scale (w (weight x) - mean a_r) + b_r, where a_r is the product of the norm's weight with the row, b_r that of its bias,
// and the row's own bias. A layer's rows: q, k, v of each head, then the MLP's; behind all layers the head's.
constexpr u32 LAYER_SUMS = 3 * C + F, SUMS = LAYERS * LAYER_SUMS + VOCAB;

// ---- what clusters hand each other, through L2 ----

// Partial sums, half a word of value and epoch for each row of each cluster, of OUT and of DOWN; what blocks tell each other for the pick.
constexpr u32 PICKS_START = SHARDS * C, EXCHANGE_WORDS = PICKS_START + PICK_WORDS; // in words of 16 bytes
static_assert(EXCHANGE_WORDS == GRID_EXCHANGE_WORDS, "the host counts the words as we do");
