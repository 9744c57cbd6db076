// The sums of rows behind norms that decode_shards.cu takes as given (shard_layout.cuh).
//
// Grid (x, LAYERS + 1): blocks of 256 threads, a warp a row, as many as cover a layer's rows, and the head's. Launcher: src/decoder/grid.rs.
#include "shard_layout.cuh"
#include "layer_weights.cuh"

extern "C" __global__ void __launch_bounds__(256, 1)
    ENTRY(decode_shard_sums)(float2 *sums, const Layer *layers, const Element *norm_weight, const Element *norm_bias, const Element *token) {
    u32 r = blockIdx.x * 8 + threadIdx.x / WARP, l = blockIdx.y, lane = threadIdx.x % WARP, head = r / (3 * D), part = r / D % 3;
    bool last = l == LAYERS, up = r >= 3 * C;
    if (r >= (last ? VOCAB : LAYER_SUMS)) return;
    const Layer &layer = layers[last ? 0 : l];
    const Element *weight = last ? norm_weight : up ? layer.norm2_weight : layer.norm1_weight;
    const Element *bias = last ? norm_bias : up ? layer.norm2_bias : layer.norm1_bias;
    const Element *row = last ? token + u64(r) * C
                         : up ? layer.up + u64(r - 3 * C) * C
                              : (part == 0 ? layer.q : part == 1 ? layer.k : layer.v) + u64(head * D + r % D) * C;
    float2 ab = norm_sums(row, weight, bias);
    if (lane == 0) sums[u64(l) * LAYER_SUMS + r] = make_float2(ab.x, !last && up ? ab.y + to_float(layer.up_bias[r - 3 * C]) : ab.y);
}
