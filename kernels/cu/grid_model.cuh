// The model and the machine that a grid kernel is compiled for, and who computes what.
//
// Dimensions come as -D constants, made by src/decoder/grid_layout.rs, so that every loop over them is unrolled or counted at compile time:
//   GRID_HALF            1: weights, cache, and activations inside a block are bf16; 0: they are float32
//   GRID_CHANNELS, GRID_HEADS, GRID_WIDTH, GRID_LAYERS, GRID_CONTEXT, GRID_VOCAB
//   GRID_BLOCKS          blocks of the launch, one a multiprocessor; any number from 1 on
//   GRID_WARPS           warps of a block that multiply: 8, or a multiple of 4 above; with 8 nothing spills
//   GRID_FINISHERS       warps of a block that finish: 2 or 3
//   GRID_SPLITS          pieces that a head's cache is cut into, a task each
//   GRID_SHARED          bytes of dynamic shared memory of a block
//   GRID_EXCHANGE_WORDS  words of the exchange, as the host counts them
//
// A block multiplies whole rows of a matrix; its warps share the columns of each row. Rows are dealt in words, the unit of exchange: as many
// rows as 12 bytes hold. Limits: GRID_CHANNELS and GRID_WIDTH multiples of 16; heads of whole 16-byte vectors, at most 32 of them.
#pragma once
#include "common.cuh"

#ifndef GRID_ON_SPIN // for a watchdog: what every round of waiting does, given what it waits for
#define GRID_ON_SPIN(round, at, awaited)
#endif

#if GRID_HALF
typedef bf16 Element;
#define ENTRY(NAME) NAME##_bf16
#else
typedef float Element;
#define ENTRY(NAME) NAME##_f32
#endif
constexpr u32 C = GRID_CHANNELS, H = GRID_HEADS, F = GRID_WIDTH, LAYERS = GRID_LAYERS, CONTEXT = GRID_CONTEXT;
constexpr u32 VOCAB = GRID_VOCAB, BLOCKS = GRID_BLOCKS, WARPS = GRID_WARPS, SPLITS = GRID_SPLITS, D = C / H;
constexpr u32 FINISHERS = GRID_FINISHERS;          // warps that add up what the multiplying warps found
constexpr u32 THREADS = (WARPS + FINISHERS + 1) * WARP; // and one that fetches weights
constexpr bool HALF = sizeof(Element) == 2;
constexpr u32 GROUP_BYTES = 64, GROUP = GROUP_BYTES / sizeof(Element); // columns multiplied at a time
static_assert(C % 16 == 0 && F % 16 == 0 && C % H == 0, "whole vectors, whole heads");
static_assert(WARPS >= 8 && WARPS % 4 == 0, "sampling takes 256 threads, sums are read four at a time");

__device__ constexpr u32 divide_up(u32 a, u32 b) { return (a + b - 1) / b; }
__device__ constexpr u32 smaller(u32 a, u32 b) { return a < b ? a : b; }
__device__ constexpr u32 larger(u32 a, u32 b) { return a > b ? a : b; }

// Values that 12 bytes hold: of the residual stream, and of activations in the working precision.
constexpr u32 WIDE = 3, PACK = HALF ? 6 : 3;
constexpr u32 HEAD_WORDS = divide_up(D, PACK);

// The matrices in the order of a token.
enum Stage { QKV, OUT, UP, DOWN, HEAD };

__device__ constexpr u32 inputs(Stage s) { return s == DOWN ? F : C; }
__device__ constexpr bool normed(Stage s) { return s == QKV || s == UP || s == HEAD; }
__device__ constexpr u32 rows_a_word(Stage s) { return s == HEAD ? 1 : s == OUT || s == DOWN ? WIDE : PACK; }
// Words of q, k and v follow each other head by head.
__device__ constexpr u32 words(Stage s) {
    return s == QKV ? 3 * H * HEAD_WORDS : s == UP ? divide_up(F, PACK) : s == HEAD ? VOCAB : divide_up(C, WIDE);
}
__device__ constexpr u32 rows_max(Stage s) { return divide_up(words(s), BLOCKS) * rows_a_word(s); }

// The words of a block.
struct Share {
    u32 first, count;
};
__device__ inline Share share(Stage s, u32 block) {
    u32 first = block * words(s) / BLOCKS;
    return {first, (block + 1) * words(s) / BLOCKS - first};
}
__device__ inline u32 rows_of(Stage s, u32 block) { return share(s, block).count * rows_a_word(s); }

// The columns of a warp: groups, the last of which may end early, and columns. The last warp has as many groups as any.
struct Slice {
    u32 first, count, from, to;
    __device__ Slice(u32 columns, u32 warp) {
        u32 groups = divide_up(columns, GROUP);
        first = groups % WARPS == 0 ? groups / WARPS * warp : groups * warp / WARPS;
        count = groups % WARPS == 0 ? groups / WARPS : groups * (warp + 1) / WARPS - first;
        from = first * GROUP, to = smaller(from + count * GROUP, columns);
    }
};
__device__ constexpr u32 groups_max(u32 columns) { return divide_up(divide_up(columns, GROUP), WARPS); }

// Parameters and cache of a layer, [O, I] and [H, P, D].
struct Layer {
    const Element *norm1_weight, *norm1_bias, *q, *k, *v, *out, *out_bias;
    const Element *norm2_weight, *norm2_bias, *up, *up_bias, *down, *down_bias;
    Element *keys, *values;
};

// Kept between launches, zero at first: the last epoch used, and blocks that have finished.
struct GridState {
    u32 epoch, finished;
};

struct OutboxState;
struct GridArguments {
    const Layer *layers;                       // [LAYERS], in device memory
    const Element *token, *position;           // [V, C], [P, C]
    const Element *norm_weight, *norm_bias;    // the final norm's
    uint4 *exchange;                           // EXCHANGE_WORDS, zero at first
    GridState *state;
    OutboxState *rule;                         // as sample.cu has it
    volatile u64 *outbox;                      // `slots` words of host memory
    u32 *tokens;                               // the token to begin with; the last one sampled
    Cursor *cursor;
    float *logits;                             // [V], of the last token
    u32 steps, slots;                          // tokens to make; past + steps must not exceed the context
    float eps;
    u32 picks;                                 // 0: there is one step, and sample.cu picks behind it
};
static_assert(sizeof(Layer) == 120 && sizeof(GridArguments) == 112, "both are laid out in Rust");
