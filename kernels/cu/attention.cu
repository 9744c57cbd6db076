// y[b, t, h] = sum over s <= past_b + t of softmax_s(q[b, t, h] . keys[b, h, s] / sqrt(D)) values[b, h, s].
//
// Grid (T, H, B), one block of up to ATTENTION_WARPS_MAX warps a query. A row of keys or values is read in pieces of 16 bytes, by LANES lanes
// with PIECES of them each (missing channels are zero), so that a warp reads WARP / LANES rows at once; it holds GROUP such reads of keys and
// as many of values, and the warps take groups in turn. The lanes of a row keep a running maximum, total and sum of their own, which meet
// at the end: within the warp by exchange, between warps in shared memory.
// Rows cached by earlier tokens are read into registers before the previous launch has finished: embedding.cu, which begins a pass, lets
// the next kernel start only after its own wait, so what earlier passes wrote is there. The cache is read through L2, because L1
// might hold a line from before the newest row in it was written.
// Head widths up to 256. Deterministic. Launcher: src/attention.rs.
#include "append.cu"

constexpr u32 ATTENTION_WARPS_MAX = 8;

// Sixteen bytes of a row as they are stored: a load alone, so that many can be in flight; the conversion comes with the use.
template <typename T> struct Piece {
    static constexpr int LEN = 16 / sizeof(T);
    uint4 raw;
    __device__ void values(float (&x)[LEN]) const {
        u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < LEN; i++) {
            u32 word = words[i * sizeof(T) / 4];
            x[i] = __uint_as_float(sizeof(T) == 4 ? word : i % 2 ? word & 0xffff0000u : word << 16);
        }
    }
};

