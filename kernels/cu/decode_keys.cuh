// A block's share of the keys and values of its head: rounds of BLOCK_KEYS positions, of which each S-th is the block's own. They come through
// slots of shared memory, which one warp fills ahead; the new token's rows lie by themselves.
#pragma once
#include "decode_sums.cuh"

// Two neighbouring channels.
template <typename T> struct Pair;
template <> struct Pair<float> {
    typedef float2 Raw;
    static __device__ Raw load(const float *p) { return *reinterpret_cast<const float2 *>(p); }
    static __device__ float2 values(Raw raw) { return raw; }
};
template <> struct Pair<bf16> {
    typedef u32 Raw;
    static __device__ Raw load(const bf16 *p) { return *reinterpret_cast<const u32 *>(p); }
    static __device__ float2 values(Raw raw) { return make_float2(__uint_as_float(raw << 16), __uint_as_float(raw & 0xffff0000u)); }
};

// The first position of a round of a part of the S.
__device__ inline u32 first_position(u32 round, u32 part) { return (round * S + part) * BLOCK_KEYS; }

// Slots in turn, one for each round of each layer that the context has come to.
struct KeySlot {
    u32 slot = 0, parity = 0;

    __device__ void advance() {
        if (++slot == KEY_SLOTS) slot = 0, parity ^= 1;
    }
    static __device__ char *at(Shared &s, u32 slot) { return reinterpret_cast<char *>(&s) + KEYS_START + slot * 2 * KEY_BYTES; }
};

// Keys and values of a round that a lane has: as they are stored, 16 bytes and two channels at a time.
struct Rows {
    static constexpr u32 WIDE = 16 / sizeof(Element), TIMES = 16 / WIDE; // channels of 16 bytes, and how many times that of a key
    uint4 key[TIMES];
    typename Pair<Element>::Raw value[VALUES];

    static __device__ u32 lane() { return threadIdx.x % WARP; }
    static __device__ u32 group() { return lane() / KEY_LANES; }
    // Where the lane's channels of time `i` begin: another order in neighbouring rows, so that a warp reads all banks; not of a stage, which has
    // time for keys, and reads q sooner.
    static __device__ u32 channel(u32 i) {
        constexpr u32 ROWS_A_LINE = D * sizeof(Element) < 128 ? 128 / (D * sizeof(Element)) : 1;
        return ((STAGED ? i : (i + group() / ROWS_A_LINE) % TIMES) * KEY_LANES + lane() % KEY_LANES) * WIDE;
    }
    static __device__ u32 value_channel() { return lane() % VALUE_LANES * 2; }
    // Which of the warp's keys value `i` belongs to.
    static __device__ u32 value_key(u32 i) { return i * VALUE_PARTS + lane() / VALUE_LANES; }

    // From a slot.
    __device__ void load(const char *slot) {
        const Element *keys = reinterpret_cast<const Element *>(slot) + threadIdx.x / WARP * GROUPS * D, *values = keys + KEY_BYTES / sizeof(Element);
        load_key(keys + group() * D);
#pragma unroll
        for (int i = 0; i < int(VALUES); i++) value[i] = Pair<Element>::load(values + value_key(i) * D + value_channel());
    }
    __device__ void load_key(const Element *row) {
#pragma unroll
        for (int i = 0; i < int(TIMES); i++) key[i] = *reinterpret_cast<const uint4 *>(row + channel(i));
    }
    // Puts the new token's value in the place of number `newest` of the warp's.
    __device__ void insert(const Element *row, u32 newest) {
        auto fresh = Pair<Element>::load(row + value_channel());
#pragma unroll
        for (int i = 0; i < int(VALUES); i++)
            if (value_key(i) == newest) value[i] = fresh;
    }
    // Whether all of it has come, which is so once this can be said: no word is this NaN.
    __device__ bool there() const {
        bool any = false;
#pragma unroll
        for (int i = 0; i < int(TIMES); i++) any |= key[i].x != 0xffc0ffeeu;
#pragma unroll
        for (int i = 0; i < int(VALUES); i++) any |= *reinterpret_cast<const u32 *>(&value[i]) != 0xffc0ffeeu;
        return any;
    }
    // Four channels of a key, number `i` of those that the lane has.
    __device__ float4 four(int i) const {
        uint4 r = key[i / (WIDE / 4)];
        if (sizeof(Element) == 4) return make_float4(__uint_as_float(r.x), __uint_as_float(r.y), __uint_as_float(r.z), __uint_as_float(r.w));
        return unpack4(i % 2 == 0 ? make_uint2(r.x, r.y) : make_uint2(r.z, r.w));
    }
};

// Softmax-weighted values so far: a lane has two channels, of every key of its warp or of every other.
struct Weighted {
    Shared &s;
    int most = NO_SCORE;
    float mass = 0, sum[2] = {}; // of those keys
    float4 q[4];

    float score[AT_ONCE]; // of the lane's keys, of `add_all`

    // With q of the head, made for scores in powers of two.
    __device__ Weighted(Shared &s) : s(s) {
#pragma unroll
        for (int i = 0; i < 4; i++) q[i] = load4(s.q + Rows::channel(i / (Rows::WIDE / 4)) + i % (Rows::WIDE / 4) * 4);
    }

