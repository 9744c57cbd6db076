// Packs a layer's weights into the blocks' streams for decode.cu, and makes the constants that follow from them. Launcher: src/decoder/cluster.rs.
#include "decode_window.cuh"
#include "layer_weights.cuh"

typedef WeightsOf<Element> LayerWeights;

// Element `i` of a warp's part of a product, in the order of use: by fours of columns, of all rows of a lane. `row_of(r)` is row r of the block.
template <typename Split, typename RowOf> __device__ Element element(u32 warp, u32 i, RowOf row_of) {
    u32 unit = i / CHUNK, lane = i % CHUNK / 4;
    return row_of(Split::first_row(warp) + Split::row(unit % Split::ROWS, lane))[Split::column(warp, lane) + unit / Split::ROWS * 4 + i % 4];
}

// Row `i` of the residual's rows that a block sums.
__device__ inline u32 residual_row(u32 rank, u32 i) { return STAGED ? i : rank * OUT_ROWS + i; }

// Element `i` of a warp's layer.
__device__ inline Element streamed(const LayerWeights &w, u32 rank, u32 warp, u32 i) {
    constexpr u32 SIZE = sizeof(Element), OUT = QKV_BYTES / SIZE, UP = OUT + OUT_BYTES / SIZE, DOWN = UP + UP_BYTES / SIZE;
    if (i < OUT) return element<QkvSplit>(warp, i, [&](u32 r) { return qkv_row(w, qkv_index(rank, r)); });
    // Of out and down, a stage's blocks have columns: those of their head and of their hidden units.
    if (i < UP) return element<OutSplit>(warp, i - OUT, [&](u32 r) { return w.out + (STAGED ? r * C + rank * D : (rank * OUT_ROWS + r) * C); });
    if (i < DOWN) return element<UpSplit>(warp, i - UP, [&](u32 r) { return w.up + u64(rank * UP_ROWS + r) * C; });
    return element<DownSplit>(warp, i - DOWN, [&](u32 r) { return w.down + (STAGED ? r * F + rank * UP_ROWS : (rank * OUT_ROWS + r) * F); });
}

// Grid (N * WARPS): a block of 256 threads packs a warp's rows.
extern "C" __global__ void __launch_bounds__(256, 1) ENTRY(decode_pack)(char *stream, const __grid_constant__ LayerWeights w, u32 layer) {
    u32 block = blockIdx.x / WARPS, rank = block % TEAM, warp = blockIdx.x % WARPS;
    if (layer % STAGES != block / TEAM) return;
    Element *mine = reinterpret_cast<Element *>(stream + (u64(block) * LAYERS_HELD + layer / STAGES) * LAYER_BYTES * WARPS);
    for (u32 i = threadIdx.x; i < LAYER_BYTES / sizeof(Element); i += blockDim.x)
        mine[Window::place(warp, i * sizeof(Element)) / sizeof(Element)] = streamed(w, rank, warp, i);
}

// Grid (N): a block of 256 threads makes the constants of a layer for one of decode.cu.
extern "C" __global__ void __launch_bounds__(256, 1) ENTRY(decode_constants)(float *all, const __grid_constant__ LayerWeights w, u32 layer) {
    u32 rank = blockIdx.x % TEAM, warp = threadIdx.x / WARP;
    float *mine = all + u64(blockIdx.x) * CONSTANTS, *here = mine + layer / STAGES * LAYER_CONSTANTS;
    if (layer % STAGES != blockIdx.x / TEAM) return;
    for (u32 i = warp; i < QKV_ROWS; i += WARPS) norm_row(here + QKV_AB + 2 * i, qkv_row(w, qkv_index(rank, i)), w.norm_1, w.norm_1_bias, 0.0f);
    for (u32 i = warp; i < UP_ROWS; i += WARPS) {
        u32 r = rank * UP_ROWS + i;
        norm_row(here + UP_AB + 2 * i, w.up + u64(r) * C, w.norm_2, w.norm_2_bias, to_float(w.up_bias[r]));
    }
    for (u32 i = threadIdx.x; i < OUT_ROWS; i += blockDim.x) {
        u32 r = residual_row(rank, i);
        here[GAMMA_1 + i] = to_float(w.norm_1[r]), here[GAMMA_2 + i] = to_float(w.norm_2[r]);
        here[OUT_BIAS + i] = to_float(w.out_bias[r]), here[DOWN_BIAS + i] = to_float(w.down_bias[r]);
    }
    if (layer > 0) return;
    for (u32 i = threadIdx.x; i < C; i += blockDim.x) mine[FIRST_GAMMA + i] = to_float(w.norm_1[i]);
}

// Grid (N): the same for the head.
extern "C" __global__ void __launch_bounds__(256, 1)
    ENTRY(decode_head)(float *all, const Element *gamma, const Element *beta, const Element *token) {
    u32 rank = blockIdx.x % TEAM, warp = threadIdx.x / WARP;
    float *mine = all + u64(blockIdx.x) * CONSTANTS;
    for (u32 i = threadIdx.x; i < OUT_ROWS; i += blockDim.x) mine[FINAL_GAMMA + i] = to_float(gamma[residual_row(rank, i)]);
    for (u32 i = warp; i < HEAD_ROWS; i += WARPS)
        norm_row(mine + HEAD_AB + 2 * i, token + u64(min(rank * HEAD_ROWS + i, V - 1)) * C, gamma, beta, 0.0f);
    token_means(mine + TOKEN_MEANS, token, V);
}
