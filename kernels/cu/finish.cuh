// What becomes of a matrix product's sums: bias, activation or residual addition, and the place they go to.
//
// A Finish takes the sums as fragments of tensor.cuh: lane l of a warp holds of each 16 x 8 tile rows l / 4 and l / 4 + 8, columns l % 4 * 2
// and the next. Results in bfloat16 change lanes first, so that each stores 16 bytes. Outputs are a multiple of eight.
#pragma once
#include "append.cu"
#include "linear.cu"
#include "tensor.cuh"

// gelu in few instructions: half of erfc(|x| / sqrt 2) is exp(-x^2 / 2) times a polynomial in 1 / (1 + 0.3 |x|), within a relative error of
// 1e-5 down to x = -15, of which rounding to bfloat16 is 200 times as much.
__device__ inline float gelu_rounded(float x) {
    float t, e;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(t) : "f"(fmaf(0.3f, fabsf(x), 1.0f)));
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * x * -0.72134752044448170f));
    float tail = fmaf(-0.0763256563f, t, 0.2137281021f);
    tail = fmaf(tail, t, -0.0143266344f);
    tail = fmaf(tail, t, 0.1427956880f);
    tail = fmaf(tail, t, 0.1140913617f);
    tail = fmaf(tail, t, 0.1200418901f) * (t * e);
    return fmaf(-fabsf(x), tail, fmaxf(x, 0.0f));
}

__device__ inline void swap_lanes(u32 (&v)[4], int i, int j, u32 lanes) {
    bool odd = threadIdx.x & lanes;
    u32 kept = odd ? v[j] : v[i], got = __shfl_xor_sync(ALL_LANES, odd ? v[i] : v[j], lanes);
    v[i] = odd ? got : kept, v[j] = odd ? kept : got;
}
// Among each four lanes, value i of lane q becomes value q of lane i.
__device__ inline void transpose(u32 (&v)[4]) {
    swap_lanes(v, 0, 1, 1), swap_lanes(v, 2, 3, 1);
    swap_lanes(v, 0, 2, 2), swap_lanes(v, 1, 3, 2);
}

// Two neighbours of a vector, zeros where there is none.
__device__ inline float2 load2(const bf16 *p, u32 i, u32 len) {
    u32 both = p != nullptr && i < len ? *reinterpret_cast<const u32 *>(p + i) : 0;
    return make_float2(__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u));
}

// y = sum + bias in bfloat16, or gelu of that. The bias may be null.
template <bool GELU> struct Dense {
    bf16 *y;
    const bf16 *bias;
    u32 rows, outputs;

    __device__ u32 value(const float *sum, float2 shift) const {
        float2 v = make_float2(sum[0] + shift.x, sum[1] + shift.y);
        return GELU ? pack(gelu_rounded(v.x), gelu_rounded(v.y)) : pack(v.x, v.y);
    }
    __device__ float2 shift(u32 column) const { return load2(bias, column, outputs); }
    __device__ bf16 *place(u32 row, u32 column) const {
        return row < rows && column < outputs ? y + u64(row) * outputs + column : nullptr;
    }
};

// q, keys or values: q [B, T, C] as it is, the others into the cache [B, H, P, D] behind what is there; positions past P are dropped.
struct Append {
    bf16 *y;
    bool cached;
    const Cursor *cursor;
    CacheShape s;

    __device__ u32 value(const float *sum, float2) const { return pack(sum[0], sum[1]); }
    __device__ float2 shift(u32) const { return make_float2(0, 0); }
    __device__ bf16 *place(u32 row, u32 column) const {
        u32 channels = s.heads * s.head_size;
        if (row >= s.batch * s.time || column >= channels) return nullptr;
        if (!cached) return y + u64(row) * channels + column;
        u32 sequence = row / s.time, position = cursor[sequence].past + row % s.time;
        u64 head = u64(sequence) * s.heads + column / s.head_size;
        return position < s.context ? y + (head * s.context + position) * s.head_size + column % s.head_size : nullptr;
    }
};

