// Packs a layer's weights for the blocks of its cluster of decode_train.cu, and makes the constants that follow from them. Launcher:
// src/decoder/cluster.rs.
#include "train_product.cuh"
#include "layer_weights.cuh"

typedef WeightsOf<Element> LayerWeights;

// A warp's weights of a block's R rows; `row_of(r)` is row r of the block.
template <u32 R, u32 K, typename RowOf> __device__ void pack_rows(char *block, u32 warp, RowOf row_of) {
    constexpr u32 COUNT = R * K / WARPS;
    Element *mine = reinterpret_cast<Element *>(block) + warp * COUNT;
    for (u32 i = threadIdx.x; i < COUNT; i += blockDim.x) {
        uint2 place = Weights<R, K>::place(warp, i);
        mine[i] = row_of(place.x)[place.y];
    }
}

// Grid (N * WARPS): a block of 256 threads packs a warp's rows.
extern "C" __global__ void __launch_bounds__(256, 1) ENTRY(decode_pack)(char *stream, const __grid_constant__ LayerWeights w, u32 layer) {
    u32 rank = blockIdx.x / WARPS, warp = blockIdx.x % WARPS;
    char *block = stream + (u64(layer) * N + rank) * LAYER_BYTES;
    pack_rows<QKV_ROWS, C>(block + QKV_START, warp, [&](u32 r) { return qkv_row(w, qkv_index(rank, r)); });
    pack_rows<ROWS, C>(block + OUT_START, warp, [&](u32 r) { return w.out + (rank * ROWS + r) * C; });
    pack_rows<UP_ROWS, C>(block + UP_START, warp, [&](u32 r) { return w.up + (rank * UP_ROWS + r) * C; });
    pack_rows<ROWS, F>(block + DOWN_START, warp, [&](u32 r) { return w.down + (rank * ROWS + r) * F; });
}

// Grid (N): a block of 256 threads makes the constants of a layer for one of its cluster.
extern "C" __global__ void __launch_bounds__(256, 1) ENTRY(decode_constants)(float *all, const __grid_constant__ LayerWeights w, u32 layer) {
    u32 rank = blockIdx.x, warp = threadIdx.x / WARP;
    float *mine = all + (u64(layer) * N + rank) * CONSTANTS;
    for (u32 i = warp; i < QKV_ROWS; i += WARPS) norm_row(mine + QKV_AB + 2 * i, qkv_row(w, qkv_index(rank, i)), w.norm_1, w.norm_1_bias, 0.0f);
    for (u32 i = warp; i < UP_ROWS; i += WARPS) {
        u32 r = rank * UP_ROWS + i;
        norm_row(mine + UP_AB + 2 * i, w.up + r * C, w.norm_2, w.norm_2_bias, to_float(w.up_bias[r]));
    }
    for (u32 i = threadIdx.x; i < C; i += blockDim.x) mine[GAMMA_1 + i] = to_float(w.norm_1[i]), mine[GAMMA_2 + i] = to_float(w.norm_2[i]);
    for (u32 i = threadIdx.x; i < ROWS; i += blockDim.x)
        mine[OUT_BIAS + i] = to_float(w.out_bias[rank * ROWS + i]), mine[DOWN_BIAS + i] = to_float(w.down_bias[rank * ROWS + i]);
}

// Grid (N): the same of the head, for the first cluster.
extern "C" __global__ void __launch_bounds__(256, 1)
    ENTRY(decode_head)(float *all, const Element *gamma, const Element *beta, const Element *token) {
    u32 warp = threadIdx.x / WARP;
    float *mine = all + u64(blockIdx.x) * CONSTANTS;
    for (u32 i = threadIdx.x; i < C; i += blockDim.x) mine[FINAL_GAMMA + i] = to_float(gamma[i]);
    for (u32 i = warp; i < HEAD_ROWS; i += WARPS)
        norm_row(mine + HEAD_AB + 2 * i, token + u64(min(blockIdx.x * HEAD_ROWS + i, V - 1)) * C, gamma, beta, 0.0f);
    token_means(mine + TOKEN_MEANS, token, V);
}
