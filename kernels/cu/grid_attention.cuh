// Attention of one token: tasks of a head and a piece of its cache, dealt to the blocks.
//
// Group g of KEYS positions belongs to piece g % SPLITS, and there to warp g / SPLITS % WARPS: always to the same block, which also writes it.
// A multiplying warp has its group's keys and values in registers before the query comes. The newest position comes with the query in the
// exchange; finishing warps take it in, write it to the cache, and merge what the warps found. Consumers merge the pieces (FromCore).
#pragma once
#include "grid_product.cuh"

constexpr u32 VECTOR = 16 / sizeof(Element), VECTORS = D / VECTOR;             // elements of a load; loads of a row
__device__ constexpr u32 power_above(u32 n) { return n <= 4 ? 4 : n <= 8 ? 8 : n <= 16 ? 16 : 32; }
constexpr u32 ROW_LANES = power_above(VECTORS), ROWS_AT_ONCE = WARP / ROW_LANES; // lanes that share a row of values
constexpr u32 KEYS = ROW_LANES <= (HALF ? 16 : 8) ? 16 : 8, KEY_LANES = WARP / KEYS; // of a group; lanes that share a key
constexpr u32 KEY_LOADS = divide_up(VECTORS, KEY_LANES), VALUE_LOADS = KEYS / ROWS_AT_ONCE;
constexpr u32 TASKS = H * SPLITS;
static_assert(D % VECTOR == 0 && VECTORS <= 32, "heads of whole vectors");

// Pieces that hold a position, with `past` cached ones.
__device__ inline u32 pieces(u32 past) { return smaller(SPLITS, past / KEYS + 1); }
// Warps of a piece that have a cached position.
__device__ inline u32 busy_warps(u32 past, u32 piece) {
    u32 groups = divide_up(past, KEYS);
    return groups <= piece ? 0 : smaller(WARPS, divide_up(groups - piece, SPLITS));
}

__device__ inline float *core_sums(u32 warp) { return shared<float>(AT_CORE_SUMS) + warp * CORE_SUMS; }
__device__ inline float2 *spans() { return shared<float2>(AT_SPANS); }

// The sum of a vector's elements times those at `x`.
__device__ inline float dot_vector(const uint4 &v, const float *x, float sum) {
    if constexpr (HALF) return dot4(unpack4(make_uint2(v.z, v.w)), load4(x + 4), dot4(unpack4(make_uint2(v.x, v.y)), load4(x), sum));
    return dot4(make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w)), load4(x), sum);
}
__device__ inline void add_vector(float (&sum)[VECTOR], float w, const uint4 &v) {
    if constexpr (HALF) {
        float4 a = unpack4(make_uint2(v.x, v.y)), b = unpack4(make_uint2(v.z, v.w));
        float part[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
        for (u32 i = 0; i < VECTOR; i++) sum[i] = fmaf(w, part[i], sum[i]);
    } else {
        float part[4] = {__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w)};
#pragma unroll
        for (u32 i = 0; i < VECTOR; i++) sum[i] = fmaf(w, part[i], sum[i]);
    }
}

// A group of cached rows in registers.
struct Rows {
    uint4 key[KEY_LOADS], value[VALUE_LOADS];

