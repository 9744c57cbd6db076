// Packs a model's weights into the blocks' streams for decode_batch.cu, and makes the constants that follow from them. Launcher:
// src/decoder/batch.rs.
#include "batch_ring.cuh"
#include "layer_weights.cuh"

typedef WeightsOf<bf16> LayerWeights;

// Row and column of element `i` of units of so many eights of rows, tile by tile, counted from the first.
struct Position {
    u32 row, column;
    __device__ Position(u32 i, u32 eights) {
        u32 unit = i / UNIT_LEN, lane = i % UNIT_LEN / 4;
        row = unit % eights * 8 + lane / 4, column = unit / eights * 16 + lane % 4 * 4 + i % 4;
    }
};

// Of element `i` of a warp's share of a product: row(the block's row)[column].
template <typename S, typename Row> __device__ bf16 shared_out(u32 warp, u32 i, Row row) {
    Position place(i, S::EIGHTS);
    return row(S::first_row(warp) + place.row)[S::first_tile(warp) * 16 + place.column];
}

// Element `i` of a warp's layer.
__device__ inline bf16 streamed(const LayerWeights &w, u32 rank, u32 warp, u32 i) {
    if (i < QKV_UNITS * UNIT_LEN) return shared_out<QkvShare>(warp, i, [&](u32 row) { return qkv_row(w, rank * QKV_ROWS + row); });
    i -= QKV_UNITS * UNIT_LEN;
    if (i < OUT_UNITS * UNIT_LEN) return shared_out<OutShare>(warp, i, [&](u32 row) { return w.out + u64(rank * OUT_ROWS + row) * C; });
    i -= OUT_UNITS * UNIT_LEN;
    if (i < UP_UNITS * UNIT_LEN) return shared_out<UpShare>(warp, i, [&](u32 row) { return w.up + u64(rank * UP_ROWS + row) * C; });
    Position place(i - UP_UNITS * UNIT_LEN, DOWN_EIGHTS);
    return w.down[u64(warp * DOWN_EIGHTS * 8 + place.row) * F + rank * UP_ROWS + place.column];
}

// Grid (N * WARPS): a block of 256 threads packs a warp's part of a layer.
extern "C" __global__ void __launch_bounds__(256, 1) ENTRY(decode_batch_pack)(char *stream, const __grid_constant__ LayerWeights w, u32 layer) {
    u32 rank = blockIdx.x / WARPS, warp = blockIdx.x % WARPS;
    bf16 *mine = reinterpret_cast<bf16 *>(stream + u64(rank) * STREAM_BYTES) + u64(layer) * LAYER_UNITS * UNIT_LEN * WARPS;
    constexpr u32 PART = SLOT_UNITS * UNIT_LEN; // of a slot, a warp's
    for (u32 i = threadIdx.x; i < LAYER_UNITS * UNIT_LEN; i += blockDim.x)
        mine[(i / PART * WARPS + warp) * PART + i % PART] = streamed(w, rank, warp, i);
}

// Grid (N): a block of 256 threads makes a layer's constants for one of decode_batch.cu.
extern "C" __global__ void __launch_bounds__(256, 1) ENTRY(decode_batch_constants)(float *all, const __grid_constant__ LayerWeights w, u32 layer) {
    u32 rank = blockIdx.x, warp = threadIdx.x / WARP;
    float *mine = all + u64(rank) * CONSTANTS + layer * LAYER_CONSTANTS;
    for (u32 i = warp; i < QKV_ROWS; i += WARPS)
        norm_row(mine + QKV_AB + 2 * i, qkv_row(w, rank * QKV_ROWS + i), w.norm_1, w.norm_1_bias, 0.0f);
    for (u32 i = warp; i < UP_ROWS; i += WARPS) {
        u32 r = rank * UP_ROWS + i;
        norm_row(mine + UP_AB + 2 * i, w.up + u64(r) * C, w.norm_2, w.norm_2_bias, to_float(w.up_bias[r]));
    }
    if (threadIdx.x < OUT_ROWS) {
        u32 i = threadIdx.x, r = rank * OUT_ROWS + i;
        mine[OUT_BIAS + i] = to_float(w.out_bias[r]), mine[DOWN_BIAS + i] = to_float(w.down_bias[r]);
        mine[GAMMA_1 + i] = to_float(w.norm_1[r]), mine[GAMMA_2 + i] = to_float(w.norm_2[r]);
    }
}

// Grid (N): the same for the head, and its weights, behind all streams.
extern "C" __global__ void __launch_bounds__(256, 1)
    ENTRY(decode_batch_head)(char *stream, float *all, const bf16 *gamma, const bf16 *beta, const bf16 *token) {
    u32 rank = blockIdx.x, warp = threadIdx.x / WARP;
    float *mine = all + u64(rank) * CONSTANTS;
    if (threadIdx.x < OUT_ROWS) mine[FINAL_GAMMA + threadIdx.x] = to_float(gamma[rank * OUT_ROWS + threadIdx.x]);
    auto row = [&](u32 i) { return token + u64(min(rank * HEAD_ROWS + i, V - 1)) * C; };
    for (u32 i = warp; i < HEAD_ROWS; i += WARPS) norm_row(mine + HEAD_AB + 2 * i, row(i), gamma, beta, 0.0f);
    bf16 *weights = reinterpret_cast<bf16 *>(stream + u64(N) * STREAM_BYTES + rank * WARPS * HEAD_BYTES);
    for (u32 i = threadIdx.x; i < HEAD_UNITS * WARPS * UNIT_LEN; i += blockDim.x)
        weights[i] = shared_out<HeadShare>(i / (HEAD_UNITS * UNIT_LEN), i % (HEAD_UNITS * UNIT_LEN), row);
}

// The mean of each row of the token embedding, then of the position embedding: a warp a row. Grid: V + P rows in blocks of 8 warps.
extern "C" __global__ void __launch_bounds__(256, 1) ENTRY(decode_batch_means)(float *means, const bf16 *token, const bf16 *position) {
    u32 r = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (r >= V + P) return;
    const bf16 *row = r < V ? token + u64(r) * C : position + u64(r - V) * C;
    float sum = 0;
    for (u32 i = threadIdx.x % WARP; i < C; i += WARP) sum += to_float(row[i]);
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) means[r] = sum * (1.0f / C);
}
