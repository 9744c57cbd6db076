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
// Warps that compute. Four more give their registers up (batch_helpers.cuh).
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

// They come in units: eight rows times 16 columns, lane l's part columns 4 (l % 4) .. + 3 of row l / 4.
constexpr u32 UNIT_LEN = 8 * 16, UNIT = UNIT_LEN * sizeof(bf16);
// A warp's share of a product of a block's rows: one of PARTS_ parts of the columns, and of so many rows that all warps have a share.
template <u32 ROWS_, u32 PARTS_> struct Share {
    static constexpr u32 ROWS = ROWS_, PARTS = PARTS_, EIGHTS = ROWS / 8 * PARTS / WARPS, TILES = C / 16 / PARTS, UNITS = EIGHTS * TILES;

    static __device__ u32 first_row(u32 warp) { return warp / PARTS * EIGHTS * 8; }
    static __device__ u32 first_tile(u32 warp) { return warp % PARTS * TILES; }
    static __device__ u32 place(u32 warp) { return warp % PARTS * ROWS + first_row(warp); } // of its sums among all
};
typedef Share<QKV_ROWS, WARPS> QkvShare;
typedef Share<OUT_ROWS, WARPS> OutShare;
typedef Share<UP_ROWS, UP_ROWS % 32 == 0 ? 2 : 4> UpShare;
typedef Share<HEAD_ROWS, WARPS> HeadShare;
// Of down a warp has an eighth of the rows.
constexpr u32 DOWN_TILES = UP_ROWS / 16, DOWN_EIGHTS = C / 8 / WARPS;
constexpr u32 QKV_UNITS = QkvShare::UNITS, OUT_UNITS = OutShare::UNITS, UP_UNITS = UpShare::UNITS, DOWN_UNITS = DOWN_EIGHTS * DOWN_TILES,
              LAYER_UNITS = QKV_UNITS + OUT_UNITS + UP_UNITS + DOWN_UNITS, HEAD_UNITS = HeadShare::UNITS;
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

// The moments, which come behind what they are of, are awaited by the warp of norms alone.
enum Handoff { RESIDUAL, QKV, CORE, MIDDLE, DOWN, LOGITS, RESIDUAL_MOMENTS, MIDDLE_MOMENTS, HANDOFFS };
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

// Rows that are summed up, of all parts of a product; what down sends lies there too.
constexpr u32 PARTIAL_ROWS = WARPS * QKV_ROWS > UpShare::PARTS * UP_ROWS ? WARPS * QKV_ROWS : UpShare::PARTS * UP_ROWS;
static_assert(HEAD_ROWS <= QKV_ROWS, "the head's rows have room");
constexpr u32 PAIR_PARTS = PAIRS_HERE > 4 ? 1 : PAIRS_HERE > 2 ? 2 : PAIRS_HERE > 1 ? 4 : 8;
static_assert(PAIRS_HERE * PAIR_PARTS <= WARPS, "a warp attends to one pair");
// A pair's warps take 16 keys in turn, each TILES_AHEAD times 16 at once.
constexpr u32 TILE_KEYS = 16, TILES_AHEAD = 4, TURN_KEYS = PAIR_PARTS * TILE_KEYS, AHEAD_KEYS = TILES_AHEAD * TURN_KEYS;

struct Shared {
    u64 arrived[HANDOFFS];
    u64 near, attended;                    // the layer's first keys and values are here; have been read, and the cache has the new ones
    u64 full[SLOTS_MAX], empty[SLOTS_MAX]; // of the ring's slots
    NormInput residual;
    union {
        Input<C> core;
        alignas(16) bf16 down[N][OUTS]; // what each block's columns make of this block's rows
    };
    Input<UP_ROWS> hidden; // of this block
    alignas(16) bf16 qkv[3][PAIRS_HERE][D];
    alignas(16) float logits[B][N * HEAD_ROWS], noise[B][V], head_rows[HEAD_ROWS * B];
    alignas(16) bf16 outgoing[B * QKV_ROWS]; // gathered to be sent
    alignas(16) float shifted[OUTS];         // the residual less its shift
    union {
        alignas(16) float partial[PARTIAL_ROWS * B]; // (part, row / 8, sequence, row % 8)
        struct {
            alignas(16) float part[PAIRS_HERE][PAIR_PARTS][4][D];
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

// ---- behind it: the first keys of the pairs, and the ring ----

__device__ constexpr u32 common_divisor(u32 a, u32 b) { return b == 0 ? a : common_divisor(b, a % b); }

// A slot of the ring holds as many units of every warp as divide what is read at once.
constexpr u32 SLOT_UNITS = common_divisor(common_divisor(QKV_UNITS, OUT_UNITS), common_divisor(UP_UNITS / 2, DOWN_UNITS / 2));
constexpr u32 SLOT_BYTES = SLOT_UNITS * UNIT * WARPS, LAYER_SLOTS = LAYER_UNITS / SLOT_UNITS;
constexpr u32 NEAR_START = (sizeof(Shared) + 127) / 128 * 128, NEAR_TILE_BYTES = 2 * PAIRS_HERE * TURN_KEYS * D * sizeof(bf16);
// Tiles a warp whose keys and values are brought to shared memory a layer ahead: those that leave the ring room for half a layer.
__device__ constexpr u32 tiles_near(u32 tiles) {
    return tiles == 1 || NEAR_START + tiles * NEAR_TILE_BYTES + LAYER_SLOTS / 2 * SLOT_BYTES <= SHARED_BYTES ? tiles : tiles_near(tiles - 1);
}
constexpr u32 TILES_NEAR = tiles_near(TILES_AHEAD), NEAR_KEYS = TILES_NEAR * TURN_KEYS;
constexpr u32 RING_START = NEAR_START + TILES_NEAR * NEAR_TILE_BYTES;
constexpr u32 SLOTS_FITTING = (SHARED_BYTES - RING_START) / SLOT_BYTES, SLOTS = SLOTS_FITTING < SLOTS_MAX ? SLOTS_FITTING : SLOTS_MAX;
static_assert(SLOTS >= 4, "the ring is too small for this model");

// The first keys of each pair that the block attends to, and their values; zeros behind the newest.
struct Near {
    bf16 keys[PAIRS_HERE][NEAR_KEYS][D], values[PAIRS_HERE][NEAR_KEYS][D];
};
__device__ inline Near &near_of(Shared &s) { return *reinterpret_cast<Near *>(reinterpret_cast<char *>(&s) + NEAR_START); }
