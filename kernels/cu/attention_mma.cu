// Attention of many queries through tensor cores, from Ampere on; as attention.cu says, in bfloat16.
//
// Grid (ceil(T / 64), H, B), a block of 4 warps for 64 queries, 16 a warp, the last queries first because they see the most keys. Keys and
// values come in tiles of 64 rows through asynchronous copies past L1, a tile ahead of its use. A running maximum and sum a query; scores
// and sums are float32. The weights of the values enter the tensor cores as two bfloat16 halves, so that they are not rounded to one.
// Heads are a multiple of eight wide, at most 64 PANELS, missing channels being zero. Deterministic. Launcher: src/attention.rs.
#pragma once
#include "append.cu"
#include "product_mma.cu"

// Shared memory: rows of 64 channels, PANELS panels beside each other; queries, then two rings of keys and values.
template <int PANELS> struct AttentionTiles {
    static constexpr u32 BYTES = PANELS * MMA_TILE_BYTES;
    u32 base;
    __device__ u32 queries() const { return base; }
    __device__ u32 keys(u32 tile) const { return base + (1 + tile % 2 * 2) * BYTES; }
    __device__ u32 values(u32 tile) const { return keys(tile) + BYTES; }
};

// Asks for 64 rows from `row` on, below `rows`, of a matrix whose rows are `stride` elements apart and `size` long.
template <int PANELS>
__device__ void ask_rows(u32 to, const bf16 *matrix, u32 row, u32 rows, u32 stride, u32 size) {
#pragma unroll
    for (u32 i = threadIdx.x; i < MMA_TILE * 8 * PANELS; i += 128) {
        u32 r = i / (8 * PANELS), piece = i % (8 * PANELS);
        bool there = row + r < rows && piece * 8 < size;
        copy16(to + piece / 8 * MMA_TILE_BYTES + swizzled(r, piece % 8), there ? matrix + u64(row + r) * stride + piece * 8 : matrix, there);
    }
}

// What a fragment of two bfloat16 lost of two floats.
__device__ inline u32 pack_rest(float low, float high, u32 both) {
    return pack(low - __uint_as_float(both << 16), high - __uint_as_float(both & 0xffff0000u));
}

template <int PANELS, bool SPLIT>
__device__ void attention_mma(bf16 *y, const bf16 *q, const bf16 *keys, const bf16 *values, const Cursor *cursor, CacheShape s) {
    extern __shared__ __align__(1024) char shared[];
    constexpr int DEPTH = PANELS * 4; // slices of 16 channels
    AttentionTiles<PANELS> tiles = {(shared_address(shared) + 1023) / 1024 * 1024};
    u32 first = (gridDim.x - 1 - blockIdx.x) * MMA_TILE, head = blockIdx.y, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    u32 channels = s.heads * s.head_size, past = cursor[blockIdx.z].past;
    u64 rows = u64(blockIdx.z) * s.time, cache = (u64(blockIdx.z) * s.heads + head) * s.context * s.head_size;
    q += rows * channels + head * s.head_size, y += rows * channels + head * s.head_size;
    keys += cache, values += cache;
    u32 seen = min(past + min(first + MMA_TILE, s.time), s.context), count = (seen + MMA_TILE - 1) / MMA_TILE;
    auto ask = [&](u32 tile) {
        ask_rows<PANELS>(tiles.keys(tile), keys, tile * MMA_TILE, seen, s.head_size, s.head_size);
        commit_copies();
        ask_rows<PANELS>(tiles.values(tile), values, tile * MMA_TILE, seen, s.head_size, s.head_size);
        commit_copies();
    };
    release_next();
    await_previous();
    ask_rows<PANELS>(tiles.queries(), q, first, s.time, channels, s.head_size);
    ask(0);
    float scale = 1.44269504088896341f / sqrtf(float(s.head_size)); // scores are exponents of two
    float out[DEPTH * 2][4] = {}, maximum[2] = {MINUS_INFINITY, MINUS_INFINITY}, total[2] = {};
    u32 last = past + first + warp * 16 + lane / 4; // the last key that the lane's upper query sees; the lower sees eight more
    for (u32 tile = 0; tile < count; tile++) {
        await_copies<1>();
        __syncthreads();
        float score[8][4] = {};
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            u32 a[4], b[4];
            fragment(a, tiles.queries() + k / 4 * MMA_TILE_BYTES, warp * 16, k % 4 * 2);
#pragma unroll
            for (int j = 0; j < 8; j += 2) {
                fragment_pair(b, tiles.keys(tile) + k / 4 * MMA_TILE_BYTES, j * 8, k % 4 * 2);
                multiply(score[j], a, b[0], b[1]), multiply(score[j + 1], a, b[2], b[3]);
            }
        }
        if (tile * MMA_TILE + MMA_TILE - 1 > past + first + warp * 16) {
#pragma unroll
            for (int j = 0; j < 8; j++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (tile * MMA_TILE + j * 8 + lane % 4 * 2 + i % 2 > last + i / 2 * 8) score[j][i] = MINUS_INFINITY;
        }
        float fade[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float highest = maximum[half];
#pragma unroll
            for (int j = 0; j < 8; j++) highest = fmaxf(highest, fmaxf(score[j][half * 2], score[j][half * 2 + 1]));
            highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, 1));
            highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, 2));
            fade[half] = power_of_two((maximum[half] - highest) * scale); // the first key is seen by every query, so `highest` is finite
            maximum[half] = highest;
            float sum = 0, shift = -highest * scale;
