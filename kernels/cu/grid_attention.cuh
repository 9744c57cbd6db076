// Attention of one token: tasks of a head and a piece of its cache, dealt to the blocks.
//
// Group g of KEYS positions belongs to piece g % SPLITS, and there to warp g / SPLITS % WARPS: always to the same block, which also writes it.
// A multiplying warp has its group's keys and values in registers before the query comes. The newest position comes with the query in the
// exchange; finishing warps take it in, write it to the cache, and merge what the warps found. Consumers merge the pieces (FromCore).
#pragma once
#include "grid_keys.cuh"
#include "grid_product.cuh"

constexpr u32 TASKS = H * SPLITS;

// Pieces that hold a position, with `past` cached ones.
__device__ inline u32 pieces(u32 past) { return smaller(SPLITS, past / KEYS + 1); }
// Warps of a piece that have a cached position.
__device__ inline u32 busy_warps(u32 past, u32 piece) {
    u32 groups = divide_up(past, KEYS);
    return groups <= piece ? 0 : smaller(WARPS, divide_up(groups - piece, SPLITS));
}

__device__ inline float *core_sums(u32 warp) { return shared<float>(AT_CORE_SUMS) + warp * CORE_SUMS; }
__device__ inline float2 *spans() { return shared<float2>(AT_SPANS); }

// The scores' factor in two floats: the exponent of a large score keeps what one would round away.
__device__ inline float scaled(float x) {
    const double exact = 1.0 / sqrt(double(D));
    const float high = float(exact), low = float(exact - high);
    return fmaf(x, high, x * low);
}

// e^x; the fast one's error, 2^-22 of x, is nothing to bf16.
__device__ inline float exponential(float x) { return HALF ? __expf(x) : expf(x); }
__device__ inline float reciprocal(float x) { return HALF ? __fdividef(1.0f, x) : 1.0f / x; }

// The maximum over the warp, through integers that sort as the floats do.
__device__ inline float lanes_max(float x) {
#if __CUDA_ARCH__ >= 800
    int bits = __float_as_int(x);
    bits = __reduce_max_sync(ALL_LANES, bits ^ (bits >> 31 & 0x7fffffff));
    return __int_as_float(bits ^ (bits >> 31 & 0x7fffffff));
#endif
    return x;
}

// What a multiplying warp makes of its keys and values: a softmax's maximum, total and weighted sum, the last spread over the lanes.
struct Softmax {
    float maximum, total = 0, sum[VECTOR] = {};

    __device__ Softmax() { maximum = MINUS_INFINITY; }
    // Takes in the group of rows from position `start` on; all lanes of a key have its score.
    __device__ void add(const Rows &rows, const float *query, u32 start, u32 past, u32 lane) {
        float x = scaled(rows.score(query, lane)), before = maximum;
        if (start + lane / KEY_LANES >= past) x = MINUS_INFINITY;
        maximum = fmaxf(before, lanes_max(x));
        float weight = exponential(x - maximum), fade = exponential(before - maximum);
        total = fmaf(total, fade, weight);
#pragma unroll
        for (u32 i = 0; i < VECTOR; i++) sum[i] *= fade;
#pragma unroll
        for (u32 i = 0; i < VALUE_LOADS; i++)
            add_vector(sum, __shfl_sync(ALL_LANES, weight, (i * ROWS_AT_ONCE + lane / ROW_LANES) * KEY_LANES), rows.value[i]);
    }
    __device__ void join_lanes() {
#pragma unroll
        for (u32 lanes = KEY_LANES; lanes < WARP; lanes *= 2) total += __shfl_xor_sync(ALL_LANES, total, lanes);
#pragma unroll
        for (u32 lanes = ROW_LANES; lanes < WARP; lanes *= 2)
#pragma unroll
            for (u32 i = 0; i < VECTOR; i++) sum[i] += __shfl_xor_sync(ALL_LANES, sum[i], lanes);
    }
    __device__ void store(float *sums, float2 &span, u32 lane) const {
        if (lane < VECTORS)
#pragma unroll
            for (u32 i = 0; i < VECTOR; i += 4)
                *reinterpret_cast<float4 *>(sums + lane * VECTOR + i) = make_float4(sum[i], sum[i + 1], sum[i + 2], sum[i + 3]);
        if (lane == 0) span = make_float2(maximum, total);
    }
};

// Brings the words of q, k or v of a head and puts the values, float32, to `out`, shared memory.
__device__ inline void receive_head(float *out, const uint4 *words, u32 epoch, u32 lane) {
    constexpr u32 COUNT = divide_up(HEAD_WORDS, WARP);
    const uint4 *at[COUNT];
    uint4 v[COUNT];
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) at[i] = words + smaller(i * WARP + lane, HEAD_WORDS - 1);
    receive(v, at, epoch);
    __syncwarp();
