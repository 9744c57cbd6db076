// A layer's matrices: the multiplying warps, each with its columns, and the finishing warps that add up, finish and send.
//
// Both go through the same passes of up to PASS_ROWS rows. A pass leaves its sums in one of two places in turn; barriers say when one is full
// and when it is free again.
#pragma once
#include "gelu.cu"
#include "grid_exchange.cuh"
#include "grid_tile.cuh"

constexpr u32 PASS_ROWS = 48, FINISHER_ROWS = PASS_ROWS / FINISHERS; // a finisher's rows are whole words
__device__ constexpr u32 pass_rows(Stage s) { return smaller(PASS_ROWS, divide_up(rows_max(s), TILE_ROWS) * TILE_ROWS); }
constexpr u32 PARTIAL_ROWS = larger(larger(larger(pass_rows(QKV), pass_rows(OUT)), larger(pass_rows(UP), pass_rows(DOWN))), pass_rows(HEAD));
constexpr u32 ROW_SUMS = WARPS + 4, KIND_SUMS = PARTIAL_ROWS * ROW_SUMS, PARTIAL_SUMS = 3 * KIND_SUMS;
constexpr u32 INPUT_BYTES = larger(larger(steps_max(C) * 64, steps_max(F) * step_bytes(DOWN)), D * 4);

// A block's shared memory, and where it stands in the sequence of passes, slots and norms: the same for all warps.
struct Block {
    const GridArguments &g;
    Ring ring;
    char *inputs;       // [WARPS][INPUT_BYTES]
    float *partial;     // [2][3][PARTIAL_ROWS][ROW_SUMS]
    float2 *statistics; // [2][WARPS]: mean of a warp's columns, and the sum of squares around it
    float *residual;    // [rows_max(OUT)]: the block's own rows of the residual stream
    u64 *partial_full, *partial_free;
    u32 block, warp, lane, slot_count = 0, norm_count = 0, pass_count = 0;

    // What follows from the block's and the lane's number is worked out again from here on: kept in registers for every stage, it would
    // not fit.
    __device__ void forget() { asm volatile("" : "+r"(block), "+r"(warp), "+r"(lane)); }

    __device__ float *place() const { return partial + pass_count % 2 * PARTIAL_SUMS; }
    // Moves past a stage of `rows` rows.
    template <Stage S> __device__ void advance(u32 rows) {
        slot_count += divide_up(rows, slot_rows(S));
        if (normed(S) && rows > 0) norm_count++;
    }
};

// What a lane adds to the statistics of its warp's columns: sums of x - shift and of its square.
struct Spread {
    float shift, sum, square;

    // Mean, and sum of squares around it, of the warp's `count` columns.
    __device__ float2 statistics(float count) const {
        float total = warp_sum(sum), squares = warp_sum(square), mean = count > 0 ? total / count : 0.0f;
        return make_float2(shift + mean, fmaxf(squares - total * mean, 0.0f));
    }
};

// The residual stream as input, from the words that finishers sent or, where `words` is null, from the embedding.
template <Stage S> struct FromResidual {
    const uint4 *words;
    u32 epoch;
    const Element *token, *position;
    static constexpr u32 COUNT = divide_up(steps_max(C) * STEP / WIDE + 2, WARP);

    // Puts the warp's columns, times the norm's weight, in their places.
    __device__ Spread operator()(char *input, Slice slice, const Element *weight, u32 lane) const {
        u32 from = slice.first * STEP, to = from + slice.count * STEP, first = from / WIDE + lane;
        float scale[COUNT][WIDE], x[COUNT][WIDE];
#pragma unroll
        for (u32 i = 0; i < COUNT; i++)
#pragma unroll
            for (u32 j = 0; j < WIDE; j++) scale[i][j] = to_float(weight[smaller((first + i * WARP) * WIDE + j, C - 1)]);
        read(x, first, (larger(to, from + 1) - 1) / WIDE);
        Spread spread = {__shfl_sync(ALL_LANES, x[0][0], 0), 0, 0};
#pragma unroll
        for (u32 i = 0; i < COUNT; i++)
#pragma unroll
            for (u32 j = 0; j < WIDE; j++) {
                u32 column = (first + i * WARP) * WIDE + j;
                if (column < from || column >= to) continue;
                put<S>(input, column - from, x[i][j] * scale[i][j]);
                float centred = x[i][j] - spread.shift;
                spread.sum += centred, spread.square = fmaf(centred, centred, spread.square);
            }
        return spread;
    }

    __device__ void read(float (&x)[COUNT][WIDE], u32 first, u32 last) const {
        if (words == nullptr) {
#pragma unroll
            for (u32 i = 0; i < COUNT; i++)
#pragma unroll
                for (u32 j = 0; j < WIDE; j++) {
                    u32 column = smaller(smaller(first + i * WARP, last) * WIDE + j, C - 1);
                    x[i][j] = to_float(token[column]) + to_float(position[column]);
                }
            return;
        }
        const uint4 *at[COUNT];
        uint4 v[COUNT];
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) at[i] = words + smaller(first + i * WARP, last);
        receive(v, at, epoch);
#pragma unroll
        for (u32 i = 0; i < COUNT; i++)
            x[i][0] = __uint_as_float(v[i].x), x[i][1] = __uint_as_float(v[i].y), x[i][2] = __uint_as_float(v[i].z);
    }
};