// Stores TILES tiles of a warp's 16 rows from `row` on, columns from `column` on.
template <int TILES, typename Finish> __device__ void finish(const Finish &f, const float *sum, u32 row, u32 column) {
    u32 lane = threadIdx.x % WARP, quad = lane % 4;
    row += lane / 4;
#pragma unroll
    for (int j = 0; j + 4 <= TILES; j += 4) {
        u32 top[4], bottom[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float2 shift = f.shift(column + (j + i) * 8 + quad * 2);
            top[i] = f.value(sum + (j + i) * 4, shift), bottom[i] = f.value(sum + (j + i) * 4 + 2, shift);
        }
        transpose(top), transpose(bottom);
        u32 own = column + (j + quad) * 8;
        if (bf16 *y = f.place(row, own)) *reinterpret_cast<uint4 *>(y) = make_uint4(top[0], top[1], top[2], top[3]);
        if (bf16 *y = f.place(row + 8, own))
            *reinterpret_cast<uint4 *>(y) = make_uint4(bottom[0], bottom[1], bottom[2], bottom[3]);
    }
#pragma unroll
    for (int j = TILES / 4 * 4; j < TILES; j++) {
        u32 own = column + j * 8 + quad * 2;
        float2 shift = f.shift(own);
        if (bf16 *y = f.place(row, own)) *reinterpret_cast<u32 *>(y) = f.value(sum + j * 4, shift);
        if (bf16 *y = f.place(row + 8, own)) *reinterpret_cast<u32 *>(y) = f.value(sum + j * 4 + 2, shift);
    }
}

// y += sum + bias in float32.
struct Residual {
    float *y;
    const bf16 *bias;
    u32 rows, outputs;
};
// What of y the sums of TILES tiles are added to. It is read as a whole: a store might be to what the next load reads, for all that the
// compiler knows.
template <int TILES> struct Addends {
    float2 top[TILES], bottom[TILES];
    __device__ Addends(const Residual &f, u32 row, u32 column) {
        row += threadIdx.x % WARP / 4, column += threadIdx.x % 4 * 2;
        const float *y = f.y + u64(row) * f.outputs + column, *below = y + 8 * u64(f.outputs);
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            if (column + j * 8 >= f.outputs) continue;
            if (row < f.rows) top[j] = *reinterpret_cast<const float2 *>(y + j * 8);
            if (row + 8 < f.rows) bottom[j] = *reinterpret_cast<const float2 *>(below + j * 8);
        }
    }
};
template <int TILES> __device__ void finish(const Residual &f, const Addends<TILES> &to, const float *sum, u32 row, u32 column) {
    row += threadIdx.x % WARP / 4, column += threadIdx.x % 4 * 2;
    float *y = f.y + u64(row) * f.outputs + column, *below = y + 8 * u64(f.outputs);
#pragma unroll
    for (int j = 0; j < TILES; j++) {
        if (column + j * 8 >= f.outputs) continue;
        float2 shift = load2(f.bias, column + j * 8, f.outputs), a = to.top[j], b = to.bottom[j];
        const float *s = sum + j * 4;
        if (row < f.rows) *reinterpret_cast<float2 *>(y + j * 8) = make_float2(a.x + (s[0] + shift.x), a.y + (s[1] + shift.y));
        if (row + 8 < f.rows) *reinterpret_cast<float2 *>(below + j * 8) = make_float2(b.x + (s[2] + shift.x), b.y + (s[3] + shift.y));
    }
}
template <int TILES> __device__ void finish(const Residual &f, const float *sum, u32 row, u32 column) {
    finish(f, Addends<TILES>(f, row, column), sum, row, column);
}

// What a Finish may read before the sums are there: the addends, or nothing.
struct Nothing {};
template <int TILES> __device__ Addends<TILES> read_ahead(const Residual &f, u32 row, u32 column) { return {f, row, column}; }
template <int TILES, typename Finish> __device__ Nothing read_ahead(const Finish &, u32, u32) { return {}; }
template <int TILES, typename Finish> __device__ void finish(const Finish &f, Nothing, const float *sum, u32 row, u32 column) {
    finish<TILES>(f, sum, row, column);
}