#pragma unroll
    for (u32 i = 0; i < COUNT; i++)
#pragma unroll
        for (u32 j = 0; j < PACK; j++) {
            u32 d = (i * WARP + lane) * PACK + j;
            if (d < D) out[d] = unpack(v[i], j);
        }
    __syncwarp();
}

// A multiplying warp's part of a layer's attention.
__device__ inline void attend(Block &b, u32 &task_count, const Cache &cache, u32 past, u32 epoch) {
    b.forget();
    for (u32 task = b.block; task < TASKS; task += BLOCKS) {
        u32 head = task / SPLITS, piece = task % SPLITS, first = (b.warp * SPLITS + piece) * KEYS;
        if (piece >= pieces(past)) continue;
        if (first < past) {
            Rows rows;
            Softmax softmax;
            for (u32 start = first; start < past; start += WARPS * SPLITS * KEYS) {
                rows.load(cache, head, start, past, b.lane);
                if (start == first) receive_head(b.query(), words_at(b.g.exchange, AT_QKV, epoch, 0) + head * 3 * HEAD_WORDS, epoch, b.lane);
                softmax.add(rows, b.query(), start, past, b.lane);
            }
            softmax.join_lanes();
            barrier_wait(CORE_FREE, task_count % 2 ^ 1);
            softmax.store(core_sums(b.warp), spans()[b.warp], b.lane);
            __syncwarp();
        }
        barrier_wait(CORE_FREE, task_count % 2 ^ 1); // no warp may arrive twice before the others have
        if (b.lane == 0) barrier_arrive(CORE_FULL);
        task_count++;
    }
}

// Takes in the newest position: its key and value go to row `row` of the cache, the value also to `value`, shared memory. Its score.
__device__ inline float newest_position(float *value, const uint4 *words, u32 epoch, const Cache &cache, u64 row, bool keys, bool values, u32 lane) {
    constexpr u32 COUNT = divide_up(HEAD_WORDS, WARP);
    const uint4 *at[3 * COUNT];
    uint4 v[3 * COUNT];
#pragma unroll
    for (u32 i = 0; i < 3 * COUNT; i++)
        at[i] = words + i % 3 * HEAD_WORDS + smaller(i / 3 * WARP + lane, HEAD_WORDS - 1);
    receive(v, at, epoch);
    float dot = 0;
#pragma unroll
    for (u32 i = 0; i < COUNT; i++)
#pragma unroll
        for (u32 j = 0; j < PACK; j++) {
            u32 d = (i * WARP + lane) * PACK + j;
            if (d >= D) continue;
            float key = unpack(v[3 * i + 1], j);
            dot = fmaf(unpack(v[3 * i], j), key, dot);
            value[d] = unpack(v[3 * i + 2], j);
            if (keys) cache.keys[row + d] = from_float<Element>(key);
            if (values) cache.values[row + d] = from_float<Element>(value[d]);
        }
    __syncwarp();
    return scaled(warp_sum(dot));
}

// What the multiplying warps found, each lane its share of the head's values.
struct Found {
    static constexpr u32 SHARE = HALF ? 2 : 1, LANES = CORE_PACK / SHARE; // values of a lane, lanes of a word
    static constexpr u32 PEERS = WARPS <= 8 ? 8 : WARPS <= 16 ? 16 : 32;  // neighbouring lanes, each of which speaks for a warp

    // Merges the first `busy` warps' sums with the newest position, whose value is at `newest` and which counts where `score` is a number, and
    // sends them.
    __device__ static void send(const Block &b, uint4 *words, const float *newest, float score, u32 busy, u32 epoch) {
        float2 span = b.lane % PEERS < busy ? spans()[b.lane % PEERS] : make_float2(MINUS_INFINITY, 0);
        float maximum = lanes_max(fmaxf(score, span.x)), weight = exponential(span.x - maximum), own = exponential(score - maximum);
        float sum_of_weights = weight * span.y;
#pragma unroll
        for (u32 lanes = 1; lanes < PEERS; lanes *= 2) sum_of_weights += __shfl_xor_sync(ALL_LANES, sum_of_weights, lanes);
        sum_of_weights += own;
        float scale = reciprocal(sum_of_weights), level = HALF ? maximum + __logf(sum_of_weights) : sum_of_weights;
        for (u32 from = (b.warp - WARPS) * WARP; from < D / SHARE; from += FINISHERS * WARP) {
            u32 place = from + b.lane;
            bool inside = place < D / SHARE;
            float value[SHARE] = {};
#pragma unroll
            for (u32 i = 0; i < SHARE; i++)
                if (inside && score > MINUS_INFINITY) value[i] = own * newest[place * SHARE + i];
#pragma unroll
            for (u32 w = 0; w < WARPS; w++) {
                float share = __shfl_sync(ALL_LANES, weight, w);
#pragma unroll
                for (u32 i = 0; i < SHARE; i++)
                    if (inside && w < busy) value[i] = fmaf(share, core_sums(w)[place * SHARE + i], value[i]);
            }
            u32 mine = HALF ? pack(value[0] * scale, value[SHARE - 1] * scale) : __float_as_uint(value[0] * scale);
            u32 other = __shfl_xor_sync(ALL_LANES, mine, 1), second = HALF ? b.lane % 2 == 0 ? other : mine : __float_as_uint(maximum);
            if (HALF && b.lane % 2 == 1) mine = other;
            if (!inside) continue;
#pragma unroll
            for (u32 copy = 0; copy < REPLICAS; copy += LANES)
                ::send(words + (copy + b.lane % LANES) * COPY_WORDS + place / LANES, mine, second, __float_as_uint(level), epoch);
        }
    }
};

