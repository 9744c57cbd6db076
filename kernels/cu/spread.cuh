// Sums over the lanes of a warp, many at once.
#pragma once
#include "common.cuh"

__device__ constexpr u32 ceil_power(u32 n) { return n <= 1 ? 1 : 2 * ceil_power((n + 1) / 2); }

// After `spread_sum` of R values, lane l has the sum of value l % LANES<R>.
template <u32 R> constexpr u32 LANES = ceil_power(R);

// Two sums that every lane gets.
struct Moments {
    float sum, squares;

    __device__ void add_lane(int lanes) {
        float their_sum = __shfl_xor_sync(ALL_LANES, sum, lanes), their_squares = __shfl_xor_sync(ALL_LANES, squares, lanes);
        sum += their_sum, squares += their_squares;
    }
};
struct NoMoments {
    __device__ void add_lane(int) {}
};

// Halves the values that a lane holds by handing the other half to the lane R / 2 away, until one is left; the moments go along.
template <int R, typename M> __device__ float fold(const float (&values)[R], M &moments) {
    if constexpr (R == 1) {
        return values[0];
    } else {
        bool upper = threadIdx.x & R / 2;
        float half[R / 2];
#pragma unroll
        for (int i = 0; i < R / 2; i++) {
            float low = values[i], high = values[i + R / 2];
            half[i] = (upper ? high : low) + __shfl_xor_sync(ALL_LANES, upper ? low : high, R / 2);
        }
        moments.add_lane(R / 2);
        return fold(half, moments);
    }
}

// The sums over all lanes of R values a lane, and of the moments.
template <u32 R, typename M> __device__ float spread_sum(const float (&values)[R], M &moments) {
    float padded[LANES<R>];
#pragma unroll
    for (int i = 0; i < int(LANES<R>); i++) padded[i] = i < int(R) ? values[i] : 0.0f;
    float x = fold(padded, moments);
#pragma unroll
    for (int lanes = LANES<R>; lanes < WARP; lanes *= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, lanes);
        moments.add_lane(lanes);
    }
    return x;
}
template <u32 R> __device__ float spread_sum(const float (&values)[R]) {
    NoMoments none;
    return spread_sum(values, none);
}