#pragma unroll
            for (int j = 0; j < 8; j++)
#pragma unroll
                for (int i = half * 2; i < half * 2 + 2; i++) sum += score[j][i] = power_of_two(fmaf(score[j][i], scale, shift));
            total[half] = fmaf(total[half], fade[half], sum);
        }
#pragma unroll
        for (int j = 0; j < DEPTH * 2; j++) out[j][0] *= fade[0], out[j][1] *= fade[0], out[j][2] *= fade[1], out[j][3] *= fade[1];
        await_copies<0>();
        __syncthreads(); // the values are there, and the tile before this one is used by nobody any more
        if (tile + 1 < count) ask(tile + 1);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const float *even = score[k * 2], *odd = score[k * 2 + 1];
            u32 a[4] = {pack(even[0], even[1]), pack(even[2], even[3]), pack(odd[0], odd[1]), pack(odd[2], odd[3])};
            u32 rest[4] = {pack_rest(even[0], even[1], a[0]), pack_rest(even[2], even[3], a[1]), pack_rest(odd[0], odd[1], a[2]),
                           pack_rest(odd[2], odd[3], a[3])};
#pragma unroll
            for (int j = 0; j < DEPTH * 2; j += 2) {
                u32 b[4];
                load_matrices_transposed(b, tiles.values(tile) + j / 8 * MMA_TILE_BYTES + swizzled(k * 16 + lane % 16, j % 8 + lane / 16));
                multiply(out[j], a, b[0], b[1]), multiply(out[j + 1], a, b[2], b[3]);
                if (SPLIT) multiply(out[j], rest, b[0], b[1]), multiply(out[j + 1], rest, b[2], b[3]);
            }
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        total[half] += __shfl_xor_sync(ALL_LANES, total[half], 1);
        total[half] += __shfl_xor_sync(ALL_LANES, total[half], 2);
        float inverse = 1.0f / total[half];
        u32 row = first + warp * 16 + lane / 4 + half * 8;
#pragma unroll
        for (int j = 0; j < DEPTH * 2; j += 4) {
            u32 v[4];
#pragma unroll
            for (int i = 0; i < 4; i++) v[i] = pack(out[j + i][half * 2] * inverse, out[j + i][half * 2 + 1] * inverse);
            transpose(v);
            u32 channel = (j + lane % 4) * 8;
            if (row < s.time && channel < s.head_size)
                *reinterpret_cast<uint4 *>(y + u64(row) * channels + channel) = make_uint4(v[0], v[1], v[2], v[3]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(128, 1) attention_mma_bf16(bf16 *y, const bf16 *q, const bf16 *keys, const bf16 *values,
                                                                     const Cursor *cursor, CacheShape s) {
    attention_mma<1, true>(y, q, keys, values, cursor, s);
}
extern "C" __global__ void __launch_bounds__(128, 1) attention_mma_wide_bf16(bf16 *y, const bf16 *q, const bf16 *keys, const bf16 *values,
                                                                          const Cursor *cursor, CacheShape s) {
    attention_mma<2, true>(y, q, keys, values, cursor, s);
}
