// How a model is spread over the cluster of decode.cu: which warp of which block owns which rows, and what lies in shared memory.
//
// Dimensions are constants of the compilation, made by src/decoder: CHANNELS (C), HEADS (H), WIDTH (F), LAYERS, CONTEXT (P), VOCAB (V), BF16
// (1: weights and cache in bfloat16, 0: in float32), CLUSTER (blocks), STAGES (of teams of them), SPLIT (blocks that share a head's keys),
// SHARED_BYTES (what a block may use), CONSTANTS_LEN (as the host counts them).
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
// Layers go to STAGES teams of blocks in turn: a layer's blocks hand it on to those of the next. With one stage, all blocks share every layer.
#define STAGED (STAGES > 1)
constexpr u32 TEAM = N / STAGES, LAYERS_HELD = (LAYERS + STAGES - 1) / STAGES;
// Warps that compute; beside them, those that fetch weights and keys, for which a stage has time.
constexpr u32 WARPS = 8, THREADS = WARPS * WARP, FETCHING = STAGED ? 0 : 2;
// Of them those that finish what all have summed up, and send it: fewer than all, so that they do not wait for each other's loads.
constexpr u32 FINISHERS = N == 8 ? 2 : 4;
// Of a warp at once: four neighbouring elements a lane.
constexpr u32 CHUNK = 4 * WARP, UNIT = CHUNK * sizeof(Element);
static_assert(C % (WARPS * TEAM) == 0 && F % (2 * WARPS * TEAM) == 0 && C % CHUNK == 0 && F % CHUNK == 0, "rows and columns are spread evenly");
static_assert(H * S <= TEAM && (D == 32 || D == 64), "a head is shared by S blocks of its own");
static_assert(!STAGED || (H == TEAM && TEAM == 4 && D == WARP && F == 4 * C && C == 4 * WARP), "a stage is made for one shape of layers");
static_assert(V <= (STAGED ? WARP : 2 * WARPS) * TEAM && V <= 8 * WARP, "a lane has eight logits");

__device__ constexpr u32 common_divisor(u32 a, u32 b) { return b == 0 ? a : common_divisor(b, a % b); }
__device__ constexpr u32 ceil_power(u32 n) { return n <= 1 ? 1 : 2 * ceil_power((n + 1) / 2); }

// ---- rows of each product that a block owns ----

// A small cluster's blocks each make all of q, k and v of their head, although S blocks make the same: that is sooner done than handed over.
constexpr bool LOCAL = N <= 8 ? H * S == N : STAGED;
constexpr u32 QKV_ROWS = LOCAL ? 3 * D : 3 * C / N, OUT_ROWS = STAGED ? C : C / N, UP_ROWS = F / TEAM;
constexpr u32 HEAD_ROWS = ceil_power(V > 8 * TEAM ? (V + TEAM - 1) / TEAM : 8);

// A row of q, then k, then v: row `r` of block `rank`.
__device__ constexpr u32 qkv_index(u32 rank, u32 r) { return LOCAL ? r / D * C + rank / S * D + r % D : rank * QKV_ROWS + r; }

// How a block multiplies R rows of K columns. Each warp has an eighth of the columns. Its lanes have one each of the rows, or ROWS,
// ROW_LANES apart, and where there are too few for all lanes, a part of the warp's columns: FOURS times four neighbours. Or, BY_ROWS, each warp has
// an eighth of the rows and all columns.
template <u32 R, u32 K, bool BY_ROWS = false> struct Split {
    static constexpr u32 WARP_ROWS = BY_ROWS ? R / WARPS : R;
    static constexpr u32 ROW_LANES = common_divisor(WARP_ROWS, WARP), PARTS = WARP / ROW_LANES, ROWS = WARP_ROWS / ROW_LANES;
    static constexpr u32 COLUMNS = BY_ROWS ? K : K / WARPS, LANE_COLUMNS = COLUMNS / PARTS, FOURS = LANE_COLUMNS / 4, UNITS = ROWS * FOURS;
    static_assert(LANE_COLUMNS % 4 == 0, "a lane's columns come in fours");

    static __device__ u32 column(u32 warp, u32 lane) { return (BY_ROWS ? 0 : warp * COLUMNS) + lane / ROW_LANES * LANE_COLUMNS; }
    static __device__ u32 first_row(u32 warp) { return BY_ROWS ? warp * WARP_ROWS : 0; }
    static __device__ u32 row(u32 i, u32 lane) { return i * ROW_LANES + lane % ROW_LANES; }
};
typedef Split<QKV_ROWS, C> QkvSplit;
typedef Split<OUT_ROWS, STAGED ? D : C, STAGED> OutSplit;
typedef Split<UP_ROWS, C> UpSplit;
typedef Split<OUT_ROWS, STAGED ? UP_ROWS : F> DownSplit;
typedef Split<HEAD_ROWS, C> HeadSplit;
__device__ constexpr u32 larger(u32 a, u32 b) { return a > b ? a : b; }
// Whether a lane's share of the head stays in registers over all tokens.
constexpr bool HEAD_HELD = C * sizeof(Element) <= 512;
constexpr u32 ROWS_MAX = larger(larger(QkvSplit::ROWS, OutSplit::ROWS), larger(UpSplit::ROWS, HeadSplit::ROWS));