// Channels from `d` on; zero past the head's width. Where rows are not whole pieces, elements are gathered.
template <bool WHOLE, typename T> __device__ Piece<T> load_piece(const T *row, u32 d, u32 size) {
    Piece<T> piece = {};
    if (d >= size) return piece;
    if constexpr (WHOLE) {
        piece.raw = __ldcg(reinterpret_cast<const uint4 *>(row + d));
    } else {
        u32 words[4] = {};
        for (u32 i = 0; i < Piece<T>::LEN && d + i < size; i++) {
            if constexpr (sizeof(T) == 4) words[i] = __float_as_uint(__ldcg(row + d + i));
            else words[i / 2] |= u32(__ldcg(reinterpret_cast<const u16 *>(row) + d + i)) << i % 2 * 16;
        }
        piece.raw = make_uint4(words[0], words[1], words[2], words[3]);
    }
    return piece;
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

template <typename T, int LANES, int PIECES, bool WHOLE> struct Group {
    static constexpr int LEN = Piece<T>::LEN, GROUP = 8 / PIECES, ROWS = WARP / LANES, KEYS = GROUP * ROWS;
    Piece<T> key[GROUP][PIECES], value[GROUP][PIECES];

    // The row of the lane's read `i`.
    static __device__ u32 row(u32 first, int i) { return first + i * ROWS + threadIdx.x % WARP / LANES; }

    // Loads the rows of the group that lie in from .. to; the others stay as they are.
    __device__ void load(const Cache<T> &c, u32 first, u32 from, u32 to) {
#pragma unroll
        for (int i = 0; i < GROUP * PIECES; i++) {
            u32 row = this->row(first, i / PIECES), d = (i % PIECES * LANES + threadIdx.x % LANES) * LEN;
            if (from <= row && row < to) key[i / PIECES][i % PIECES] = load_piece<WHOLE>(c.keys + u64(row) * c.size, d, c.size);
        }
#pragma unroll
        for (int i = 0; i < GROUP * PIECES; i++) {
            u32 row = this->row(first, i / PIECES), d = (i % PIECES * LANES + threadIdx.x % LANES) * LEN;
            if (from <= row && row < to) value[i / PIECES][i % PIECES] = load_piece<WHOLE>(c.values + u64(row) * c.size, d, c.size);
        }
    }
};

// What the lanes of a row know of their share of the keys: the maximum, the sum of exponentials, and their channels of the sum of values.
template <int LEN> struct Partial {
    float maximum = -3.0e38f, total = 0, sum[LEN] = {}; // finite, so that a group without keys changes nothing

    __device__ void fade(float to) {
        float factor = expf(maximum - to);
        maximum = to, total *= factor;
#pragma unroll
        for (float &s : sum) s *= factor;
    }
    // Takes in what the lane `lanes` further on knows.
    __device__ void join(u32 lanes) {
        fade(fmaxf(maximum, __shfl_xor_sync(ALL_LANES, maximum, lanes)));
        total += __shfl_xor_sync(ALL_LANES, total, lanes);
#pragma unroll
        for (float &s : sum) s += __shfl_xor_sync(ALL_LANES, s, lanes);
    }
};

template <typename T, int LANES, int PIECES, bool WHOLE>
__device__ void attention(T *y, const T *q, const T *keys, const T *values, const Cursor *cursor, CacheShape s) {
    using G = Group<T, LANES, PIECES, WHOLE>;
    constexpr int LEN = G::LEN;
    constexpr u32 STRIDE = LANES * PIECES * LEN + 4;
    __shared__ __align__(16) float partial[ATTENTION_WARPS_MAX * STRIDE];
    u32 warps = blockDim.x / WARP, t = blockIdx.x, h = blockIdx.y, b = blockIdx.z, size = s.head_size, lane = threadIdx.x % WARP;
    u64 place = (u64(b) * s.time + t) * s.heads * size + h * size;
    u64 head = (u64(b) * s.heads + h) * s.context * size;
    u32 past = cursor[b].past, first = threadIdx.x / WARP * G::KEYS;
    Cache<T> cache = {keys + head, values + head, size, min(past, s.context), min(past + t + 1, s.context)};
    Scale scale(size);
    Partial<LEN * PIECES> p;
    G group = {};
    group.load(cache, first, 0, cache.past);
    release_next();
    await_previous();
    float query[PIECES][LEN];
#pragma unroll
    for (int j = 0; j < PIECES; j++) load_piece<WHOLE>(q + place, (j * LANES + lane % LANES) * LEN, size).values(query[j]);
    for (u32 missing = cache.past; first < cache.seen; first += warps * G::KEYS, missing = 0) {
        group.load(cache, first, missing, cache.seen);
        float score[G::GROUP], highest = p.maximum;
#pragma unroll
        for (int i = 0; i < G::GROUP; i++) {
            float even = 0, odd = 0;
#pragma unroll
            for (int j = 0; j < PIECES; j++) {
                float k[LEN];
                group.key[i][j].values(k);
#pragma unroll
                for (int c = 0; c < LEN; c += 2) even = fmaf(query[j][c], k[c], even), odd = fmaf(query[j][c + 1], k[c + 1], odd);
            }
            score[i] = even + odd;
        }
#pragma unroll
        for (int lanes = 1; lanes < LANES; lanes *= 2)
#pragma unroll
            for (int i = 0; i < G::GROUP; i++) score[i] += __shfl_xor_sync(ALL_LANES, score[i], lanes);
#pragma unroll
        for (int i = 0; i < G::GROUP; i++) {
            score[i] = G::row(first, i) < cache.seen ? scale.apply(score[i]) : MINUS_INFINITY;
            highest = fmaxf(highest, score[i]);
        }
        p.fade(highest);
#pragma unroll
        for (int i = 0; i < G::GROUP; i++) {
            float weight = expf(score[i] - highest);
            p.total += weight;
#pragma unroll
            for (int j = 0; j < PIECES; j++) {
                float v[LEN];
                group.value[i][j].values(v);
#pragma unroll
                for (int c = 0; c < LEN; c++) p.sum[j * LEN + c] = fmaf(weight, v[c], p.sum[j * LEN + c]);
            }
        }
    }
#pragma unroll
    for (u32 lanes = LANES; lanes < WARP; lanes *= 2) p.join(lanes);
    float *mine = partial + threadIdx.x / WARP * STRIDE;
    if (lane < LANES) {
#pragma unroll
        for (int j = 0; j < PIECES; j++)
#pragma unroll
            for (int c = 0; c < LEN; c += 4)
                *reinterpret_cast<float4 *>(mine + (j * LANES + lane) * LEN + c) =
                    make_float4(p.sum[j * LEN + c], p.sum[j * LEN + c + 1], p.sum[j * LEN + c + 2], p.sum[j * LEN + c + 3]);
    }
    if (lane == 0) mine[STRIDE - 4] = p.maximum, mine[STRIDE - 3] = p.total;
    __syncthreads();
    for (u32 d = threadIdx.x; d < size; d += blockDim.x) {
        float maximum = MINUS_INFINITY, total = 0, sum = 0;
        for (u32 w = 0; w < warps; w++) maximum = fmaxf(maximum, partial[w * STRIDE + STRIDE - 4]);
        for (u32 w = 0; w < warps; w++) {
            float fade = expf(partial[w * STRIDE + STRIDE - 4] - maximum);
            total = fmaf(partial[w * STRIDE + STRIDE - 3], fade, total);
            sum = fmaf(partial[w * STRIDE + d], fade, sum);
        }
        y[place + d] = from_float<T>(sum / total);
    }
}

// Lanes a row, and pieces a lane, by the bytes of a row.
#define ATTENTION(T)                                                                                                    \
    (T * y, const T *q, const T *keys, const T *values, const Cursor *cursor, CacheShape s) {                           \
        u32 bytes = s.head_size * u32(sizeof(T));                                                                       \
        if (bytes % 16 != 0) attention<T, 32, sizeof(T) / 2, false>(y, q, keys, values, cursor, s);                     \
        else if (bytes <= 128) attention<T, 8, 1, true>(y, q, keys, values, cursor, s);                                 \
        else if (bytes <= 256) attention<T, 16, 1, true>(y, q, keys, values, cursor, s);                                \
        else if (bytes <= 512) attention<T, 32, 1, true>(y, q, keys, values, cursor, s);                                \
        else attention<T, 32, sizeof(T) / 2, true>(y, q, keys, values, cursor, s);                                      \
    }
extern "C" __global__ void __launch_bounds__(256, 2) attention_f32 ATTENTION(float)
extern "C" __global__ void __launch_bounds__(256, 2) attention_bf16 ATTENTION(bf16)
