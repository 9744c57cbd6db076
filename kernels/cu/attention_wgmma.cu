// Attention of many queries through Hopper's warpgroup products; as attention.cu says, in bfloat16, for heads of 64.
//
// A block of one warpgroup serves 64 queries of a head, its warps 16 each; the copy engine brings keys and values in tiles of 64 rows, two
// ahead. A running maximum and sum a query; scores and sums are float32. The weights of the values enter the tensor cores as two bfloat16
// halves, so that they are not rounded to one. Grid (blocks, B). The last queries see the most keys: blocks come in that order, but each
// second `wave` of them backwards, so that a multiprocessor that got a long one gets a short one next. Deterministic. Hopper alone.
// Launcher: src/attention.rs.
#include "attention_mma.cu"
#include "hopper.cuh"

template <bool SPLIT>
__device__ void attention_wgmma(bf16 *y, const TensorMap *q, const TensorMap *keys, const TensorMap *values, const Cursor *cursor,
                                CacheShape s, u32 wave) {
#if HOPPER
    constexpr u32 TILE_BYTES = 64 * 128;
    extern __shared__ char shared[];
    u32 base = (shared_address(shared) + 1023) / 1024 * 1024, barriers = base + 5 * TILE_BYTES;
    auto key_tile = [&](u32 tile) { return base + (1 + tile % 2) * TILE_BYTES; };
    auto value_tile = [&](u32 tile) { return base + (3 + tile % 2) * TILE_BYTES; };
    auto key_barrier = [&](u32 tile) { return barriers + tile % 2 * 8; };
    auto value_barrier = [&](u32 tile) { return barriers + 16 + tile % 2 * 8; };
    u32 start = blockIdx.x / wave * wave, length = min(wave, gridDim.x - start), place = blockIdx.x - start;
    u32 order = start + (blockIdx.x / wave % 2 ? length - 1 - place : place);
    u32 head = order % s.heads, first = (gridDim.x / s.heads - 1 - order / s.heads) * 64;
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, past = cursor[blockIdx.y].past;
    u32 seen = min(past + min(first + 64, s.time), s.context), count = (seen + 63) / 64;
    u32 cached = (blockIdx.y * s.heads + head) * s.context; // the head's first row in the cache
    release_next();
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < 4; i++) barrier_init(barriers + i * 8, 1);
        publish_barriers();
    }
    auto ask_keys = [&](u32 tile, u32 more) {
        barrier_expect(key_barrier(tile), TILE_BYTES + more);
        copy_box(key_tile(tile), keys, 0, cached + tile * 64, key_barrier(tile));
    };
    auto ask_values = [&](u32 tile) {
        barrier_expect(value_barrier(tile), TILE_BYTES);
        copy_box(value_tile(tile), values, 0, cached + tile * 64, value_barrier(tile));
    };
    await_previous();
    if (threadIdx.x == 0) {
        ask_keys(0, TILE_BYTES);
        copy_box(base, q, head * 64, blockIdx.y * s.time + first, key_barrier(0));
        ask_values(0);
        if (count > 1) ask_keys(1, 0), ask_values(1);
    }
    __syncthreads();
    float scale = 1.44269504088896341f / 8; // scores are exponents of two
    float out[32] = {}, maximum[2] = {MINUS_INFINITY, MINUS_INFINITY}, total[2] = {};
    u32 last = past + first + warp * 16 + lane / 4; // the last key that the lane's upper query sees; the lower sees eight more
    for (u32 tile = 0; tile < count; tile++) {
        u32 parity = tile / 2 & 1;
        float score[32] = {};
        settle(score); // it is zero before the first product
        barrier_await(key_barrier(tile), parity);
        open_products();
#pragma unroll
        for (u32 k = 0; k < 4; k++) Warpgroup<64>::multiply(score, operand(base) + k * 2, operand(key_tile(tile)) + k * 2);
        commit_products();
        await_products<0>();
        settle(score);
        if (tile * 64 + 63 > past + first + warp * 16) {
#pragma unroll
            for (int i = 0; i < 32; i++)
                if (tile * 64 + i / 4 * 8 + lane % 4 * 2 + i % 2 > last + i / 2 % 2 * 8) score[i] = MINUS_INFINITY;
        }
        u32 whole[16], rest[16];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float highest = maximum[half];
#pragma unroll
            for (int j = 0; j < 32; j += 4) highest = fmaxf(highest, fmaxf(score[j + half * 2], score[j + half * 2 + 1]));
            highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, 1));
            highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, 2));
            float fade = power((maximum[half] - highest) * scale); // the first key is seen by every query, so `highest` is finite
            maximum[half] = highest;
            float sum[2] = {}, shift = -highest * scale;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float a = power(fmaf(score[j * 4 + half * 2], scale, shift)), b = power(fmaf(score[j * 4 + half * 2 + 1], scale, shift));
                sum[0] += a, sum[1] += b;
                whole[j * 2 + half] = pack(a, b);
                if (SPLIT) rest[j * 2 + half] = pack_rest(a, b, whole[j * 2 + half]);
            }
            total[half] = fmaf(total[half], fade, sum[0] + sum[1]);