    __device__ void load(const Layer &layer, u32 head, u32 first, u32 past, u32 lane) {
        u32 row = first + lane / KEY_LANES;
        const Element *keys = layer.keys + u64(head) * CONTEXT * D, *values = layer.values + u64(head) * CONTEXT * D;
#pragma unroll
        for (u32 i = 0; i < KEY_LOADS; i++) {
            u32 vector = i * KEY_LANES + lane % KEY_LANES;
            key[i] = row < past && vector < VECTORS ? __ldcg(reinterpret_cast<const uint4 *>(keys + u64(row) * D) + vector) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (u32 i = 0; i < VALUE_LOADS; i++) {
            u32 row = first + i * ROWS_AT_ONCE + lane / ROW_LANES, vector = lane % ROW_LANES;
            value[i] =
                row < past && vector < VECTORS ? __ldcg(reinterpret_cast<const uint4 *>(values + u64(row) * D) + vector) : make_uint4(0, 0, 0, 0);
        }
    }
    // The score of the lane's key.
    __device__ float score(const float *query, u32 lane) const {
        float sum = 0;
#pragma unroll
        for (u32 i = 0; i < KEY_LOADS; i++) {
            u32 vector = i * KEY_LANES + lane % KEY_LANES;
            if (VECTORS % KEY_LANES == 0 || vector < VECTORS) sum = dot_vector(key[i], query + vector * VECTOR, sum);
        }
#pragma unroll
        for (u32 lanes = 1; lanes < KEY_LANES; lanes *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, lanes);
        return sum;
    }
};

// The scores' factor in two floats: the exponent of a large score keeps what one would round away.
__device__ inline float scaled(float x) {
    const double exact = 1.0 / sqrt(double(D));
    const float high = float(exact), low = float(exact - high);
    return fmaf(x, high, x * low);
}

// e^x; the fast one's error, 2^-22 of x, is nothing to bf16.
__device__ inline float exponential(float x) { return HALF ? __expf(x) : expf(x); }

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
__device__ inline void attend(Block &b, u32 &task_count, const Layer &layer, u32 past, u32 epoch) {
    b.forget();
    for (u32 task = b.block; task < TASKS; task += BLOCKS) {
        u32 head = task / SPLITS, piece = task % SPLITS, first = (b.warp * SPLITS + piece) * KEYS;
        if (piece >= pieces(past)) continue;
        if (first < past) {
            Rows rows;
            float maximum = MINUS_INFINITY, sum_of_weights = 0, sum[VECTOR] = {};
            const float *query = b.query();
            for (u32 start = first; start < past; start += WARPS * SPLITS * KEYS) {
                rows.load(layer, head, start, past, b.lane);
                if (start == first) receive_head(b.query(), words_at(b.g.exchange, AT_QKV, epoch, 0) + head * 3 * HEAD_WORDS, epoch, b.lane);
                float x = scaled(rows.score(query, b.lane)), before = maximum; // all lanes add up the scores
                if (start + b.lane / KEY_LANES >= past) x = MINUS_INFINITY;
                maximum = fmaxf(before, warp_max(x));
                float weight = exponential(x - maximum), fade = exponential(before - maximum);
                sum_of_weights = fmaf(sum_of_weights, fade, weight);
#pragma unroll
                for (u32 i = 0; i < VECTOR; i++) sum[i] *= fade;
#pragma unroll
                for (u32 i = 0; i < VALUE_LOADS; i++)
                    add_vector(sum, __shfl_sync(ALL_LANES, weight, (i * ROWS_AT_ONCE + b.lane / ROW_LANES) * KEY_LANES), rows.value[i]);
            }
            sum_of_weights = warp_sum(sum_of_weights) / KEY_LANES;
#pragma unroll
            for (u32 lanes = ROW_LANES; lanes < WARP; lanes *= 2)
#pragma unroll
                for (u32 i = 0; i < VECTOR; i++) sum[i] += __shfl_xor_sync(ALL_LANES, sum[i], lanes);
            barrier_wait(CORE_FREE, task_count % 2 ^ 1);
            if (b.lane < VECTORS)
#pragma unroll
                for (u32 i = 0; i < VECTOR; i += 4)
                    *reinterpret_cast<float4 *>(core_sums(b.warp) + b.lane * VECTOR + i) =
                        make_float4(sum[i], sum[i + 1], sum[i + 2], sum[i + 3]);
            if (b.lane == 0) spans()[b.warp] = make_float2(maximum, sum_of_weights);
            __syncwarp();
        }
        barrier_wait(CORE_FREE, task_count % 2 ^ 1); // no warp may arrive twice before the others have
        if (b.lane == 0) barrier_arrive(CORE_FULL);
        task_count++;
    }
}

// Takes in the newest position: its key and value go to row `row` of the cache, the value also to `value`, shared memory. Its score.
__device__ inline float newest_position(float *value, const uint4 *words, u32 epoch, const Layer &layer, u64 row, bool keys, bool values, u32 lane) {
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
            if (keys) layer.keys[row + d] = from_float<Element>(key);
            if (values) layer.values[row + d] = from_float<Element>(value[d]);
        }
    __syncwarp();
    return scaled(warp_sum(dot));
}

// What `combine` makes of the values of PEERS neighbouring lanes, each of which speaks for a multiplying warp.
constexpr u32 PEERS = WARPS <= 8 ? 8 : WARPS <= 16 ? 16 : 32;
template <typename Combine> __device__ float across_peers(float x, Combine combine) {
#pragma unroll
    for (u32 lanes = 1; lanes < PEERS; lanes *= 2) x = combine(x, __shfl_xor_sync(ALL_LANES, x, lanes));
    return x;
}