// ---- keys (decode_keys.cuh) ----

// A lane has sixteen channels of a key, a group of lanes the key. Keys of the block at once, and how often until the context is full.
constexpr u32 KEY_LANES = D / 16, GROUPS = WARP / KEY_LANES, BLOCK_KEYS = WARPS * GROUPS, ROUNDS = (P + S * BLOCK_KEYS - 1) / (S * BLOCK_KEYS);
// Of values a lane has two neighbouring channels: VALUES keys, every one of its warp's or every other.
constexpr u32 VALUE_LANES = D / 2, VALUE_PARTS = WARP / VALUE_LANES, VALUES = GROUPS / VALUE_PARTS;
// Rounds at once.
constexpr u32 AT_ONCE = STAGED ? ROUNDS : 1;
static_assert(AT_ONCE <= 2, "a stage holds all keys");
// Whether the first round's are in registers before q is there: where these suffice.
constexpr bool KEYS_EARLY = C <= 256;
// The keys of a round; as many values.
constexpr u32 KEY_BYTES = BLOCK_KEYS * D * sizeof(Element);

// ---- a warp's weights of a layer, in the order of their use (decode_pack.cu): bytes ----

enum Product { QKV_PRODUCT, OUT_PRODUCT, UP_PRODUCT, DOWN_PRODUCT, PRODUCTS };
constexpr u32 QKV_BYTES = QkvSplit::UNITS * UNIT, OUT_BYTES = OutSplit::UNITS * UNIT, UP_BYTES = UpSplit::UNITS * UNIT,
              DOWN_BYTES = DownSplit::UNITS * UNIT,
              LAYER_BYTES = QKV_BYTES + OUT_BYTES + UP_BYTES + DOWN_BYTES;

// ---- a block's constants: float32, kept in shared memory ----

// Of a layer: gamma of both norms for the block's rows of the residual, a and b of every row behind a norm (decode_sums.cuh), the biases of
// the other rows. Then the same of the head, gamma of the first norm for all columns, and the mean of each token's embedding.
constexpr u32 GAMMA_1 = 0, GAMMA_2 = OUT_ROWS, QKV_AB = 2 * OUT_ROWS, UP_AB = QKV_AB + 2 * QKV_ROWS, OUT_BIAS = UP_AB + 2 * UP_ROWS,
              DOWN_BIAS = OUT_BIAS + OUT_ROWS, LAYER_CONSTANTS = DOWN_BIAS + OUT_ROWS;
constexpr u32 FINAL_GAMMA = LAYERS_HELD * LAYER_CONSTANTS, HEAD_AB = FINAL_GAMMA + OUT_ROWS, FIRST_GAMMA = HEAD_AB + 2 * HEAD_ROWS,
              TOKEN_MEANS = FIRST_GAMMA + C, CONSTANTS = TOKEN_MEANS + V;
static_assert(FINAL_GAMMA % LAYER_CONSTANTS == GAMMA_1, "the last norm's gamma stands where the first one of a next layer would");
static_assert(CONSTANTS == CONSTANTS_LEN, "the host counts the constants as we do");

// ---- shared memory ----

// The handoffs, and a row of the position embedding. Each has a barrier and a buffer.
enum Handoff { RESIDUAL, QKV, CORE, MIDDLE, HIDDEN, LOGITS, POSITION, HANDOFFS };
CLOCK_NAMES("residual", "q, k, v", "attention", "residual between sublayers", "hidden", "logits", "position")
constexpr u32 SLOTS_MAX = 32;

