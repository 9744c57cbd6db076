// The model and the machine that decode_grid.cu or decode_shards.cu is compiled for.
//
// Dimensions come as -D constants, made by src/decoder/, so that every loop over them is unrolled or counted at compile time:
//   GRID_HALF            1: weights, cache, and activations inside a block are bf16; 0: they are float32
//   GRID_CHANNELS, GRID_HEADS, GRID_WIDTH, GRID_LAYERS, GRID_CONTEXT, GRID_VOCAB
//   GRID_BLOCKS          blocks of the launch, one a multiprocessor
//   GRID_WARPS           warps of a block that multiply
//   GRID_SPLITS          pieces that a head's cache is cut into, a task each
//   GRID_SHARED          bytes of dynamic shared memory of a block
//   GRID_EXCHANGE_WORDS  words of the exchange, as the host counts them
//   GRID_KEYS            positions that a warp takes at a time, where decode_grid.cu's choice is not to be taken
//
// Limits: GRID_CHANNELS and GRID_WIDTH multiples of 16; heads of whole 16-byte vectors, at most 32 of them.
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
constexpr bool HALF = sizeof(Element) == 2;
static_assert(C % 16 == 0 && F % 16 == 0 && C % H == 0, "whole vectors, whole heads");

__device__ constexpr u32 divide_up(u32 a, u32 b) { return (a + b - 1) / b; }
__device__ constexpr u32 smaller(u32 a, u32 b) { return a < b ? a : b; }
__device__ constexpr u32 larger(u32 a, u32 b) { return a > b ? a : b; }

// The matrices in the order of a token.
enum Stage { QKV, OUT, UP, DOWN, HEAD };

__device__ constexpr u32 inputs(Stage s) { return s == DOWN ? F : C; }

// Parameters and cache of a layer, [O, I] and [H, P, D].
struct Layer {
    const Element *norm1_weight, *norm1_bias, *q, *k, *v, *out, *out_bias;
    const Element *norm2_weight, *norm2_bias, *up, *up_bias, *down, *down_bias;
    Element *keys, *values;
};

// Kept between launches, zero at first: the last epoch used, the last round of picking, and blocks that have finished.
struct GridState {
    u32 epoch, round, finished;
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
};
static_assert(sizeof(Layer) == 120 && sizeof(GridArguments) == 112 && sizeof(GridState) == 12, "both are laid out in Rust");
