// How a model is spread over the cluster of decode.cu: which warp of which block owns which rows, and what lies in shared memory.
//
// Dimensions are constants of the compilation, made by src/decoder: CHANNELS (C), HEADS (H), WIDTH (F), LAYERS, CONTEXT (P), VOCAB (V), BF16
// (1: weights and cache in bfloat16, 0: in float32), CLUSTER (blocks), SPLIT (blocks that share a head's keys), SHARED_BYTES (what a block may use),
// CONSTANTS_LEN (as the host counts them).
#pragma once
#include "cluster.cuh"
#include "pick.cuh"
#include "powers.cuh"

#if BF16
typedef bf16 Element;
#define ENTRY(NAME) NAME##_bf16
#else
typedef float Element;
#define ENTRY(NAME) NAME##_f32
#endif

constexpr u32 C = CHANNELS, H = HEADS, D = C / H, F = WIDTH, P = CONTEXT, V = VOCAB, N = CLUSTER, S = SPLIT;
// Warps that compute; one more fills the window.
constexpr u32 WARPS = 8, THREADS = WARPS * WARP, TEAM = N * WARPS;
// A lane holds four neighbouring elements of every 128.
constexpr u32 CHUNK = 4 * WARP, UNIT = CHUNK * sizeof(Element);
static_assert(C % TEAM == 0 && F % (2 * TEAM) == 0 && C % CHUNK == 0 && F % CHUNK == 0, "rows and columns are spread evenly");
static_assert(H * S <= N && (D == 32 || D == 64), "a head is shared by S blocks of its own");
static_assert(V <= 2 * TEAM && V <= 8 * WARP, "a warp has two rows of the head, a lane eight logits");

// ---- rows of each product that a warp owns ----

// A small cluster's blocks each make all of q, k and v of their head, although S blocks make the same: that is sooner done than handed over.
constexpr bool LOCAL = N <= 8 && H * S == N;
constexpr u32 QKV_ROWS = LOCAL ? 3 * D / WARPS : 3 * C / TEAM, OUT_ROWS = C / TEAM, UP_ROWS = F / TEAM, HEAD_ROWS = (V + TEAM - 1) / TEAM;

// A row of q, then k, then v: row `r` of block `rank`.
__device__ constexpr u32 qkv_index(u32 rank, u32 r) { return LOCAL ? r / D * C + rank / S * D + r % D : rank * WARPS * QKV_ROWS + r; }
// The first row of a warp that owns `rows` of each product's rows. In the head it may be V or more: then there is no such row.
__device__ constexpr u32 first_row(u32 rank, u32 warp, u32 rows) { return (rank * WARPS + warp) * rows; }

// Whether a warp's rows of the head stay in registers over all tokens.
constexpr bool HEAD_HELD = HEAD_ROWS * C * sizeof(Element) <= 1024;
// Whether a block gathers its rows of hidden and sends them together: where there are many, for many blocks.
constexpr bool HIDDEN_GATHERED = N > WARPS && F > 1024;

// ---- a warp's weights of a layer, in the order of their use (decode_pack.cu): bytes ----

enum Product { QKV_PRODUCT, OUT_PRODUCT, UP_PRODUCT, DOWN_PRODUCT, PRODUCTS };
constexpr u32 QKV_BYTES = QKV_ROWS * C * sizeof(Element), OUT_BYTES = OUT_ROWS * C * sizeof(Element),
              UP_BYTES = UP_ROWS * C * sizeof(Element), DOWN_BYTES = OUT_ROWS * F * sizeof(Element),
              LAYER_BYTES = QKV_BYTES + OUT_BYTES + UP_BYTES + DOWN_BYTES;

// ---- a block's constants: float32, kept in shared memory ----

// Of a layer: gamma of both norms, a and b of every row behind a norm (decode_sums.cuh), the biases of the other rows. Then
// gamma of the last norm, and a and b of the head's rows.
constexpr u32 GAMMA_1 = 0, GAMMA_2 = C, QKV_AB = 2 * C, UP_AB = QKV_AB + 2 * WARPS * QKV_ROWS, OUT_BIAS = UP_AB + 2 * WARPS * UP_ROWS,
              DOWN_BIAS = OUT_BIAS + WARPS * OUT_ROWS, LAYER_CONSTANTS = DOWN_BIAS + WARPS * OUT_ROWS;
constexpr u32 FINAL_GAMMA = LAYERS * LAYER_CONSTANTS, HEAD_AB = FINAL_GAMMA + C, CONSTANTS = HEAD_AB + 2 * WARPS * HEAD_ROWS;
static_assert(CONSTANTS == CONSTANTS_LEN, "the host counts the constants as we do");

// ---- shared memory ----

// The handoffs. Each has a barrier and a buffer.
enum Handoff { RESIDUAL, QKV, CORE, MIDDLE, HIDDEN, LOGITS, HANDOFFS };
constexpr u32 SLOTS_MAX = 32;

// What lies in front.
struct Shared {
    u64 arrived[HANDOFFS];
    u64 full[SLOTS_MAX], empty[SLOTS_MAX]; // of the window's slots
    alignas(16) float residual[C];
    alignas(16) float qkv[3 * D];    // of this block's head
    alignas(16) Element core[S][C];  // weighted values of each part of the keys, with the largest score and the mass of each head
    Mass core_mass[S][H];
    alignas(16) float middle[C];     // the residual between the sublayers
    alignas(16) Element hidden[F], own_hidden[F / N]; // of all blocks; of this one, gathered
    alignas(16) float logits[V], noise[V];
    alignas(16) float part[WARPS][D]; // of this block's keys, warp by warp
    alignas(16) Mass part_mass[WARPS];
    Sampling rule;
    u32 step, issue; // the pick at position p is number step + p of its generation, and issue + p of the outbox
    alignas(16) float constants[CONSTANTS];
};
// Behind that the token embedding, where a whole layer's weights fit beside it, and then the window.
constexpr u32 TABLE_START = (sizeof(Shared) + 127) / 128 * 128, TABLE_BYTES = (V * C * sizeof(Element) + 127) / 128 * 128;
constexpr bool TABLE_HELD = TABLE_START + TABLE_BYTES + LAYER_BYTES * WARPS <= SHARED_BYTES;
constexpr u32 WINDOW_START = TABLE_START + (TABLE_HELD ? TABLE_BYTES : 0);
// Of the window, for each warp.
constexpr u32 WINDOW_BYTES = (SHARED_BYTES - WINDOW_START) / WARPS / 128 * 128;