#if STAGED
// What each block of a team adds to a row of the residual.
struct Stream {
    float shares[TEAM][C];
};
#else
// A row of the residual before a norm as its blocks send it: less a number near its mean, times gamma and as it is.
struct Stream {
    float values[N][2][OUT_ROWS];

    __device__ float *scaled(u32 column) { return &values[column / OUT_ROWS][0][column % OUT_ROWS]; }
    __device__ float *centered(u32 column) { return scaled(column) + OUT_ROWS; }
};
#endif

// What lies in front.
struct Shared {
    u64 arrived[HANDOFFS];
    u64 full[SLOTS_MAX], empty[SLOTS_MAX];     // of the window's slots
    u64 keys_full[ROUNDS], keys_empty[ROUNDS]; // of the slots of keys
    alignas(16) Stream residual, middle;       // between layers, and between the sublayers
    alignas(16) float q[D];                    // of this block's head
    alignas(16) Element newest[2][D];          // key and value of the new token
    alignas(16) Element core[S][C];            // weighted values of each part of the keys, with a bound of its scores and the mass of each head
    Mass core_mass[S][H];
#if STAGED
    alignas(16) float input[WARPS][WARP];       // what a warp's lanes multiply next
    alignas(16) float mass[WARPS], most[WARPS]; // of the keys, warp by warp: their weights' sum, the largest score
#else
    alignas(16) float merged[C]; // of all parts
#endif
    alignas(16) Element position[C]; // of the next token
    alignas(16) Element hidden[F];
    alignas(16) float logits[V], noise[V];
    alignas(16) float partial[2][WARPS][ROWS_MAX][WARP]; // sums of a product and of the next one, warp by warp
    alignas(16) float2 moments[WARPS];                   // of the row before a norm
    alignas(16) float weight[WARPS][AT_ONCE][WARP];      // of a warp's keys
    alignas(16) float part[WARPS][D];                    // of this block's keys, warp by warp
    alignas(16) Mass part_mass[WARPS];
    Sampling rule;
    float position_mean; // of the next token's
    u32 token;           // the last pick
    u32 step, issue;     // the pick at position p is number step + p of its generation, and issue + p of the outbox
    alignas(16) float constants[CONSTANTS];
};
// Behind that the token embedding, where a whole layer's weights fit beside it, slots of keys and values, and then the window.
constexpr u32 TABLE_START = (sizeof(Shared) + 127) / 128 * 128, TABLE_BYTES = (V * C * sizeof(Element) + 127) / 128 * 128;
constexpr u32 SLOT_BYTES = 2 * KEY_BYTES, SLOTS_LEAST = STAGED ? LAYERS_HELD * ROUNDS : 1;
constexpr u32 LAYER_AND_SLOT = LAYER_BYTES * WARPS + SLOTS_LEAST * SLOT_BYTES;
constexpr bool LAYER_HELD = TABLE_START + LAYER_AND_SLOT <= SHARED_BYTES, TABLE_HELD = TABLE_START + TABLE_BYTES + LAYER_AND_SLOT <= SHARED_BYTES;
constexpr u32 KEYS_START = TABLE_START + (TABLE_HELD ? TABLE_BYTES : 0);
// Slots of keys, as many as fit; beside a ring, few.
constexpr u32 SLOTS_FITTING = LAYER_HELD ? (SHARED_BYTES - KEYS_START - LAYER_BYTES * WARPS) / SLOT_BYTES : C > 256 ? 1 : 3;
__device__ constexpr u32 smaller(u32 a, u32 b) { return a < b ? a : b; }
// Fewer than layers, so that a token's keys are fetched after the token before has added its own: a slot is given back as soon as it is read, when
// the layer's new rows are not stored yet, those of the layer before are (SOON; a single layer stores first). A stage keeps those of all its layers.
constexpr bool SOON = LAYERS > 1;
constexpr u32 KEY_SLOTS = STAGED ? SLOTS_LEAST : smaller(smaller(SLOTS_FITTING, ROUNDS), SOON ? LAYERS - 1 : 1);
constexpr u32 WINDOW_START = KEYS_START + KEY_SLOTS * SLOT_BYTES;
// Of the window, for each warp.
constexpr u32 WINDOW_BYTES = (SHARED_BYTES - WINDOW_START) / WARPS / 128 * 128;