    // Adds the warp's keys of a round, from position `first` on; position `past` is the new token's.
    __device__ void add(Rows &rows, u32 first, u32 past) {
        if (first > past) return;
        u32 newest = past - first;
        if (Rows::group() == newest) rows.load_key(s.newest[0]);
        float dot[4];
#pragma unroll
        for (int i = 0; i < 4; i++) dot[i] = dot4(q[i], rows.four(i), 0.0f);
        float score = sum_over<1, KEY_LANES>((dot[0] + dot[1]) + (dot[2] + dot[3]));
        if (Rows::group() > newest) score = MINUS_INFINITY;
        // Relative to the lane's own bound, while that of the warp is searched for.
        int bound = score_bound(score);
        float p = power_of_two(score - float(bound));
        rescale(__reduce_max_sync(ALL_LANES, bound));
        rows.insert(s.newest[1], newest);
        float(&weights)[WARP] = s.weight[threadIdx.x / WARP][0];
        weights[weight_place()] = p * whole_power(bound - most);
        __syncwarp();
        add_values(rows, weights + Rows::lane() / VALUE_LANES * VALUES);
        if (ROUNDS > 1) __syncwarp();
    }
    __device__ void clear() { mass = sum[0] = sum[1] = 0; }
    // The same of COUNT rounds at once and for all, where the new token's rows are among them: weights are relative to 2^bound.
    template <u32 COUNT> __device__ void add_all(const Rows (&rows)[AT_ONCE], u32 first, u32 past, float bound) {
        float dot[4];
#pragma unroll
        for (int n = 0; n < int(COUNT); n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) dot[i] = dot4(q[i], rows[n].four(i), 0.0f);
            score[n] = (dot[0] + dot[1]) + (dot[2] + dot[3]);
        }
#pragma unroll
        for (int n = 0; n < int(COUNT); n++) {
            score[n] = sum_over<1, KEY_LANES>(score[n]);
            if (n * BLOCK_KEYS + first + Rows::group() > past) score[n] = MINUS_INFINITY;
        }
#pragma unroll
        for (int n = 0; n < int(COUNT); n++) s.weight[threadIdx.x / WARP][n][weight_place()] = power_of_two(score[n] - bound);
        __syncwarp();
#pragma unroll
        for (int n = 0; n < int(COUNT); n++) add_values(rows[n], s.weight[threadIdx.x / WARP][n] + Rows::lane() / VALUE_LANES * VALUES);
    }
    // The largest score of those.
    __device__ float largest(u32 past) const {
        float own = past >= threadIdx.x / WARP * GROUPS ? score[0] : MINUS_INFINITY;
        if (past >= BLOCK_KEYS) own = fmaxf(own, score[AT_ONCE - 1]);
        return of_key(warp_max(sort_key(own)));
    }
    // Where the weight of the lane's key stands: those of a lane's values lie together.
    static __device__ u32 weight_place() { return Rows::group() % VALUE_PARTS * VALUES + Rows::group() / VALUE_PARTS; }
    __device__ void add_values(const Rows &rows, const float *weights) {
        float p[VALUES], low[2] = {}, high[2] = {};
#pragma unroll
        for (int i = 0; i < int(VALUES); i += 4) {
            float4 x = load4(weights + i);
            p[i] = x.x, p[i + 1] = x.y, p[i + 2] = x.z, p[i + 3] = x.w;
        }
#pragma unroll
        for (int i = 0; i < int(VALUES); i++) {
            float2 v = Pair<Element>::values(rows.value[i]);
            low[i % 2] = fmaf(p[i], v.x, low[i % 2]), high[i % 2] = fmaf(p[i], v.y, high[i % 2]);
        }
        sum[0] += low[0] + low[1], sum[1] += high[0] + high[1];
        mass += ((p[0] + p[1]) + (p[2] + p[3])) + ((p[4] + p[5]) + (p[6] + p[7]));
    }

    // Makes the sums relative to the larger bound.
    __device__ void rescale(int bound) {
        bound = max(most, bound);
        float shrink = whole_power(most - bound);
        most = bound;
        if (ROUNDS == 1) return;
        mass *= shrink, sum[0] *= shrink, sum[1] *= shrink;
    }

    // Leaves the D channels over the warp's keys, and their mass.
    __device__ void leave() const {
        float *part = s.part[threadIdx.x / WARP], whole = mass;
        if constexpr (VALUE_PARTS == 1) {
            *reinterpret_cast<float2 *>(part + Rows::lane() * 2) = make_float2(sum[0], sum[1]);
        } else {
            bool upper = Rows::lane() >= VALUE_LANES;
            float other = __shfl_xor_sync(ALL_LANES, upper ? sum[0] : sum[1], VALUE_LANES);
            whole += __shfl_xor_sync(ALL_LANES, mass, VALUE_LANES);
            part[Rows::value_channel() + upper] = (upper ? sum[1] : sum[0]) + other;
        }
        if (Rows::lane() > 0) return;
#if STAGED
        s.mass[threadIdx.x / WARP] = whole;
#else
        s.part_mass[threadIdx.x / WARP] = {most, whole};
#endif
    }
};
static_assert(VALUES == 8, "a lane has the values of eight keys");