// The MLP's activations as input.
struct FromHidden {
    const uint4 *words;
    u32 epoch;
    static constexpr u32 COUNT = divide_up(steps_max(F) * STEP / PACK + 2, WARP);

    __device__ Spread operator()(char *input, Slice slice, const Element *, u32 lane) const {
        u32 from = slice.first * STEP, to = from + slice.count * STEP, first = from / PACK + lane;
        const uint4 *at[COUNT];
        uint4 v[COUNT];
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) at[i] = words + smaller(first + i * WARP, (larger(to, from + 1) - 1) / PACK);
        receive(v, at, epoch);
#pragma unroll
        for (u32 i = 0; i < COUNT; i++)
#pragma unroll
            for (u32 j = 0; j < PACK; j += HALF ? 2 : 1) {
                u32 column = (first + i * WARP) * PACK + j;
                if (column < from || column >= to) continue;
                if constexpr (HALF) put2<DOWN>(input, column - from, unpack(v[i], j), unpack(v[i], j + 1));
                else put<DOWN>(input, column - from, unpack(v[i], j));
            }
        return {};
    }
};

// Slots `from` to `to` of the stage: one lane waits for each.
__device__ inline void await_slots(const Block &b, u32 from, u32 to) {
    for (u32 s = b.slot_count + from + b.lane; s < b.slot_count + to; s += WARP)
        barrier_wait(b.ring.full + s % b.ring.length, s / b.ring.length % 2);
    __syncwarp();
}
__device__ inline void release_slots(const Block &b, u32 from, u32 to) {
    __syncwarp();
    for (u32 s = b.slot_count + from + b.lane; s < b.slot_count + to; s += WARP) barrier_arrive(b.ring.read + s % b.ring.length);
}

// The warp's columns of the tile whose first row is `row`.
template <Stage S, u32 STEPS> __device__ void load_tile(const Block &b, typename Tile<Element>::Weights (&w)[STEPS], u32 row, Slice slice) {
    const char *at = b.ring.template row<S>(b.slot_count, row + b.lane % TILE_ROWS);
#pragma unroll
    for (u32 i = 0; i + 1 < STEPS; i += 2) Tile<Element>::template load<2>(w + i, at, (slice.first + i) * STEP, b.lane);
    if (STEPS % 2) Tile<Element>::template load<1>(w + STEPS - 1, at, (slice.first + STEPS - 1) * STEP, b.lane);
}

// The sums of all tiles from weights in registers. A lone tile is summed in four parts, so that no chain is long.
template <Stage S, u32 TILES, u32 STEPS>
__device__ void multiply_held(Tile<Element> (&tile)[TILES], const typename Tile<Element>::Weights (&held)[TILES][STEPS], const char *input,
                              const char *norm, Slice slice, u32 lane) {
    constexpr u32 PARTS = TILES == 1 ? 4 : TILES == 2 ? 2 : 1;
    Tile<Element> part[PARTS][TILES];
#pragma unroll
    for (u32 i = 0; i < STEPS; i++) {
        if (i >= slice.count) continue;
        auto in = Tile<Element>::template input<S>(input, norm, (slice.first + i) * STEP, i, lane);
#pragma unroll
        for (u32 t = 0; t < TILES; t++) part[i % PARTS][t].template add<S>(in, held[t][i]);
    }
#pragma unroll
    for (u32 t = 0; t < TILES; t++) {
        tile[t] = part[0][t];
#pragma unroll
        for (u32 p = 1; p < PARTS; p++) tile[t].join(part[p][t]);
    }
}

// The sums of one tile straight from the ring, whose slots are given back.
template <Stage S>
__device__ void multiply_ring(const Block &b, Tile<Element> &tile, u32 row, u32 rows, const char *input, const char *norm, Slice slice) {
    constexpr u32 STEPS = steps_max(inputs(S));
    u32 from = row / slot_rows(S), to = divide_up(smaller(row + TILE_ROWS, rows), slot_rows(S));
    await_slots(b, from, to);
    const char *at = b.ring.template row<S>(b.slot_count, row + b.lane % TILE_ROWS);
    Tile<Element> part[2];
#pragma unroll
    for (u32 i = 0; i < STEPS; i += 2) {
        typename Tile<Element>::Weights w[2];
        u32 k = (slice.first + i) * STEP;
        if (i + 1 < slice.count) Tile<Element>::template load<2>(w, at, k, b.lane);
        else if (i < slice.count) Tile<Element>::template load<1>(w, at, k, b.lane);
#pragma unroll
        for (u32 j = 0; j < 2 && i + j < STEPS; j++)
            if (i + j < slice.count) part[j].template add<S>(Tile<Element>::template input<S>(input, norm, k + j * STEP, i + j, b.lane), w[j]);
    }
    release_slots(b, from, to);
    tile = part[0];
    tile.join(part[1]);
}