// A finishing warp's part: merges the warps' sums, and the newest position where it belongs to the block's piece, and sends them.
__device__ inline void finish_attention(Block &b, u32 &task_count, const Layer &layer, u32 past, u32 epoch) {
    constexpr u32 LANE_VALUES = PACK / 3, WARP_WORDS = 10;
    b.forget();
    for (u32 task = b.block; task < TASKS; task += BLOCKS) {
        u32 head = task / SPLITS, piece = task % SPLITS, finisher = b.warp - WARPS, busy = busy_warps(past, piece);
        if (piece >= pieces(past)) continue;
        float *newest = core_sums(b.warp), score = MINUS_INFINITY;
        if (past / KEYS % SPLITS == piece) {
            const uint4 *words = words_at(b.g.exchange, AT_QKV, epoch, 0) + head * 3 * HEAD_WORDS;
            score = newest_position(newest, words, epoch, layer, (u64(head) * CONTEXT + past) * D, finisher == 0, finisher == 1, b.lane);
        }
        barrier_wait(CORE_FULL, task_count % 2);
        float2 span = b.lane % PEERS < busy ? spans()[b.lane % PEERS] : make_float2(MINUS_INFINITY, 0);
        float maximum = fmaxf(score, across_peers(span.x, [](float x, float y) { return fmaxf(x, y); }));
        float weight = exponential(span.x - maximum), own = exponential(score - maximum);
        float sum_of_weights = own + across_peers(weight * span.y, [](float x, float y) { return x + y; }), scale = 1 / sum_of_weights;
        uint4 *words = words_at(b.g.exchange, AT_CORE, epoch, 0) + task * TASK_WORDS;
        for (u32 from = finisher * WARP_WORDS; from < HEAD_WORDS; from += FINISHERS * WARP_WORDS) {
            u32 word = from + b.lane / 3, d = word * PACK + b.lane % 3 * LANE_VALUES;
            bool inside = b.lane < 3 * WARP_WORDS && word < HEAD_WORDS && d < D;
            float value[2] = {};
#pragma unroll
            for (u32 i = 0; i < LANE_VALUES; i++)
                if (inside && score > MINUS_INFINITY) value[i] = own * newest[d + i];
#pragma unroll
            for (u32 w = 0; w < WARPS; w++) {
                float share = __shfl_sync(ALL_LANES, weight, w);
#pragma unroll
                for (u32 i = 0; i < LANE_VALUES; i++)
                    if (inside && w < busy) value[i] = fmaf(share, core_sums(w)[d + i], value[i]);
            }
            u32 mine = HALF ? pack(value[0] * scale, value[1] * scale) : __float_as_uint(value[0] * scale);
            send_lanes<3>(words + word, mine, b.lane < 3 * WARP_WORDS && word < HEAD_WORDS, epoch, true, b.lane);
        }
        if (SPLITS > 1 && finisher == 0 && b.lane < REPLICAS)
            send(words + b.lane * COPY_WORDS + HEAD_WORDS, __float_as_uint(maximum), __float_as_uint(sum_of_weights), 0, epoch);
        __syncwarp();
        if (b.lane == 0) barrier_arrive(CORE_FREE);
        task_count++;
    }
}

// Attention's result as input of the output projection, its pieces merged.
struct FromCore {
    const uint4 *words;
    u32 epoch, pieces;
    static constexpr u32 COUNT = divide_up(steps_max(C) * STEP / PACK + 2 + steps_max(C) * STEP / D + 1, WARP);

    __device__ static u32 number(u32 column) { return column / D * HEAD_WORDS + column % D / PACK; }

    __device__ Spread operator()(const Block &b, Slice slice, const char *) const {
        u32 lane = b.lane;
        char *input = b.input();
        u32 from = slice.first * STEP, to = from + slice.count * STEP;
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) {
            u32 word = smaller(number(from) + i * WARP + lane, number(larger(to, from + 1) - 1)), column = word / HEAD_WORDS * D + word % HEAD_WORDS * PACK;
            const uint4 *at = words + word / HEAD_WORDS * SPLITS * TASK_WORDS;
            float value[PACK];
            merge(value, at, word % HEAD_WORDS);
#pragma unroll
            for (u32 j = 0; j < PACK; j += HALF ? 2 : 1) {
                u32 c = column + j;
                if (c < from || c >= to || word % HEAD_WORDS * PACK + j >= D) continue;
                if constexpr (HALF) put2(input, c - from, value[j], value[j + 1]);
                else reinterpret_cast<float *>(input)[c - from] = value[j];
            }
        }
        return {};
    }

    __device__ void merge(float (&value)[PACK], const uint4 *head, u32 place) const {
        const uint4 *at[2 * SPLITS];
        uint4 v[2 * SPLITS];
#pragma unroll
        for (u32 p = 0; p < SPLITS; p++) at[2 * p] = head + p * TASK_WORDS + place, at[2 * p + 1] = head + p * TASK_WORDS + HEAD_WORDS;
        receive(v, at, epoch, SPLITS == 1 ? 1 : 2 * pieces);
        float maximum = MINUS_INFINITY, sum = 0;
        if (SPLITS > 1) {
#pragma unroll
            for (u32 p = 0; p < SPLITS; p++)
                if (p < pieces) maximum = fmaxf(maximum, __uint_as_float(v[2 * p + 1].x));
        }
#pragma unroll
        for (u32 j = 0; j < PACK; j++) value[j] = SPLITS > 1 ? 0 : unpack(v[0], j);
        if (SPLITS == 1) return;
#pragma unroll
        for (u32 p = 0; p < SPLITS; p++) {
            if (p >= pieces) continue;
            float weight = exponential(__uint_as_float(v[2 * p + 1].x) - maximum) * __uint_as_float(v[2 * p + 1].y);
            sum += weight;
#pragma unroll
            for (u32 j = 0; j < PACK; j++) value[j] = fmaf(weight, unpack(v[2 * p], j), value[j]);
        }
#pragma unroll
        for (u32 j = 0; j < PACK; j++) value[j] *= 1 / sum;
    }
};
