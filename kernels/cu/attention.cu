// y[b, t, h] = sum over s <= past_b + t of softmax_s(q[b, t, h] . keys[b, h, s] / sqrt(D)) values[b, h, s].
//
// Grid (T, H, B), one block of 8 warps a query. A head is PARTS quads of four channels (a power of two; missing channels are zero). Each
// warp walks every eighth group of keys with a running maximum. A group is as many keys as 32 lanes can hold in registers at up to 16 quads a
// lane: 32 keys, or fewer with several lanes a key. Of the group's quads of values each lane weighs every 32nd, which are the same
// channels each time. The warps' partial sums meet in shared memory.
// Rows cached by earlier tokens are read into registers before the previous launch has finished: embedding.cu, which begins a pass, lets
// the next kernel start only after its own wait, so what earlier passes wrote is there. The cache is read through L2, because L1
// might hold a line from before the newest row in it was written.
// Head widths up to 256. Deterministic. Launcher: src/attention.rs.
#include "append.cu"

constexpr u32 ATTENTION_WARPS = 8;

__device__ inline float cached(const float *p) { return __ldcg(p); }
__device__ inline bf16 cached(const bf16 *p) { return bf16{__ldcg(reinterpret_cast<const u16 *>(p))}; }
__device__ inline Four<float> cached4(const float *p) { return {__ldcg(reinterpret_cast<const float4 *>(p))}; }
__device__ inline Four<bf16> cached4(const bf16 *p) { return {__ldcg(reinterpret_cast<const uint2 *>(p))}; }

__device__ inline Four<float> gather4(const float *p, u32 count) {
    return {make_float4(cached(p), count > 1 ? cached(p + 1) : 0.0f, count > 2 ? cached(p + 2) : 0.0f,
                        count > 3 ? cached(p + 3) : 0.0f)};
}
__device__ inline Four<bf16> gather4(const bf16 *p, u32 count) {
    u32 bits[4] = {};
    for (u32 i = 0; i < min(count, 4u); i++) bits[i] = cached(p + i).bits;
    return {make_uint2(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16)};
}

// Channels 4 quad .. + 3 of a row; zero past the head's width.
template <bool ALIGNED, typename T> __device__ Four<T> load_quad(const T *row, u32 quad, u32 size) {
    u32 d = quad * 4;
    if (d >= size) return Four<T>{};
    if constexpr (ALIGNED) return cached4(row + d);
    return gather4(row + d, size - d);
}

// 1 / sqrt(D) in two floats: the exponent of a large score keeps what one would round away.
struct Scale {
    float high, low;
    __device__ Scale(u32 size) {
        double exact = 1.0 / sqrt(double(size));
        high = float(exact);
        low = float(exact - high);
    }
    __device__ float apply(float x) const { return fmaf(x, high, x * low); }
};

// The cache of one head: `seen` rows, the first `past` of which earlier passes wrote.
template <typename T> struct Cache {
    const T *keys, *values;
    u32 size, past, seen;
};

// How a head of PARTS quads is spread over a warp.
template <int PARTS> struct Spread {
    static constexpr int HELD = PARTS < 16 ? PARTS : 16;    // quads of keys, and of values, that a lane holds
    static constexpr int LANES = PARTS / HELD;              // lanes that share a key
    static constexpr int KEYS = WARP / LANES;               // keys of a group
    static constexpr int SUMS = PARTS > WARP ? PARTS / WARP : 1; // different quads of values that a lane sums
};

// A group of keys and values as a warp holds it.
template <typename T, int PARTS, bool ALIGNED> struct Group {
    using S = Spread<PARTS>;
    Four<T> key[S::HELD];
    Four<T> value[S::HELD];

    // Loads the rows of the group that lie in from .. to; the others stay as they are.
    __device__ void load(const Cache<T> &c, u32 first, u32 from, u32 to) {
        u32 lane = threadIdx.x % WARP, row = first + lane / S::LANES;
        if (from <= row && row < to) {
#pragma unroll
            for (int i = 0; i < S::HELD; i++)
                key[i] = load_quad<ALIGNED>(c.keys + u64(row) * c.size, i * S::LANES + lane % S::LANES, c.size);
        }
#pragma unroll
        for (int i = 0; i < S::HELD; i++) {
            u32 place = i * WARP + lane, row = first + place / PARTS;
            if (from <= row && row < to) value[i] = load_quad<ALIGNED>(c.values + u64(row) * c.size, place % PARTS, c.size);
        }
    }

    // The score of the lane's key, before the scale.
    __device__ float score(const float *query) const {
        float even = 0, odd = 0;
#pragma unroll
        for (int i = 0; i < S::HELD; i++) {
            float &sum = i % 2 ? odd : even;
            sum = dot4(load4(query + (i * S::LANES + threadIdx.x % S::LANES) * 4), key[i].values(), sum);
        }
        float sum = even + odd;
#pragma unroll
        for (int lanes = 1; lanes < S::LANES; lanes *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, lanes);
        return sum;
    }
};

// What a warp knows of its share of the keys: the maximum, the sum of exponentials, and the lane's quads of the sum of values.
template <int PARTS> struct Partial {
    float maximum, total;
    float4 sum[Spread<PARTS>::SUMS];
};

