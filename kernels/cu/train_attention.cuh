// Attention of decode_train.cu: a block's share of the keys and values of its head, and softmax over them, on tensor cores.
//
// Sixteen keys are the rows of the 16 x 16 operand; sixteen channels of their values, transposed, those of the next. q and the weights of the values
// are the other one's columns: what they are in bfloat16 in the even ones, what that leaves of them in the odd ones, so that nothing is lost.
#pragma once
#include "train_product.cuh"

// Where 16 bytes of a row of keys or values lie: eight rows spread over all banks.
__device__ inline u32 key_place(u32 row, u32 piece) {
    constexpr u32 PIECES = D / 8;
    return row * D * sizeof(Element) + (piece ^ (PIECES == 8 ? row : row / 2) % PIECES) * 16;
}
// Where channel `channel` of position `position` of its part lies, behind Shared: of its key, or KEY_BYTES behind that of its value.
__device__ inline u32 cached_place(u32 position, u32 channel) {
    return KEYS_START + position / (S * BLOCK_KEYS) * 2 * KEY_BYTES + key_place(position % BLOCK_KEYS, channel / 8) + channel % 8 * sizeof(Element);
}

// A number as two in bfloat16, the second what the first leaves of it, in one word; and pairs of neighbours of either kind, for the even columns and
// for the odd ones: a lane has a column.
__device__ inline u32 pair_of(u32 first, u32 second) { return __byte_perm(first, second, threadIdx.x / 4 % 2 ? 0x7632 : 0x5410); }
__device__ inline uint2 split(float a, float b) {
    u32 high = pack(a, b), low = pack(a - __uint_as_float(high << 16), b - __uint_as_float(high & 0xffff0000u));
    return make_uint2(__byte_perm(high, low, 0x5410), __byte_perm(high, low, 0x7632));
}

// A warp's sixteen keys of a round, and their values.
struct Keys {
    static constexpr u32 STEPS = D / 16;
    u32 key[STEPS][4], value[STEPS][4];

    __device__ void load(const Shared &s, u32 round) {
        const char *keys = reinterpret_cast<const char *>(&s) + KEYS_START + round * 2 * KEY_BYTES;
        u32 lane = threadIdx.x % WARP, first = threadIdx.x / WARP * KEYS, values = shared_address(keys + KEY_BYTES);
#pragma unroll
        for (int i = 0; i < int(STEPS / 2); i++) {
            auto row = [&](u32 r) { return *reinterpret_cast<const uint4 *>(keys + key_place(first + r, lane % 4 * (STEPS / 2) + i)); };
            uint4 low = row(lane / 4), high = row(lane / 4 + 8);
            set(key[2 * i], low.x, high.x, low.y, high.y), set(key[2 * i + 1], low.z, high.z, low.w, high.w);
        }
#pragma unroll
        for (int i = 0; i < int(STEPS); i++)
            load_matrices_transposed(value[i], values + key_place(first + lane / 16 * 8 + lane % 8, 2 * i + lane / 8 % 2));
    }
    static __device__ void set(u32 (&to)[4], u32 a, u32 b, u32 c, u32 d) { to[0] = a, to[1] = b, to[2] = c, to[3] = d; }
};

// The query, ahead of its keys.
struct Query {
    uint2 step[Keys::STEPS];

    __device__ Query(const Shared &s) {
#pragma unroll
        for (int i = 0; i < int(Keys::STEPS); i++) {
            uint4 x = *reinterpret_cast<const uint4 *>(s.q + threadIdx.x % 4 * (D / 4) + 4 * i);
            step[i] = make_uint2(pair_of(x.x, x.y), pair_of(x.z, x.w));
        }
    }
};

// Leaves softmax(q . keys) values of the warp's keys of COUNT rounds, up to position `past`: the first is at `first`.
template <u32 COUNT> __device__ void attend(Shared &s, const Query &q, const Keys (&keys)[ROUNDS], u32 first, u32 past) {
    constexpr u32 STEPS = Keys::STEPS;
    u32 lane = threadIdx.x % WARP;
    float score[COUNT][2], largest = MINUS_INFINITY;
#pragma unroll
    for (int n = 0; n < int(COUNT); n++) {
        float sum[2][4] = {};
#pragma unroll
        for (int i = 0; i < int(STEPS); i++) multiply(sum[i % 2], keys[n].key[i], q.step[i].x, q.step[i].y);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            score[n][half] = (sum[0][2 * half] + sum[0][2 * half + 1]) + (sum[1][2 * half] + sum[1][2 * half + 1]);
            if (first + n * S * BLOCK_KEYS + half * 8 + lane / 4 > past) score[n][half] = MINUS_INFINITY;
            largest = fmaxf(largest, score[n][half]);
        }
    }
    // Relative to the lane's own bound, while that of the warp is searched for.
    int bound = score_bound(largest), most = __reduce_max_sync(ALL_LANES, bound);
    float shrink = whole_power(bound - most), mass = 0, sum[STEPS][4] = {};
#pragma unroll
    for (int n = 0; n < int(COUNT); n++) {
        float p[2];
#pragma unroll
        for (int half = 0; half < 2; half++) p[half] = power_of_two(score[n][half] - float(bound)) * shrink, mass += p[half];
        uint2 word = split(p[0], p[1]);
        auto of = [&](u32 x, u32 key) { return __shfl_sync(ALL_LANES, x, lane % 4 * 8 + key * 4); };
        u32 low = pair_of(of(word.x, 0), of(word.x, 1)), high = pair_of(of(word.y, 0), of(word.y, 1));
#pragma unroll
        for (int i = 0; i < int(STEPS); i++) multiply(sum[i], keys[n].value[i], low, high);
    }
    mass = sum_over<4, WARP>(mass);
    float eight[2 * STEPS];
#pragma unroll
    for (int i = 0; i < int(STEPS); i++) eight[2 * i] = sum[i][0] + sum[i][1], eight[2 * i + 1] = sum[i][2] + sum[i][3];
    leave_eights<2 * STEPS>(eight, s.part[threadIdx.x / WARP]);
    if (lane == 0) s.part_mass[threadIdx.x / WARP] = {most, mass};
}