// A multiplying warp's part of a stage. The weights wait in registers for the input where they fit.
template <Stage S, typename From> __device__ void multiply(Block &b, const From &from) {
    typedef Tile<Element> T;
    constexpr u32 STEPS = steps_max(inputs(S)), TILES = pass_rows(S) / TILE_ROWS;
    constexpr bool HELD = rows_max(S) <= PASS_ROWS && divide_up(rows_max(S), slot_rows(S)) <= 8 &&
                          TILES * STEPS * sizeof(typename T::Weights) <= 128;
    b.forget();
    u32 rows = rows_of(S, b.block);
    if (rows == 0) return;
    char *input = b.inputs + b.warp * INPUT_BYTES;
    const char *norm = b.ring.norm(b.norm_count);
    Slice slice(inputs(S), b.warp);
    typename T::Weights held[HELD ? TILES : 1][STEPS];
    if constexpr (HELD) {
        u32 slots = divide_up(rows, slot_rows(S));
        await_slots(b, 0, slots);
#pragma unroll
        for (u32 t = 0; t < TILES; t++) load_tile<S>(b, held[t], t * TILE_ROWS, slice);
        release_slots(b, 0, slots);
    }
    if (normed(S)) barrier_wait(b.ring.norm_full + b.norm_count % 2, b.norm_count / 2 % 2);
    Spread spread = from(input, slice, reinterpret_cast<const Element *>(norm), b.lane);
    __syncwarp();
    for (u32 first = 0; first < rows; first += PASS_ROWS, b.pass_count++) {
        T tile[TILES];
        if constexpr (HELD) {
            multiply_held<S>(tile, held, input, norm, slice, b.lane);
        } else {
#pragma unroll
            for (u32 t = 0; t < TILES; t++)
                if (first + t * TILE_ROWS < rows) multiply_ring<S>(b, tile[t], first + t * TILE_ROWS, rows, input, norm, slice);
        }
        u32 place = b.pass_count % 2;
        barrier_wait(b.partial_free + place, b.pass_count / 2 % 2 ^ 1);
#pragma unroll
        for (u32 t = 0; t < TILES; t++)
            tile[t].template store<S, KIND_SUMS, ROW_SUMS>(b.place() + t * TILE_ROWS * ROW_SUMS + b.warp, b.lane);
        if (normed(S)) {
            float2 statistics = spread.statistics(slice.count * STEP);
            if (b.lane == 0) b.statistics[place * WARPS + b.warp] = statistics;
        }
        __syncwarp();
        if (b.lane == 0) barrier_arrive(b.partial_full + place);
    }
    if (normed(S) && b.lane == 0) barrier_arrive(b.ring.norm_read + b.norm_count % 2);
    b.template advance<S>(rows);
}

// The sum over all warps of a row's sums.
__device__ inline float total(const float *at) {
    float4 sum = load4(at);
#pragma unroll
    for (u32 w = 4; w < WARPS; w += 4) {
        float4 next = load4(at + w);
        sum = make_float4(sum.x + next.x, sum.y + next.y, sum.z + next.z, sum.w + next.w);
    }
    return (sum.x + sum.y) + (sum.z + sum.w);
}

// A row's product with the input, normalised where the stage is.
template <Stage S> __device__ float row_sum(const Block &b, const float *at, const float2 *statistics) {
    float sum = total(at);
    if constexpr (!normed(S)) return sum;
    float weights = total(at + KIND_SUMS), biases = total(at + 2 * KIND_SUMS), mean = 0, square = 0;
    float2 part[WARPS];
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) {
        part[w] = statistics[w];
        mean = fmaf(part[w].x, Slice(C, w).count * STEP, mean);
    }
    mean /= C;
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) {
        float away = part[w].x - mean;
        square += fmaf(away * away, Slice(C, w).count * STEP, part[w].y);
    }
    float variance = square / C + b.g.eps, scale = rsqrtf(variance);
    scale = fmaf(0.5f * scale, fmaf(-variance * scale, scale, 1.0f), scale);
    return fmaf(fmaf(-mean, weights, sum), scale, biases);
}

// What a finishing warp does with the sums: result(row, sum) for each of the block's rows, row counted within the block, a lane each, in all
// lanes, and with `valid` false where there is no such row.
template <Stage S, typename Result> __device__ void finish(Block &b, Result &&result) {
    b.forget();
    u32 rows = rows_of(S, b.block), finisher = b.warp - WARPS;
    for (u32 first = 0; first < rows; first += PASS_ROWS, b.pass_count++) {
        u32 local = finisher * FINISHER_ROWS + b.lane, row = first + local, place = b.pass_count % 2;
        bool valid = b.lane < FINISHER_ROWS && row < rows;
        result.prepare(row, valid);
        barrier_wait(b.partial_full + place, b.pass_count / 2 % 2);
        float sum = 0;
        if (valid) sum = row_sum<S>(b, b.place() + local * ROW_SUMS, b.statistics + place * WARPS);
        __syncwarp();
        if (b.lane == 0) barrier_arrive(b.partial_free + place);
        result(row, sum, valid);
    }
    b.template advance<S>(rows);
}