// Takes a group in, x being the score of the lane's key, minus infinity where there is none.
template <typename T, int PARTS, bool ALIGNED>
__device__ void fold(Partial<PARTS> &p, const Group<T, PARTS, ALIGNED> &g, float x) {
    using S = Spread<PARTS>;
    float maximum = fmaxf(p.maximum, warp_max(x));
    float weight = expf(x - maximum), fade = expf(p.maximum - maximum);
    p.maximum = maximum;
    p.total = fmaf(p.total, fade, warp_sum(weight) / S::LANES);
#pragma unroll
    for (float4 &s : p.sum) s = make_float4(s.x * fade, s.y * fade, s.z * fade, s.w * fade);
#pragma unroll
    for (int i = 0; i < S::HELD; i++) {
        float w = __shfl_sync(ALL_LANES, weight, (i * WARP + threadIdx.x % WARP) / PARTS * S::LANES);
        float4 v = g.value[i].values(), &s = p.sum[i % S::SUMS];
        s = make_float4(fmaf(w, v.x, s.x), fmaf(w, v.y, s.y), fmaf(w, v.z, s.z), fmaf(w, v.w, s.w));
    }
}

// The warps' partial sums become the result.
template <typename T, int PARTS> __device__ void merge(T *y, Partial<PARTS> &p, float *partial, u32 size) {
    constexpr u32 STRIDE = PARTS * 4 + 4;
    u32 lane = threadIdx.x % WARP;
    float *mine = partial + threadIdx.x / WARP * STRIDE;
#pragma unroll
    for (int lanes = PARTS; lanes < WARP; lanes *= 2) {
        float4 &s = p.sum[0];
        s.x += __shfl_xor_sync(ALL_LANES, s.x, lanes), s.y += __shfl_xor_sync(ALL_LANES, s.y, lanes);
        s.z += __shfl_xor_sync(ALL_LANES, s.z, lanes), s.w += __shfl_xor_sync(ALL_LANES, s.w, lanes);
    }
#pragma unroll
    for (int j = 0; j < Spread<PARTS>::SUMS; j++)
        if (lane < PARTS) *reinterpret_cast<float4 *>(mine + (j * WARP + lane) * 4) = p.sum[j];
    if (lane == 0) mine[PARTS * 4] = p.maximum, mine[PARTS * 4 + 1] = p.total;
    __syncthreads();
    if (threadIdx.x >= size) return;
    float maximum = MINUS_INFINITY, total = 0, sum = 0;
#pragma unroll
    for (u32 w = 0; w < ATTENTION_WARPS; w++) maximum = fmaxf(maximum, partial[w * STRIDE + PARTS * 4]);
#pragma unroll
    for (u32 w = 0; w < ATTENTION_WARPS; w++) {
        float fade = expf(partial[w * STRIDE + PARTS * 4] - maximum);
        total = fmaf(partial[w * STRIDE + PARTS * 4 + 1], fade, total);
        sum = fmaf(partial[w * STRIDE + threadIdx.x], fade, sum);
    }
    y[threadIdx.x] = from_float<T>(sum / total);
}

template <typename T, int PARTS, bool ALIGNED>
__device__ void attention(T *y, const T *q, const T *keys, const T *values, const Cursor *cursor, CacheShape s) {
    constexpr u32 KEYS = Spread<PARTS>::KEYS;
    __shared__ __align__(16) float query[PARTS * 4], partial[ATTENTION_WARPS * (PARTS * 4 + 4)];
    u32 t = blockIdx.x, h = blockIdx.y, b = blockIdx.z, size = s.head_size;
    u64 place = (u64(b) * s.time + t) * s.heads * size + h * size;
    u64 head = (u64(b) * s.heads + h) * s.context * size;
    u32 past = cursor[b].past, first = threadIdx.x / WARP * KEYS, lane_key = threadIdx.x % WARP / Spread<PARTS>::LANES;
    Cache<T> cache = {keys + head, values + head, size, min(past, s.context), min(past + t + 1, s.context)};
    Partial<PARTS> p = {MINUS_INFINITY, 0, {}};
    Scale scale(size);
    Group<T, PARTS, ALIGNED> group = {};
    group.load(cache, first, 0, cache.past);
    release_next();
    await_previous();
    if (threadIdx.x < PARTS * 4) query[threadIdx.x] = threadIdx.x < size ? to_float(cached(q + place + threadIdx.x)) : 0.0f;
    __syncthreads();
    for (u32 missing = cache.past; first < cache.seen; first += ATTENTION_WARPS * KEYS, missing = 0, group = {}) {
        group.load(cache, first, missing, cache.seen);
        float score = scale.apply(group.score(query));
        fold(p, group, first + lane_key < cache.seen ? score : MINUS_INFINITY);
    }
    merge(y + place, p, partial, size);
}

#define ATTENTION(T)                                                                                                    \
    (T * y, const T *q, const T *keys, const T *values, const Cursor *cursor, CacheShape s) {                           \
        if (!rows_of_four(s.head_size)) attention<T, 64, false>(y, q, keys, values, cursor, s);                         \
        else if (s.head_size <= 32) attention<T, 8, true>(y, q, keys, values, cursor, s);                               \
        else if (s.head_size <= 64) attention<T, 16, true>(y, q, keys, values, cursor, s);                              \
        else if (s.head_size <= 128) attention<T, 32, true>(y, q, keys, values, cursor, s);                             \
        else attention<T, 64, true>(y, q, keys, values, cursor, s);                                                     \
    }
extern "C" __global__ void __launch_bounds__(256, 1) attention_f32 ATTENTION(float)
extern "C" __global__ void __launch_bounds__(256, 1) attention_bf16 ATTENTION(bf16)
