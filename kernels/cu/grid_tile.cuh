// Eight rows of a weight times the columns of one warp, in groups of 64 bytes of a row: lane l takes vector l % 4 of the group of row l / 4.
//
// bf16: tensor cores. A lane's vector is eight columns; the rows' first four are the upper half of the A operand, the last four the lower half. The
// input is B: for either half a column with its upper half, one with what that leaves, so that a product is as exact as with 16
// bits of mantissa, and, where a norm stands in front, its weight and bias. W norm(x) = scale (W (w x) - mean W w) + W b: so the row's statistics are
// needed at the very end only. float: the same three sums.
#pragma once
#include "grid_ring.cuh"

// Puts the two columns from the even column `c` on, counted from the warp's first.
__device__ inline void put2(char *input, u32 c, float low, float high) {
    u32 pair = pack(low, high);
    *reinterpret_cast<u32 *>(input + c * 2) = pair;
    *reinterpret_cast<u32 *>(input + AT_REST + c * 2) = pack_rest(low, high, pair);
}

// The lane's vector of a group of its row, `row`.
template <Stage S> __device__ uint4 load_vector(const char *row, u32 group, u32 lane) {
    u32 at = group * GROUP_BYTES + lane % 4 * 16;
    if (inputs(S) % GROUP != 0 && at >= inputs(S) * sizeof(Element)) return make_uint4(0, 0, 0, 0);
    return *reinterpret_cast<const uint4 *>(row + at);
}

template <typename T> struct Tile;

template <> struct Tile<bf16> {
    float4 sum = {0, 0, 0, 0};

    // The input of all groups, in registers where there is room. B's column is lane / 4: of the lower half from 4 on.
    template <Stage S> struct Inputs {
        static constexpr u32 GROUPS = groups_max(inputs(S));
        static constexpr bool HELD = GROUPS <= 28;
        const char *at;
        u32 from, to; // columns of the lane's first vector, and beyond the last
        uint2 part[HELD ? GROUPS : 1];

        __device__ Inputs(const char *input, const char *norm, Slice slice, u32 lane) : from(slice.from + lane % 4 * 8), to(slice.to) {
            u32 kind = lane / 4 % (normed(S) ? 4 : S == DOWN ? 1 : 2);
            at = kind < 2 ? input + (S == DOWN ? AT_WIDE_INPUT : kind * AT_REST) : norm + ((kind - 2) * C + slice.from) * 2;
            at += lane % 4 * 16 + lane / 16 * 8;
#pragma unroll
            for (u32 g = 0; HELD && g < GROUPS; g++) part[g] = load(g);
        }
        __device__ uint2 load(u32 group) const {
            bool inside = inputs(S) % (WARPS * GROUP) == 0 || from + group * GROUP < to;
            return inside ? *reinterpret_cast<const uint2 *>(at + group * GROUP_BYTES) : make_uint2(0, 0);
        }
    };
    template <Stage S> __device__ void add(const Inputs<S> &in, u32 group, const uint4 &w) {
#if __CUDA_ARCH__ >= 800
        uint2 x = Inputs<S>::HELD ? in.part[group] : in.load(group);
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(sum.x), "+f"(sum.y), "+f"(sum.z), "+f"(sum.w)
            : "r"(w.x), "r"(w.z), "r"(w.y), "r"(w.w), "r"(x.x), "r"(x.y));
#endif
    }
    // Always, and only once the sums are there: none is that NaN.
    __device__ bool is_made() const { return __float_as_uint(sum.x) != ALL_LANES; }
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
    float x = 0, weight = 0, bias = 0;

    template <Stage S> struct Inputs {
        const char *x, *norm;
        u32 groups;

        __device__ Inputs(const char *input, const char *norm, Slice slice, u32 lane)
            : x(input + (S == DOWN ? AT_WIDE_INPUT : 0) + lane % 4 * 16), norm(norm + slice.from * 4 + lane % 4 * 16), groups(slice.count) {}
    };
    __device__ static float dot(const char *at, const uint4 &w, float sum) {
        float4 x = make_float4(__uint_as_float(w.x), __uint_as_float(w.y), __uint_as_float(w.z), __uint_as_float(w.w));
        return dot4(*reinterpret_cast<const float4 *>(at), x, sum);
    }
    template <Stage S> __device__ void add(const Inputs<S> &in, u32 group, const uint4 &w) {
        x = dot(in.x + group * GROUP_BYTES, w, x);
        if constexpr (normed(S)) {
            if (inputs(S) % (WARPS * GROUP) != 0 && group >= in.groups) return;
            weight = dot(in.norm + group * GROUP_BYTES, w, weight), bias = dot(in.norm + C * 4 + group * GROUP_BYTES, w, bias);
        }
    }
    __device__ bool is_made() const { return __float_as_uint(x) != ALL_LANES; }
    __device__ void join(const Tile &t) { x += t.x, weight += t.weight, bias += t.bias; }
    static __device__ float across(float v) {
        v += __shfl_xor_sync(ALL_LANES, v, 1);
        return v + __shfl_xor_sync(ALL_LANES, v, 2);
    }
    template <Stage S, u32 KIND, u32 ROW> __device__ void store(float *partial, u32 lane) const {
        float a = across(x), b = normed(S) ? across(weight) : 0, c = normed(S) ? across(bias) : 0;
        if (lane % 4 != 0) return;
        partial += lane / 4 * ROW;
        partial[0] = a;
        if (normed(S)) partial[KIND] = b, partial[2 * KIND] = c;
    }
};
