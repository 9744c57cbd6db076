// How a model is spread over the clusters of decode_train.cu: which warp of which block owns what, and what lies in shared memory.
//
// Dimensions are constants of the compilation, made by src/decoder: CHANNELS (C), HEADS (H), WIDTH (F), LAYERS, CONTEXT (P), VOCAB (V), CLUSTERS,
// CLUSTER (blocks of one), SPLIT (blocks that share a head's keys), SHARED_BYTES (what a block may use), CONSTANTS_LEN (as the host counts them).
#pragma once
#include "cluster.cuh"
#include "pick.cuh"
#include "powers.cuh"
#include "tensor.cuh"

typedef bf16 Element;
#define ENTRY(NAME) NAME##_bf16

constexpr u32 C = CHANNELS, H = HEADS, D = C / H, F = WIDTH, P = CONTEXT, V = VOCAB, N = CLUSTER, TEAM = N, S = SPLIT;
constexpr u32 WARPS = 8, THREADS = WARPS * WARP;
// Of them those that send a block's rows of the residual to the others.
constexpr u32 FINISHERS = 4;
static_assert(LAYERS == CLUSTERS, "a cluster for each layer");
static_assert(C % (8 * N) == 0 && F % (16 * N) == 0 && C % (16 * WARPS) == 0 && F % (16 * WARPS) == 0, "rows in eights, columns in sixteens");
static_assert(H * S <= N && (D == 32 || D == 64) && N == 2 * WARPS, "a head is shared by S blocks of its own");
__device__ constexpr u32 larger(u32 a, u32 b) { return a > b ? a : b; }
__device__ constexpr u32 smaller(u32 a, u32 b) { return a < b ? a : b; }

// ---- rows of each product that a block owns ----

// Of the residual, and thus of q, of k and of v each; of hidden; and of logits.
constexpr u32 ROWS = C / N, QKV_ROWS = 3 * ROWS, UP_ROWS = F / N, HEAD_ROWS = 8;
static_assert(V <= HEAD_ROWS * N && ROWS <= WARP, "a block has eight logits");
// The matrix row of q, then k, then v that is row `r` of block `rank`.
__device__ constexpr u32 qkv_index(u32 rank, u32 r) { return r / ROWS * C + rank * ROWS + r % ROWS; }
// Bytes of a layer's products that a block has. Those of `up` stay in registers, the others in shared memory.
constexpr u32 QKV_BYTES = QKV_ROWS * C * sizeof(Element), OUT_BYTES = ROWS * C * sizeof(Element), UP_BYTES = UP_ROWS * C * sizeof(Element),
              DOWN_BYTES = ROWS * F * sizeof(Element);
constexpr u32 QKV_START = 0, OUT_START = QKV_START + QKV_BYTES, DOWN_START = OUT_START + OUT_BYTES, UP_START = DOWN_START + DOWN_BYTES,
              LAYER_BYTES = UP_START + UP_BYTES;

// ---- keys (train_attention.cuh) ----

// Of a warp at once, of the block, and how often until the context is full; positions go to the S parts of a head by BLOCK_KEYS.
constexpr u32 KEYS = 16, BLOCK_KEYS = WARPS * KEYS, ROUNDS = (P + S * BLOCK_KEYS - 1) / (S * BLOCK_KEYS);
static_assert(ROUNDS * D <= 128, "registers hold all keys");
// The keys of a round; as many values.
constexpr u32 KEY_BYTES = BLOCK_KEYS * D * sizeof(Element);

// ---- a block's constants: float32, kept in shared memory ----

// Of the layer: gammas of both norms, a and b of every row behind a norm (decode_sums.cuh), the biases of the other rows. Then the same of the head,
// and the mean of each token's embedding.
constexpr u32 GAMMA_1 = 0, GAMMA_2 = C, QKV_AB = 2 * C, UP_AB = QKV_AB + 2 * QKV_ROWS, OUT_BIAS = UP_AB + 2 * UP_ROWS, DOWN_BIAS = OUT_BIAS + ROWS;
constexpr u32 FINAL_GAMMA = DOWN_BIAS + ROWS, HEAD_AB = FINAL_GAMMA + C, TOKEN_MEANS = HEAD_AB + 2 * HEAD_ROWS, CONSTANTS = TOKEN_MEANS + V;
static_assert(CONSTANTS == CONSTANTS_LEN, "the host counts the constants as we do");

// ---- shared memory ----

// The handoffs, and a row of the position embedding. Each has a barrier; that of the residual, which comes in words, is that of the weights.
enum Handoff { RESIDUAL, QKV, CORE, MIDDLE, HIDDEN, LOGITS, POSITION, HANDOFFS };
CLOCK_NAMES("residual", "q, k, v", "attention", "residual between sublayers", "hidden", "logits", "position")

// A row of the residual, less a number near its mean.
struct Stream {
    float values[C];
};

// What lies in front.
struct Shared {
    u64 arrived[HANDOFFS];
    alignas(16) Stream residual, middle; // between layers, and between the sublayers
    alignas(16) u32 q[D];               // of this block's head, each as two numbers in bfloat16
    alignas(16) Element core[S][C];     // weighted values of each part of the keys, with a bound of its scores and the mass of each head
    alignas(16) Mass core_mass[S][H];
    alignas(16) Element merged[C];      // of all parts
    alignas(16) Element position[C];    // of the next token
    alignas(16) Element hidden[F];
    alignas(16) float logits[V], noise[V];
    alignas(16) float partial[WARPS][UP_ROWS], few_partial[WARPS][ROWS]; // sums of a product and of the next one, warp by warp
    alignas(16) float2 moments[WARPS]; // of the row before a norm
    alignas(16) float part[WARPS][D];  // of this block's keys, warp by warp
    alignas(16) Mass part_mass[WARPS];
    Sampling rule;
    float position_mean; // of the next token's
    u32 token;           // the last pick
    u32 past, epoch;     // where the launch begins, and the last epoch before it
    u32 step, issue;     // the pick at position p is number step + p of its generation, and issue + p of the outbox
    alignas(16) float constants[CONSTANTS];
};
static_assert(QKV_ROWS <= UP_ROWS && HEAD_ROWS <= UP_ROWS, "partial sums have room");
// Behind that weights, and keys and values.
constexpr u32 WEIGHTS_START = (sizeof(Shared) + 127) / 128 * 128, WEIGHTS_BYTES = UP_START, KEYS_START = WEIGHTS_START + WEIGHTS_BYTES;
static_assert(KEYS_START + ROUNDS * 2 * KEY_BYTES <= SHARED_BYTES, "shared memory is too small for this model");
