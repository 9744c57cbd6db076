// Eight rows of a weight times the columns of one warp.
//
// bf16: tensor cores. The weights of two steps of 16 columns are the A operand, one above the other: rows 0 to 7 the first, 8 to 15 the second. The
// input is B: for each of the two steps a column with its upper half, one with what that leaves, so that a product is as exact as with 16
// bits of mantissa, and, where a norm stands in front, its weight and bias. W norm(x) = scale (W (w x) - mean W w) + W b: so the row's statistics are
// needed at the very end only. float: lane l takes row l % 8 and four columns of every sixteen, and the same three sums.
#pragma once
#include "grid_ring.cuh"

// Input of bf16, as B takes it: for every step four kinds (upper halves, rests, the norm's weight and bias; of DOWN's the first, which is exact), and
// of each for t < 4 the pairs of columns 2t and 2t + 8. Input of float: the columns in order.

// Puts the two columns from the even column `c` on, counted from the warp's first.
__device__ inline void put2(char *input, u32 c, float low, float high) {
    u32 pair = pack(low, high);
    u32 *at = reinterpret_cast<u32 *>(input + c / STEP * STEP_BYTES + c % 8 * 4 + c % STEP / 8 * 4);
    at[0] = pair, at[KIND_BYTES / 4] = pack_rest(low, high, pair);
}

// Brings columns that lie in order at `from`, complete for the warp, into the input's form; a lane each t of a step.
__device__ inline void arrange(char *input, const float *from, u32 steps, u32 lane) {
    for (u32 i = lane; i < steps * 4; i += WARP) {
        const float *at = from + i / 4 * STEP + i % 4 * 2;
        float2 a = *reinterpret_cast<const float2 *>(at), b = *reinterpret_cast<const float2 *>(at + 8);
        u32 first = pack(a.x, a.y), second = pack(b.x, b.y);
        uint2 *to = reinterpret_cast<uint2 *>(input + i / 4 * STEP_BYTES) + i % 4;
        to[0] = make_uint2(first, second), to[KIND_BYTES / 8] = make_uint2(pack_rest(a.x, a.y, first), pack_rest(b.x, b.y, second));
    }
}
// The same for a norm's weight and bias, which are bf16: columns from `k` on.
__device__ inline void arrange_norm(char *input, const char *norm, u32 k, u32 steps, u32 lane) {
    for (u32 i = lane; i < steps * 8; i += WARP) {
        u32 kind = i / (steps * 4), place = i % (steps * 4);
        const char *at = norm + (kind * C + k + place / 4 * STEP + place % 4 * 2) * 2;
        u32 first = *reinterpret_cast<const u32 *>(at), second = *reinterpret_cast<const u32 *>(at + 16);
        reinterpret_cast<uint2 *>(input + place / 4 * STEP_BYTES + (2 + kind) * KIND_BYTES)[place % 4] = make_uint2(first, second);
    }
}

template <typename T> struct Tile;

template <> struct Tile<bf16> {
    typedef uint2 Weights; // of a step
    typedef uint2 Input;   // of two steps
    float4 sum = {0, 0, 0, 0};

    // The lane's share of the rows at `row`, its row the one at lane % 8, from column `k` on, for COUNT steps, 1 or 2.
    template <u32 COUNT> static __device__ void load(Weights *w, const char *row, u32 k, u32 lane) {
        u32 at = shared_address(row) + k * 2 + lane / 8 * 16;
        if constexpr (COUNT == 2)
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(w[0].x), "=r"(w[0].y), "=r"(w[1].x), "=r"(w[1].y) : "r"(at) : "memory");
        else
            asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(w[0].x), "=r"(w[0].y) : "r"(at) : "memory");
    }
    // Where a lane finds its part: B's column is lane / 4, of the second step from 4 on.
    struct Source {
        const char *at;
        u32 second; // bytes on, where there is a second step
    };
    template <Stage S> static __device__ Source source(const char *input, const char *, Slice, u32 lane) {
        if constexpr (S == DOWN) return {input + AT_WIDE_INPUT + lane % 4 * 8, lane / 16 * WIDE_STEP_BYTES};
        return {input + lane / 4 % 4 * KIND_BYTES + lane % 4 * 8, lane / 16 * STEP_BYTES};
    }
    template <Stage S> static __device__ Input input(const Source &source, u32 step, bool pair) {
        return *reinterpret_cast<const uint2 *>(source.at + step * (S == DOWN ? WIDE_STEP_BYTES : STEP_BYTES) + (pair ? source.second : 0));
    }
    template <Stage S> __device__ void add(const Input &in, const Weights *w, bool pair) {
        u32 below[2] = {pair ? w[1].x : 0, pair ? w[1].y : 0};
#if __CUDA_ARCH__ >= 800
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(sum.x), "+f"(sum.y), "+f"(sum.z), "+f"(sum.w)
            : "r"(w[0].x), "r"(below[0]), "r"(w[0].y), "r"(below[1]), "r"(in.x), "r"(in.y));
