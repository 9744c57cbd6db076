// Eight rows of a weight times the columns of one warp.
//
// bf16: tensor cores, weights as the B operand (eight rows, 16 columns), the input as row 0 (its upper half) and row 8 (what that leaves) of A, so
// that a product is as exact as with 16 bits of mantissa. Where a norm stands in front, its weight and bias are rows 1 and 2:
// W norm(x) = scale (W (w x) - mean W w) + W b, so that the row's statistics are needed at the very end only. float: lane l takes row l % 8
// and four columns of every sixteen, and the same three sums.
#pragma once
#include "grid_ring.cuh"

constexpr u32 TILE_ROWS = 8;

// What a warp has of a word of input: bytes of its part of shared memory for a step of 16 columns. The input of DOWN is exact in bf16.
__device__ constexpr u32 step_bytes(Stage s) { return HALF && s == DOWN ? 32 : 64; }

// Puts the value of column `c`, counted from the warp's first, into its place. All columns are put before any is read.
template <Stage S> __device__ void put(char *input, u32 c, float value) {
    if constexpr (HALF) {
        char *at = input + c / STEP * 64 + c % 8 / 2 * 16 + c % STEP / 8 * 8 + c % 2 * 2;
        bf16 high = from_float<bf16>(value);
        *reinterpret_cast<bf16 *>(at) = high;
        *reinterpret_cast<bf16 *>(at + 4) = from_float<bf16>(value - to_float(high));
    } else {
        reinterpret_cast<float *>(input)[c] = value;
    }
}
// Two columns from the even column `c` on.
template <Stage S> __device__ void put2(char *input, u32 c, float low, float high) {
    if constexpr (HALF) {
        bf16 a = from_float<bf16>(low), b = from_float<bf16>(high);
        u32 pair = u32(b.bits) << 16 | a.bits;
        if constexpr (S == DOWN) {
            *reinterpret_cast<u32 *>(input + c / STEP * 32 + c % 8 / 2 * 8 + c % STEP / 8 * 4) = pair;
        } else {
            bf16 c2 = from_float<bf16>(low - to_float(a)), d2 = from_float<bf16>(high - to_float(b));
            *reinterpret_cast<uint2 *>(input + c / STEP * 64 + c % 8 / 2 * 16 + c % STEP / 8 * 8) = make_uint2(pair, u32(d2.bits) << 16 | c2.bits);
        }
    } else {
        reinterpret_cast<float *>(input)[c] = low, reinterpret_cast<float *>(input)[c + 1] = high;
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
    template <Stage S> static __device__ Input input(const char *input, const char *norm, u32 k, u32 step, u32 lane) {
        uint4 a = make_uint4(0, 0, 0, 0);
        if (lane < 4) {
            if constexpr (S == DOWN) {
                uint2 pairs = *reinterpret_cast<const uint2 *>(input + step * 32 + lane * 8);
                a.x = pairs.x, a.z = pairs.y;
            } else {
                a = *reinterpret_cast<const uint4 *>(input + step * 64 + lane * 16);
            }
        } else if (normed(S) && lane < 12) {
            const char *at = norm + ((lane / 8) * C + k + lane % 4 * 2) * 2;
            a.x = *reinterpret_cast<const u32 *>(at), a.z = *reinterpret_cast<const u32 *>(at + 16);
        }
        // The order of A's registers: rows 0 and 8 of the first eight columns, then of the others.
        return a;
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
    template <Stage S> static __device__ Input input(const char *input, const char *norm, u32 k, u32 step, u32 lane) {
        u32 column = lane / 8 * 4;
        Input in = {};
        in.x = *reinterpret_cast<const float4 *>(input + (step * STEP + column) * 4);
        if constexpr (normed(S)) {
            in.weight = *reinterpret_cast<const float4 *>(norm + (k + column) * 4);
            in.bias = *reinterpret_cast<const float4 *>(norm + (C + k + column) * 4);
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
