// Eight rows of a weight times the columns of one warp.
//
// bf16: tensor cores, weights as the B operand (eight rows, 16 columns), the input as row 0 (its upper half) and row 8 (what that leaves) of A, so
// that a product is as exact as with 16 bits of mantissa. Where a norm stands in front, its weight and bias are rows 1 and 2:
// W norm(x) = scale (W (w x) - mean W w) + W b, so that the row's statistics are needed at the very end only. float: lane l takes row l % 8
// and four columns of every sixteen, and the same three sums.
#pragma once
#include "grid_ring.cuh"

// Input of bf16, as A takes it: for every step and t < 4 the pairs of columns 2t and 2t + 8, each followed by what rounding left (of DOWN's there is
// none, nor room). A norm's weight and bias follow in the same form, and 16 bytes of zero. Input of float: the columns in order.

// Puts the two columns from the even column `c` on, counted from the warp's first.
template <Stage S> __device__ void put2(char *input, u32 c, float low, float high) {
    if constexpr (!HALF) {
        reinterpret_cast<float *>(input)[c] = low, reinterpret_cast<float *>(input)[c + 1] = high;
    } else if constexpr (S == DOWN) {
        *reinterpret_cast<u32 *>(input + c / STEP * 32 + c % 8 / 2 * 8 + c % STEP / 8 * 4) = pack(low, high);
    } else {
        u32 pair = pack(low, high);
        *reinterpret_cast<uint2 *>(input + c / STEP * 64 + c % 8 / 2 * 16 + c % STEP / 8 * 8) = make_uint2(pair, pack_rest(low, high, pair));
    }
}

// Brings columns that lie in order at `from`, complete for the warp, into the input's form; a lane each t of a step.
__device__ inline void arrange(char *input, const float *from, u32 steps, u32 lane) {
    for (u32 i = lane; i < steps * 4; i += WARP) {
        const float *at = from + i / 4 * STEP + i % 4 * 2;
        float2 a = *reinterpret_cast<const float2 *>(at), b = *reinterpret_cast<const float2 *>(at + 8);
        u32 first = pack(a.x, a.y), second = pack(b.x, b.y);
        *reinterpret_cast<uint4 *>(input + i * 16) = make_uint4(first, pack_rest(a.x, a.y, first), second, pack_rest(b.x, b.y, second));
    }
}
// The same for a norm's weight and bias, which are bf16: columns from `k` on.
__device__ inline void arrange_norm(char *input, const char *norm, u32 k, u32 steps, u32 lane) {
    for (u32 i = lane; i < steps * 8; i += WARP) {
        u32 kind = i / (steps * 4), place = i % (steps * 4);
        const char *at = norm + (kind * C + k + place / 4 * STEP + place % 4 * 2) * 2;
        u32 first = *reinterpret_cast<const u32 *>(at), second = *reinterpret_cast<const u32 *>(at + 16);
        *reinterpret_cast<uint4 *>(input + (1 + kind) * KIND_BYTES + place * 16) = make_uint4(first, 0, second, 0);
    }
}

template <typename T> struct Tile;

template <> struct Tile<bf16> {
    typedef uint2 Weights; // of a step
    typedef uint4 Input;
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
    // Where a lane finds its part of every step, and how far apart: rows 0 to 2 of A are the lanes below 12, the others are zero.
    struct Source {
        const char *at;
        u32 apart;
    };
    template <Stage S> static __device__ Source source(const char *input, const char *, Slice, u32 lane) {
        if constexpr (S == DOWN) return {lane < 4 ? input + AT_WIDE_INPUT + lane * 8 : input + (AT_WIDE_INPUT - STEP_BYTES), lane < 4 ? 32u : 0u};
        bool used = lane < 4 * kinds(S);
        return {used ? input + lane / 4 * KIND_BYTES + lane % 4 * 16 : input + (AT_WIDE_INPUT - STEP_BYTES), used ? 64u : 0u};
    }
    template <Stage S> static __device__ Input input(const Source &source, u32 step) {
        const char *at = source.at + step * source.apart;
        if constexpr (S != DOWN) return *reinterpret_cast<const uint4 *>(at);
        uint2 pairs = *reinterpret_cast<const uint2 *>(at);
        return make_uint4(pairs.x, 0, pairs.y, 0);
    }
    template <Stage S> __device__ void add(const Input &a, const Weights &w) {
#if __CUDA_ARCH__ >= 800
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(sum.x), "+f"(sum.y), "+f"(sum.z), "+f"(sum.w)
            : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(w.x), "r"(w.y));
#endif
    }
    __device__ void join(const Tile &t) { sum.x += t.sum.x, sum.y += t.sum.y, sum.z += t.sum.z, sum.w += t.sum.w; }

    // Writes the warp's sums to partial[kind][row][warp]: kind 0 of the input, 1 of the norm's weight, 2 of its bias.
    template <Stage S, u32 KIND, u32 ROW> __device__ void store(float *partial, u32 lane) const {
        if (lane >= (normed(S) ? 12 : 4)) return;
        float *at = partial + lane / 4 * KIND + lane % 4 * 2 * ROW;
        at[0] = lane < 4 ? sum.x + sum.z : sum.x;
        at[ROW] = lane < 4 ? sum.y + sum.w : sum.y;
    }
};

template <> struct Tile<float> {
    typedef float4 Weights;
    struct Input {
        float4 x, weight, bias;
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
    template <Stage S> static __device__ Input input(const Source &source, u32 step) {
        Input in = {};
        in.x = *reinterpret_cast<const float4 *>(source.x + step * STEP_BYTES);
        if (normed(S) && (C / STEP % WARPS == 0 || step < source.steps)) {
            in.weight = *reinterpret_cast<const float4 *>(source.norm + step * STEP_BYTES);
            in.bias = *reinterpret_cast<const float4 *>(source.norm + C * 4 + step * STEP_BYTES);
        }
        return in;
    }
    template <Stage S> __device__ void add(const Input &in, const Weights &w) {
        x = dot4(in.x, w, x);
        if constexpr (normed(S)) weight = dot4(in.weight, w, weight), bias = dot4(in.bias, w, bias);
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