#endif
    }
    __device__ void join(const Tile &t) { sum.x += t.sum.x, sum.y += t.sum.y, sum.z += t.sum.z, sum.w += t.sum.w; }

    // Writes the warp's sums to partial[kind][row][warp]: kind 0 of the input, 1 of the norm's weight, 2 of its bias. A lane has two columns of row
    // lane / 4 in both halves of A, of which one is the product of what belongs together.
    template <Stage S, u32 KIND, u32 ROW> __device__ void store(float *partial, u32 lane) const {
        u32 t = lane % 4;
        float a = t < 2 ? sum.x : sum.z, b = t < 2 ? sum.y : sum.w;
        if (S != DOWN && t % 2 == 0) a += b;
        a += __shfl_xor_sync(ALL_LANES, a, 2);
        if (normed(S)) b += __shfl_xor_sync(ALL_LANES, b, 2);
        float *at = partial + lane / 4 * ROW;
        if (t < (normed(S) ? 2 : 1)) at[t * KIND] = a;
        if (normed(S) && t == 1) at[2 * KIND] = b;
    }
};

template <> struct Tile<float> {
    typedef float4 Weights;
    struct Input { // of two steps
        float4 x[2], weight[2], bias[2];
    };
    float x = 0, weight = 0, bias = 0;

    template <u32 COUNT> static __device__ void load(Weights *w, const char *row, u32 k, u32 lane) {
#pragma unroll
        for (u32 i = 0; i < COUNT; i++)
            w[i] = *reinterpret_cast<const float4 *>(row + (k + i * STEP + lane / 8 * 4) * 4);
    }
    struct Source {
        const char *x, *norm;
        u32 steps;
    };
    template <Stage S> static __device__ Source source(const char *input, const char *norm, Slice slice, u32 lane) {
        return {input + (S == DOWN ? AT_WIDE_INPUT : 0) + lane / 8 * 16, norm + (slice.first * STEP + lane / 8 * 4) * 4, slice.count};
    }
    template <Stage S> static __device__ Input input(const Source &source, u32 step, bool pair) {
        Input in = {};
#pragma unroll
        for (u32 i = 0; i < (pair ? 2 : 1); i++, step++) {
            in.x[i] = *reinterpret_cast<const float4 *>(source.x + step * STEP_BYTES);
            if (!normed(S) || (C / STEP % WARPS != 0 && step >= source.steps)) continue;
            in.weight[i] = *reinterpret_cast<const float4 *>(source.norm + step * STEP_BYTES);
            in.bias[i] = *reinterpret_cast<const float4 *>(source.norm + C * 4 + step * STEP_BYTES);
        }
        return in;
    }
    template <Stage S> __device__ void add(const Input &in, const Weights *w, bool pair) {
#pragma unroll
        for (u32 i = 0; i < (pair ? 2 : 1); i++) {
            x = dot4(in.x[i], w[i], x);
            if constexpr (normed(S)) weight = dot4(in.weight[i], w[i], weight), bias = dot4(in.bias[i], w[i], bias);
        }
    }
    __device__ void join(const Tile &t) { x += t.x, weight += t.weight, bias += t.bias; }
    static __device__ float across(float v) {
        v += __shfl_xor_sync(ALL_LANES, v, 8);
        return v + __shfl_xor_sync(ALL_LANES, v, 16);
    }
    template <Stage S, u32 KIND, u32 ROW> __device__ void store(float *partial, u32 lane) const {
        float a = across(x), b = normed(S) ? across(weight) : 0, c = normed(S) ? across(bias) : 0;
        if (lane >= TILE_ROWS) return;
        partial[lane * ROW] = a;
        if (normed(S)) partial[KIND + lane * ROW] = b, partial[2 * KIND + lane * ROW] = c;
    }
};
