// A layer's matrices: the multiplying warps, each with its columns, and the finishing warps that add up, finish and send.
//
// Both go through the same passes of up to PASS_ROWS rows. A pass leaves its sums in one of two places in turn; barriers say when one is full
// and when it is free again.
#pragma once
#include "gelu.cu"
#include "grid_exchange.cuh"
#include "grid_tile.cuh"

// Who a warp is, and where it stands in the sequence of passes, slots and norms, the same for all warps.
struct Block {
    const GridArguments &g;
    u32 block, warp, lane, slot_count = 0, norm_count = 0, pass_count = 0;

    // What follows from the block's and the lane's number is worked out again from here on: kept in registers for every stage, it would
    // not fit.
    __device__ void forget() { asm volatile("" : "+r"(block), "+r"(warp), "+r"(lane)); }
    __device__ float *sums() const { return shared<float>(AT_PARTIAL) + pass_count % 2 * PARTIAL_SUMS; }
    __device__ float2 *statistics() const { return shared<float2>(AT_STATISTICS) + pass_count % 2 * WARPS; }
    __device__ char *input() const { return shared<char>(AT_INPUTS) + warp * INPUT_BYTES; }
    __device__ float *query() const { return shared<float>(AT_QUERIES) + warp * QUERY_SUMS; }
    // Moves past a stage of `rows` rows.
    template <Stage S> __device__ void advance(u32 rows) {
        slot_count += divide_up(rows, slot_rows(S));
        if (normed(S) && rows > 0) norm_count++;
    }
};

// What a lane adds to the statistics of its warp's columns: sums of x - shift and of its square.
struct Spread {
    float shift, sum, square;

    // Mean, and sum of squares around it, of the warp's columns, 1 / `inverse` of them.
    __device__ float2 statistics(float inverse) const {
        float total = warp_sum(sum), squares = warp_sum(square), mean = total * inverse;
        return make_float2(shift + mean, fmaxf(squares - total * mean, 0.0f));
    }
};

// Where a warp's columns begin and end, and which words of COUNT columns they lie in.
template <u32 COLUMNS, u32 COUNT> struct Span {
    u32 from, to, first, last;
    static constexpr bool WHOLE = COLUMNS / STEP % WARPS == 0 && COLUMNS / WARPS % COUNT == 0; // no word is shared
    static constexpr u32 WORDS = divide_up(WHOLE ? COLUMNS / WARPS / COUNT : (steps_max(COLUMNS) * STEP + COUNT - 2) / COUNT + 1, WARP); // a lane
    __device__ Span(Slice slice, u32 lane)
        : from(slice.first * STEP), to(from + slice.count * STEP), first(from / COUNT + lane), last((larger(to, from + 1) - 1) / COUNT) {}
    __device__ bool has(u32 column) const { return (WHOLE || column >= from) && column < to; }
};

// The residual stream as input, from the words that finishers sent or, where `words` is null, from the embedding.
template <Stage S> struct FromResidual {
    const uint4 *words;
    u32 epoch;
    const Element *token, *position;
    typedef Span<C, WIDE> Columns;

    // Puts the warp's columns, times the norm's weight, in their places.
    __device__ Spread operator()(const Block &b, Slice slice, const char *norm) const {
        const Element *weight = reinterpret_cast<const Element *>(norm);
        Columns columns(slice, b.lane);
        float scale[Columns::WORDS][WIDE], x[Columns::WORDS][WIDE];
        if constexpr (HALF) arrange_norm(b.input(), norm, columns.from, slice.count, b.lane);
#pragma unroll
        for (u32 i = 0; i < Columns::WORDS; i++)
#pragma unroll
            for (u32 j = 0; j < WIDE; j++) scale[i][j] = to_float(weight[smaller((columns.first + i * WARP) * WIDE + j, C - 1)]);
        read(x, columns);
        Spread spread = {__shfl_sync(ALL_LANES, x[0][0], 0), 0, 0};
        float *to = HALF ? b.query() : reinterpret_cast<float *>(b.input());
#pragma unroll
        for (u32 i = 0; i < Columns::WORDS; i++)
#pragma unroll
            for (u32 j = 0; j < WIDE; j++) {
                u32 column = (columns.first + i * WARP) * WIDE + j;
                bool inside = columns.has(column);
                if (inside) to[column - columns.from] = x[i][j] * scale[i][j];
                float centred = inside ? x[i][j] - spread.shift : 0.0f;
                spread.sum += centred, spread.square = fmaf(centred, centred, spread.square);
            }
        if constexpr (HALF) {
            __syncwarp();
            arrange(b.input(), to, slice.count, b.lane);
        }
        return spread;
    }

    __device__ void read(float (&x)[Columns::WORDS][WIDE], const Columns &columns) const {
        if (words == nullptr) {
#pragma unroll
            for (u32 i = 0; i < Columns::WORDS; i++)
#pragma unroll
                for (u32 j = 0; j < WIDE; j++) {
                    u32 column = smaller(smaller(columns.first + i * WARP, columns.last) * WIDE + j, C - 1);
                    x[i][j] = to_float(token[column]) + to_float(position[column]);
                }
            return;
        }
        const uint4 *at[Columns::WORDS];
        uint4 v[Columns::WORDS];
#pragma unroll
        for (u32 i = 0; i < Columns::WORDS; i++) at[i] = words + smaller(columns.first + i * WARP, columns.last);
        receive(v, at, epoch);
#pragma unroll
        for (u32 i = 0; i < Columns::WORDS; i++)
            x[i][0] = __uint_as_float(v[i].x), x[i][1] = __uint_as_float(v[i].y), x[i][2] = __uint_as_float(v[i].z);
    }
};