// A finishing warp's part: takes in the newest position where it belongs to the block's piece.
__device__ inline void finish_attention(Block &b, u32 &task_count, const Cache &cache, u32 past, u32 epoch) {
    b.forget();
    for (u32 task = b.block; task < TASKS; task += BLOCKS) {
        u32 head = task / SPLITS, piece = task % SPLITS, finisher = b.warp - WARPS;
        if (piece >= pieces(past)) continue;
        float *newest = core_sums(b.warp), score = MINUS_INFINITY;
        if (past / KEYS % SPLITS == piece) {
            const uint4 *words = words_at(b.g.exchange, AT_QKV, epoch, 0) + head * 3 * HEAD_WORDS;
            score = newest_position(newest, words, epoch, cache, (u64(head) * CONTEXT + past) * D, finisher == 0, finisher == 1, b.lane);
        }
        uint4 *words = words_at(b.g.exchange, AT_CORE, epoch, 0) + piece * CORE_WORDS + head * (D / CORE_PACK);
        barrier_wait(CORE_FULL, task_count % 2);
        Found::send(b, words, newest, score, busy_warps(past, piece), epoch);
        __syncwarp();
        if (b.lane == 0) barrier_arrive(CORE_FREE);
        task_count++;
    }
}

// Attention's result as input of the output projection, its pieces merged.
struct FromCore {
    const uint4 *words;
    u32 epoch, pieces;
    static constexpr u32 WORDS = divide_up(groups_max(C) * GROUP / CORE_PACK, WARP), AT_ONCE = HALF ? WORDS : 1; // of a lane

    __device__ void operator()(const Block &b, Slice slice, const char *) const {
        u32 first = slice.from / CORE_PACK, count = (slice.to - slice.from) / CORE_PACK;
#pragma unroll
        for (u32 start = 0; start < WORDS; start += AT_ONCE) {
            const uint4 *at[SPLITS * AT_ONCE];
            uint4 v[SPLITS * AT_ONCE];
#pragma unroll
            for (u32 i = 0; i < SPLITS * AT_ONCE; i++)
                at[i] = words + i / AT_ONCE * CORE_WORDS + first + smaller((start + i % AT_ONCE) * WARP + b.lane, larger(count, 1) - 1);
            receive(v, at, epoch, pieces * AT_ONCE);
#pragma unroll
            for (u32 i = 0; i < AT_ONCE; i++) {
                u32 word = (start + i) * WARP + b.lane;
                float value[CORE_PACK];
                merge(value, v, i);
                if (word >= count) continue;
                if constexpr (HALF) put2(b.input(), word * 4, value[0], value[1]), put2(b.input(), word * 4 + 2, value[2], value[3]);
                else reinterpret_cast<float *>(b.input())[word] = value[0];
            }
        }
    }

    // The values of word `i` of the lane's words.
    __device__ void merge(float (&value)[CORE_PACK], const uint4 (&v)[SPLITS * AT_ONCE], u32 i) const {
        float maximum = MINUS_INFINITY, sum = 0;
#pragma unroll
        for (u32 p = 0; p < SPLITS; p++)
            if (p < pieces) maximum = fmaxf(maximum, __uint_as_float(HALF ? v[p * AT_ONCE + i].z : v[p * AT_ONCE + i].y));
#pragma unroll
        for (u32 j = 0; j < CORE_PACK; j++) value[j] = 0;
#pragma unroll
        for (u32 p = 0; p < SPLITS; p++) {
            const uint4 &word = v[p * AT_ONCE + i];
            if (p >= pieces) continue;
            float weight = exponential(__uint_as_float(HALF ? word.z : word.y) - maximum) * (HALF ? 1.0f : __uint_as_float(word.z));
            sum += weight;
#pragma unroll
            for (u32 j = 0; j < CORE_PACK; j++) value[j] = fmaf(weight, unpack(word, j), value[j]);
        }
#pragma unroll
        for (u32 j = 0; j < CORE_PACK; j++) value[j] *= reciprocal(sum);
    }
};
