// How a model and some sequences are spread over a cluster of decode_batch.cu: which block owns which rows, and what lies in shared memory.
//
// Dimensions are constants of the compilation, made by src/decoder: CHANNELS (C), HEADS (H), WIDTH (F), LAYERS, CONTEXT (P), VOCAB (V), CLUSTER
// (blocks), SEQUENCES (of a cluster, at most), SHARED_BYTES (what a block may use), CONSTANTS_LEN (of a block, as the host counts them).
#pragma once
#include "cluster.cuh"
#include "pick.cuh"
#include "tensor.cuh"

#define ENTRY(NAME) NAME##_bf16

constexpr u32 C = CHANNELS, H = HEADS, D = C / H, F = WIDTH, P = CONTEXT, V = VOCAB, N = CLUSTER, B = SEQUENCES;
// Warps that compute. Four more give their registers up: one thread fills the ring, two warps make the norms and one the noise.
constexpr u32 WARPS = 8, THREADS = WARPS * WARP;
static_assert(B <= 16 && (D == 32 || D == 64), "what the tiles of tensor cores hold");
static_assert(C % (8 * N) == 0 && C % (8 * WARPS) == 0 && F % (16 * N) == 0, "rows come in eights");
static_assert(C % (16 * WARPS) == 0, "columns come in tiles of 16");

// Attention of one head of one sequence is a block's, of consecutive pairs of both.
constexpr u32 PAIRS = B * H, PAIRS_HERE = (PAIRS + N - 1) / N;

// ---- rows of each product that a block owns ----

// Of down it owns columns, those of its rows of hidden, and gives the others what these make.
constexpr u32 OUT_ROWS = C / N, QKV_ROWS = 3 * OUT_ROWS, UP_ROWS = F / N, HEAD_ROWS = (V + 8 * N - 1) / (8 * N) * 8, OUTS = OUT_ROWS * B;
static_assert(OUTS <= THREADS, "a thread has one element of the residual");

// ---- a warp's weights of a layer, in the order of their use (decode_batch_pack.cu) ----

// They come in units: eight rows times 16 columns, lane l's part columns 4 (l % 4) .. + 3 of row l / 4. Of down a warp has an eighth of the rows, of
// the others an eighth of the columns.
constexpr u32 UNIT_LEN = 8 * 16, UNIT = UNIT_LEN * sizeof(bf16);
constexpr u32 TILES = C / 16 / WARPS, DOWN_TILES = UP_ROWS / 16, DOWN_EIGHTS = C / 8 / WARPS;
constexpr u32 QKV_UNITS = QKV_ROWS / 8 * TILES, OUT_UNITS = OUT_ROWS / 8 * TILES, UP_UNITS = UP_ROWS / 8 * TILES,
              DOWN_UNITS = DOWN_EIGHTS * DOWN_TILES, LAYER_UNITS = QKV_UNITS + OUT_UNITS + UP_UNITS + DOWN_UNITS, HEAD_UNITS = HEAD_ROWS / 8 * TILES;
// A block's stream; a warp's weights of the head, which lie behind all streams.
constexpr u32 STREAM_BYTES = LAYERS * LAYER_UNITS * UNIT * WARPS, HEAD_BYTES = HEAD_UNITS * UNIT;

// ---- a block's constants: float32, kept in shared memory ----

// Of a layer: a and b of the rows behind a norm (batch_product.cuh), the biases of the others, gamma of its own channels. Then gamma of the last
// norm, and a and b of the head's rows.
constexpr u32 QKV_AB = 0, UP_AB = 2 * QKV_ROWS, OUT_BIAS = UP_AB + 2 * UP_ROWS, DOWN_BIAS = OUT_BIAS + OUT_ROWS, GAMMA_1 = DOWN_BIAS + OUT_ROWS,
              GAMMA_2 = GAMMA_1 + OUT_ROWS, LAYER_CONSTANTS = GAMMA_2 + OUT_ROWS;
constexpr u32 FINAL_GAMMA = LAYERS * LAYER_CONSTANTS, HEAD_AB = FINAL_GAMMA + OUT_ROWS, CONSTANTS = HEAD_AB + 2 * HEAD_ROWS;
static_assert(CONSTANTS == CONSTANTS_LEN, "the host counts the constants as we do");

// ---- shared memory ----

enum Handoff { RESIDUAL, QKV, CORE, MIDDLE, DOWN, LOGITS, HANDOFFS };
CLOCK_NAMES("residual", "q, k, v", "attention", "residual between sublayers", "partial sums of down", "logits")
constexpr u32 SLOTS_MAX = 16;

// An input of a product, a row a sequence; behind the row room, so that a warp's fragment is spread over all banks.
template <u32 K> struct Input {
    alignas(16) bf16 row[B][K + 16];

    __device__ const bf16 *at(u32 sequence, u32 k) const { return &row[sequence][k]; }
};
// Sums over a block's own channels of x - shift and its square.
struct Moments {
    float sum, squares;
};
// What a norm makes of a row of x: its mean beyond the shift, and one over its deviation.
struct Norm {
    float mean, scale;
};
// A norm's input: gamma (x - shift), in the order in which the blocks send it, and the moments of each block.
struct NormInput {
    alignas(16) bf16 eight[C / 8][B][8];
    alignas(16) Moments moments[B][N];

    __device__ const bf16 *at(u32 sequence, u32 k) const { return &eight[k / 8][sequence][k % 8]; }
};
// A softmax so far: its mass relative to 2^most.
struct Mass {
    float most, mass;
};

constexpr u32 ROWS_MAX = QKV_ROWS > UP_ROWS ? QKV_ROWS : UP_ROWS, PAIR_PARTS = PAIRS_HERE > 4 ? 1 : PAIRS_HERE > 2 ? 2 : PAIRS_HERE > 1 ? 4 : 8;
static_assert(PAIRS_HERE * PAIR_PARTS <= WARPS, "a warp attends to one pair");

struct Shared {
    u64 arrived[HANDOFFS];
    u64 attended;                          // by the warps
    u64 full[SLOTS_MAX], empty[SLOTS_MAX]; // of the ring's slots
    NormInput residual, middle;
    Input<C> core;
    Input<UP_ROWS> hidden; // of this block
    alignas(16) bf16 qkv[3][PAIRS_HERE][D];
    alignas(16) float down[N][OUTS]; // what each block's columns make of this block's rows
    alignas(16) float logits[B][V], noise[B][V];
    alignas(16) bf16 outgoing[B * QKV_ROWS]; // gathered to be sent
    alignas(16) Moments own_moments[OUT_ROWS / 8][B];
    union {
        alignas(16) float partial[WARPS][ROWS_MAX * B]; // (row / 8, sequence, row % 8)
        struct {
            alignas(16) float part[PAIRS_HERE][PAIR_PARTS][D];
            Mass mass[PAIRS_HERE][PAIR_PARTS];
        } attention;
    };
    u32 first, count; // the cluster's sequences, in the batch
    Norm norm[B];
    float shift[B]; // of each row of the residual: its mean at the last norm
    u32 token[B];
    Cursor cursor[B];
    Sampling rule[B];
    float token_mean[V];
    alignas(16) bf16 table[V][OUT_ROWS]; // the token embedding of this block's channels
    alignas(16) float constants[CONSTANTS];
};