// The MLP's activations as input.
struct FromHidden {
    const uint4 *words;
    u32 epoch;
    typedef Span<F, PACK> Columns;

    __device__ Spread operator()(const Block &b, Slice slice, const char *) const {
        Columns columns(slice, b.lane);
        const uint4 *at[Columns::WORDS];
        uint4 v[Columns::WORDS];
        char *input = b.input() + AT_WIDE_INPUT;
#pragma unroll
        for (u32 i = 0; i < Columns::WORDS; i++) at[i] = words + smaller(columns.first + i * WARP, columns.last);
        receive(v, at, epoch);
#pragma unroll
        for (u32 i = 0; i < Columns::WORDS; i++)
#pragma unroll
            for (u32 j = 0; j < 3; j++) { // a pair, or a float
                u32 column = (columns.first + i * WARP) * PACK + j * (PACK / 3), c = column - columns.from;
                u32 value = j == 0 ? v[i].x : j == 1 ? v[i].y : v[i].z;
                if (columns.has(column)) *reinterpret_cast<u32 *>(input + (HALF ? c / STEP * WIDE_STEP_BYTES + c % 8 * 4 + c % STEP / 8 * 4 : c * 4)) = value;
            }
        return {};
    }
};

// Slots `from` to `to` of the stage: a lane waits for each.
__device__ inline void await_slots(const Block &b, u32 from, u32 to) {
    for (u32 s = b.slot_count + from; s < b.slot_count + to; s += WARP)
        barrier_wait(SLOT_FULL + (s + b.lane) % SLOTS, (s + b.lane) / SLOTS % 2, s + b.lane < b.slot_count + to);
}
__device__ inline void release_slots(const Block &b, u32 from, u32 to) {
    __syncwarp();
    for (u32 s = b.slot_count + from + b.lane; s < b.slot_count + to; s += WARP) barrier_arrive(SLOT_READ + s % SLOTS);
}

// The warp's columns of the tile whose first row is `row`.
template <Stage S, u32 STEPS> __device__ void load_tile(const Block &b, typename Tile<Element>::Weights (&w)[STEPS], u32 row, Slice slice) {
    const char *at = slot_row<S>(b.slot_count, row + b.lane % TILE_ROWS);
#pragma unroll
    for (u32 i = 0; i + 1 < STEPS; i += 2) Tile<Element>::template load<2>(w + i, at, (slice.first + i) * STEP, b.lane);
    if (STEPS % 2) Tile<Element>::template load<1>(w + STEPS - 1, at, (slice.first + STEPS - 1) * STEP, b.lane);
}

// The sums of all tiles from weights in registers. Few tiles are summed in parts, so that no chain is long.
template <Stage S, u32 TILES, u32 STEPS>
__device__ void multiply_held(Tile<Element> (&tile)[TILES], const typename Tile<Element>::Weights (&held)[TILES][STEPS],
                              const typename Tile<Element>::Source &source) {
    constexpr u32 PARTS = TILES == 1 ? 4 : TILES == 2 ? 2 : 1;
    Tile<Element> part[PARTS][TILES];
#pragma unroll
    for (u32 i = 0; i < STEPS; i += 2) {
        auto in = Tile<Element>::template input<S>(source, i, i + 1 < STEPS);
#pragma unroll
        for (u32 t = 0; t < TILES; t++) part[i / 2 % PARTS][t].template add<S>(in, held[t] + i, i + 1 < STEPS);
    }
#pragma unroll
    for (u32 t = 0; t < TILES; t++) {
        tile[t] = part[0][t];
#pragma unroll
        for (u32 p = 1; p < PARTS; p++) tile[t].join(part[p][t]);
    }
}

// COUNT steps of a tile straight from the ring.
template <Stage S, u32 COUNT>
__device__ void multiply_steps(Tile<Element> (&part)[4], const char *row, const typename Tile<Element>::Source &source, u32 place, u32 step, u32 lane) {
#pragma unroll
    for (u32 i = 0; i < COUNT; i += 2) {
        typename Tile<Element>::Weights w[2];
        if (i + 1 < COUNT) Tile<Element>::template load<2>(w, row, (place + i) * STEP, lane);
        else Tile<Element>::template load<1>(w, row, (place + i) * STEP, lane);
        part[i / 2 % 4].template add<S>(Tile<Element>::template input<S>(source, step + i, i + 1 < COUNT), w, i + 1 < COUNT);
    }
}

