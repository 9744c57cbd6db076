// Packs a layer's weights into the blocks' streams for decode.cu, and makes the constants that follow from them. Launcher: src/decoder/cluster.rs.
#include "decode_window.cuh"

struct LayerWeights {
    const Element *norm_1, *norm_1_bias, *q, *k, *v, *out, *out_bias, *norm_2, *norm_2_bias, *up, *up_bias, *down, *down_bias;
};
static_assert(sizeof(LayerWeights) == 8 * 13, "LayerWeights are laid out in Rust");

// Row `r` of the rows of q, then k, then v.
__device__ inline const Element *qkv_row(const LayerWeights &w, u32 r) {
    return (r < C ? w.q : r < 2 * C ? w.k : w.v) + u64(r % C) * C;
}

// Row and column of element `i` of a warp's `rows` rows, in the order of use: chunk by chunk, of all its rows.
struct Place {
    u32 row, column;
    __device__ Place(u32 i, u32 rows) : row(i / CHUNK % rows), column(i / CHUNK / rows * CHUNK + i % CHUNK) {}
};
__device__ inline Element element(const Element *weight, Place place, u32 first, u32 columns) {
    return weight[u64(first + place.row) * columns + place.column];
}

// Element `i` of a warp's layer.
__device__ inline Element streamed(const LayerWeights &w, u32 rank, u32 warp, u32 i) {
    if (i < QKV_ROWS * C) {
        Place place(i, QKV_ROWS);
        return qkv_row(w, qkv_index(rank, warp * QKV_ROWS + place.row))[place.column];
    }
    i -= QKV_ROWS * C;
    if (i < OUT_ROWS * C) return element(w.out, Place(i, OUT_ROWS), first_row(rank, warp, OUT_ROWS), C);
    i -= OUT_ROWS * C;
    if (i < UP_ROWS * C) return element(w.up, Place(i, UP_ROWS), first_row(rank, warp, UP_ROWS), C);
    i -= UP_ROWS * C;
    return element(w.down, Place(i, OUT_ROWS), first_row(rank, warp, OUT_ROWS), F);
}

// Grid (N * WARPS): a block of 256 threads packs a warp's rows.
extern "C" __global__ void __launch_bounds__(256, 1) ENTRY(decode_pack)(char *stream, const __grid_constant__ LayerWeights w, u32 layer) {
    u32 rank = blockIdx.x / WARPS, warp = blockIdx.x % WARPS;
    Element *mine = reinterpret_cast<Element *>(stream + (u64(rank) * LAYERS + layer) * LAYER_BYTES * WARPS);
    for (u32 i = threadIdx.x; i < LAYER_BYTES / sizeof(Element); i += blockDim.x)
        mine[Window::place(warp, i * sizeof(Element)) / sizeof(Element)] = streamed(w, rank, warp, i);
}

// a and b of a row behind a norm (decode_sums.cuh): a warp.
__device__ inline void norm_row(float *ab, const Element *row, const Element *gamma, const Element *beta, float bias) {
    u32 lane = threadIdx.x % WARP;
    float a = 0, b = 0;
    for (u32 i = lane; i < C; i += WARP) {
        float w = to_float(row[i]);
        a = fmaf(w, to_float(gamma[i]), a), b = fmaf(w, to_float(beta[i]), b);
    }
    a = warp_sum(a), b = warp_sum(b);
    if (lane == 0) ab[0] = a, ab[1] = b + bias;
}

// Grid (N): a block of 256 threads makes the constants of a layer for one of decode.cu.
extern "C" __global__ void __launch_bounds__(256, 1) ENTRY(decode_constants)(float *all, const __grid_constant__ LayerWeights w, u32 layer) {
    u32 rank = blockIdx.x, warp = threadIdx.x / WARP;
    float *mine = all + u64(rank) * CONSTANTS + layer * LAYER_CONSTANTS;
    for (u32 i = threadIdx.x; i < C; i += blockDim.x) mine[GAMMA_1 + i] = to_float(w.norm_1[i]), mine[GAMMA_2 + i] = to_float(w.norm_2[i]);
    for (u32 i = warp; i < WARPS * QKV_ROWS; i += WARPS)
        norm_row(mine + QKV_AB + 2 * i, qkv_row(w, qkv_index(rank, i)), w.norm_1, w.norm_1_bias, 0.0f);
    for (u32 i = warp; i < WARPS * UP_ROWS; i += WARPS) {
        u32 r = first_row(rank, 0, UP_ROWS) + i;
        norm_row(mine + UP_AB + 2 * i, w.up + u64(r) * C, w.norm_2, w.norm_2_bias, to_float(w.up_bias[r]));
    }
    for (u32 i = threadIdx.x; i < WARPS * OUT_ROWS; i += blockDim.x) {
        u32 r = first_row(rank, 0, OUT_ROWS) + i;
        mine[OUT_BIAS + i] = to_float(w.out_bias[r]), mine[DOWN_BIAS + i] = to_float(w.down_bias[r]);
    }
}

// Grid (N): the same for the head.
extern "C" __global__ void __launch_bounds__(256, 1)
    ENTRY(decode_head)(float *all, const Element *gamma, const Element *beta, const Element *token) {
    u32 rank = blockIdx.x, warp = threadIdx.x / WARP;
    float *mine = all + u64(rank) * CONSTANTS;
    for (u32 i = threadIdx.x; i < C; i += blockDim.x) mine[FINAL_GAMMA + i] = to_float(gamma[i]);
    for (u32 i = warp; i < WARPS * HEAD_ROWS; i += WARPS)
        norm_row(mine + HEAD_AB + 2 * i, token + u64(min(first_row(rank, 0, HEAD_ROWS) + i, V - 1)) * C, gamma, beta, 0.0f);
}