#pragma unroll
            for (int j = 0; j < 32; j += 4) out[j + half * 2] *= fade, out[j + half * 2 + 1] *= fade;
        }
        barrier_await(value_barrier(tile), parity);
        if (tile * 64 + 64 > seen) { // what lies behind the rows that are seen may be no number
            for (u32 i = (seen - tile * 64) * 8 + threadIdx.x; i < 64 * 8; i += 128)
                reinterpret_cast<uint4 *>(shared + (value_tile(tile) - shared_address(shared)))[i] = make_uint4(0, 0, 0, 0);
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            __syncthreads();
        }
        open_products();
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
            u32 a[4] = {whole[k * 4], whole[k * 4 + 1], whole[k * 4 + 2], whole[k * 4 + 3]};
            multiply_rows(out, a, operand(value_tile(tile)) + k * 128);
        }
        if (SPLIT) {
#pragma unroll
            for (u32 k = 0; k < 4; k++) {
                u32 a[4] = {rest[k * 4], rest[k * 4 + 1], rest[k * 4 + 2], rest[k * 4 + 3]};
                multiply_rows(out, a, operand(value_tile(tile)) + k * 128);
            }
        }
        commit_products();
        await_products<0>();
        settle(out);
        __syncthreads(); // all warps are done with the tile
        if (threadIdx.x == 0 && tile + 2 < count) ask_keys(tile + 2, 0), ask_values(tile + 2);
    }
    u32 channels = s.heads * 64;
    y += (u64(blockIdx.y) * s.time + first) * channels + head * 64;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        total[half] += __shfl_xor_sync(ALL_LANES, total[half], 1);
        total[half] += __shfl_xor_sync(ALL_LANES, total[half], 2);
        float inverse = 1.0f / total[half];
        u32 row = warp * 16 + lane / 4 + half * 8;
#pragma unroll
        for (int j = 0; j < 8; j += 4) {
            u32 v[4];
#pragma unroll
            for (int i = 0; i < 4; i++) v[i] = pack(out[(j + i) * 4 + half * 2] * inverse, out[(j + i) * 4 + half * 2 + 1] * inverse);
            transpose(v);
            if (first + row < s.time)
                *reinterpret_cast<uint4 *>(y + u64(row) * channels + (j + lane % 4) * 8) = make_uint4(v[0], v[1], v[2], v[3]);
        }
    }
#endif
}

extern "C" __global__ void __launch_bounds__(128, 4) attention_wgmma_bf16(const __grid_constant__ TensorMap q,
                                                                          const __grid_constant__ TensorMap keys,
                                                                          const __grid_constant__ TensorMap values, bf16 *y,
                                                                          const Cursor *cursor, CacheShape s, u32 wave) {
    attention_wgmma<true>(y, &q, &keys, &values, cursor, s, wave);
}