// The sums of one tile straight from the ring, whose slots are given back.
template <Stage S>
__device__ void multiply_ring(const Block &b, Tile<Element> &tile, u32 row, u32 rows, const typename Tile<Element>::Source &source, Slice slice) {
    constexpr u32 STEPS = steps_max(inputs(S)), PARTS = 4, ROUND = STEPS <= 16 ? STEPS : 8;
    u32 from = row / slot_rows(S), to = divide_up(smaller(row + TILE_ROWS, rows), slot_rows(S));
    await_slots(b, from, to);
    const char *at = slot_row<S>(b.slot_count, row + b.lane % TILE_ROWS);
    Tile<Element> part[PARTS];
#pragma unroll 1
    for (u32 start = 0; start + ROUND <= STEPS; start += ROUND) multiply_steps<S, ROUND>(part, at, source, slice.first + start, start, b.lane);
    if constexpr (STEPS % ROUND != 0)
        multiply_steps<S, STEPS % ROUND>(part, at, source, slice.first + STEPS / ROUND * ROUND, STEPS / ROUND * ROUND, b.lane);
    release_slots(b, from, to);
    tile = part[0];
#pragma unroll
    for (u32 p = 1; p < PARTS; p++) tile.join(part[p]);
}

// A multiplying warp's part of a stage. The weights wait in registers for the input where they fit.
template <Stage S, typename From> __device__ void multiply(Block &b, const From &from) {
    typedef Tile<Element> T;
    constexpr u32 STEPS = steps_max(inputs(S)), TILES = pass_rows(S) / TILE_ROWS;
    constexpr bool HELD = rows_max(S) <= PASS_ROWS && divide_up(rows_max(S), slot_rows(S)) <= smaller(SLOTS, 8) &&
                          TILES * STEPS * sizeof(typename T::Weights) <= (WARPS == 8 ? 192 : 96); // bytes of registers
    static_assert(divide_up(TILE_ROWS, slot_rows(S)) <= SLOTS, "the ring holds a tile");
    b.forget();
    u32 rows = rows_of(S, b.block);
    if (rows == 0) return;
    const char *norm = ::norm(b.norm_count);
    Slice slice(inputs(S), b.warp);
    typename T::Weights held[HELD ? TILES : 1][STEPS];
    if constexpr (HELD) {
        u32 slots = divide_up(rows, slot_rows(S));
        await_slots(b, 0, slots);
#pragma unroll
        for (u32 t = 0; t < TILES; t++) load_tile<S>(b, held[t], t * TILE_ROWS, slice);
        release_slots(b, 0, slots);
    }
    if (normed(S)) barrier_wait(NORM_FULL + b.norm_count % 2, b.norm_count / 2 % 2);
    typename T::Source source = T::template source<S>(b.input(), norm, slice, b.lane);
    float inverse = 1.0f / larger(slice.count * STEP, 1);
    Spread spread = from(b, slice, norm);
    __syncwarp();
    for (u32 first = 0; first < rows; first += PASS_ROWS, b.pass_count++) {
        T tile[TILES];
        if constexpr (HELD) {
            multiply_held<S>(tile, held, source);
        } else {
#pragma unroll
            for (u32 t = 0; t < TILES; t++)
                if (first + t * TILE_ROWS < rows) multiply_ring<S>(b, tile[t], first + t * TILE_ROWS, rows, source, slice);
        }
        u32 place = b.pass_count % 2;
        barrier_wait(PARTIAL_FREE + place, b.pass_count / 2 % 2 ^ 1);
#pragma unroll
        for (u32 t = 0; t < TILES; t++)
            tile[t].template store<S, KIND_SUMS, ROW_SUMS>(b.sums() + t * TILE_ROWS * ROW_SUMS + b.warp, b.lane);
        if (normed(S)) {
            float2 statistics = spread.statistics(inverse);
            if (b.lane == 0) b.statistics()[b.warp] = statistics;
        }
        __syncwarp();
        if (b.lane == 0) barrier_arrive(PARTIAL_FULL + place);
    }
    if (normed(S) && b.lane == 0) barrier_arrive(NORM_READ + b.norm_count % 2);
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
    mean *= 1.0f / C;
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) {
        float away = part[w].x - mean;
        square += fmaf(away * away, Slice(C, w).count * STEP, part[w].y);
    }
    float variance = fmaf(square, 1.0f / C, b.g.eps), scale = rsqrtf(variance);
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
        barrier_wait(PARTIAL_FULL + place, b.pass_count / 2 % 2);
        float sum = 0;
        if (valid) sum = row_sum<S>(b, b.sums() + local * ROW_SUMS, b.statistics());
        __syncwarp();
        if (b.lane == 0) barrier_arrive(PARTIAL_FREE + place);
        result(row, sum, valid);
    }
    b.template advance<S>(rows);
}
