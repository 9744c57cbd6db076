// What every kernel shares: the two element types, warp and block reductions, and the hand-over between launches.
//
// No header of the toolkit is included: NVRTC then needs nothing but itself.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;
#define MINUS_INFINITY __int_as_float(0xff800000)
#define NOT_A_NUMBER __int_as_float(0x7fffffff)

// bfloat16: the upper half of a float32, rounded to nearest even.
struct __align__(2) bf16 {
    u16 bits;
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

template <typename T> __device__ T from_float(float x);
template <> __device__ inline float from_float<float>(float x) { return x; }
template <> __device__ inline bf16 from_float<bf16>(float x) {
#if __CUDA_ARCH__ >= 800
    // A pair of them is rounded faster than one.
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(0.0f), "f"(x));
    return bf16{u16(both)};
#else
    u32 bits = __float_as_uint(x);
    // A NaN must not be rounded up into an infinity.
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16{u16(0x7fff)};
    return bf16{u16((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
#endif
}

// Two floats, rounded to nearest even; `low` comes first in memory.
__device__ inline u32 pack(float low, float high) {
#if __CUDA_ARCH__ >= 800
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
#else
    return from_float<bf16>(low).bits | u32(from_float<bf16>(high).bits) << 16;
#endif
}

// Four consecutive elements as float32. The address must be aligned to four elements.
__device__ inline float4 load4(const float *p) { return *reinterpret_cast<const float4 *>(p); }
__device__ inline float4 unpack4(uint2 raw) {
    return make_float4(__uint_as_float(raw.x << 16), __uint_as_float(raw.x & 0xffff0000u),
                       __uint_as_float(raw.y << 16), __uint_as_float(raw.y & 0xffff0000u));
}
__device__ inline float4 load4(const bf16 *p) { return unpack4(*reinterpret_cast<const uint2 *>(p)); }

// Four elements as they are stored: a load alone, so that many can be in flight; the conversion comes with the use.
template <typename T> struct Four;
template <> struct Four<float> {
    float4 raw;
    __device__ float4 values() const { return raw; }
};
template <> struct Four<bf16> {
    uint2 raw;
    __device__ float4 values() const { return unpack4(raw); }
};
__device__ inline float dot4(float4 a, float4 b, float sum) {
    return fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, fmaf(a.w, b.w, sum))));
}

// Whether rows of `columns` elements all start on a boundary of four elements.
__device__ inline bool rows_of_four(u32 columns) { return columns % 4 == 0; }

template <typename V> __device__ V warp_sum(V x) {
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(ALL_LANES, x, lanes);
    return x;
}

__device__ inline float warp_max(float x) {
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, lanes));
    return x;
}

// Programmatic dependent launch (Hopper and later; elsewhere, and for an ordinary launch, both are nothing).
//
// `await_previous` returns once the previous kernel of the stream has finished and its writes are visible: everything before
// it may only touch what no earlier kernel writes, such as weights. `release_next` lets the next kernel start up to its own
// `await_previous`. Every kernel calls both.
__device__ inline void await_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ inline void release_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// 2^x, to about 1e-7 of it; what is too small for a normal number is 0.
__device__ inline float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Where a sequence stands; there is one for each sequence of the batch. `past` cached positions, `step` tokens sampled so far, `length`
// positions of this pass that are the sequence's own, the first ones: what is behind them is padding, computed and never looked at.
// Changed at the end of a pass only.
struct Cursor {
    u32 past, step, length;
};
static_assert(sizeof(Cursor) == 12, "cursors are written from Rust");

// The row of [B, T] that row `row` of an output is made from: the same, or with cursors the last that sequence `row` has of its own.
__device__ inline u32 source_row(const Cursor *cursor, u32 time, u32 row) {
    return cursor == nullptr ? row : row * time + cursor[row].length - 1;
}
