// A layer's matrices: the multiplying warps, each with its columns, and the finishing warps that add up, finish and send.
//
// Both go through the same passes of up to PASS_ROWS rows. A pass leaves its sums in one of two places in turn; barriers say when one is full
// and when it is free again.
#pragma once
#include "gelu.cu"
#include "grid_exchange.cuh"
#include "grid_tile.cuh"

// The residual stream as the multiplying warps received it, [C].
__device__ inline float *stream() { return shared<float>(AT_STREAM); }

// Who a warp is, and where it stands in the sequence of passes, slots and norms, the same for all warps.
struct Block {
    const GridArguments &g;
    u32 block, warp, lane, slot_count = 0, norm_count = 0, pass_count = 0;

    // What follows from the block's and the lane's number is worked out again from here on: kept in registers for every stage, it would
    // not fit.
    __device__ void forget() { asm volatile("" : "+r"(block), "+r"(warp), "+r"(lane)); }
    __device__ float *sums() const { return shared<float>(AT_PARTIAL) + pass_count % 2 * PARTIAL_SUMS; }
    __device__ char *input() const { return shared<char>(AT_INPUTS) + warp * INPUT_BYTES; }
    __device__ float *query() const { return shared<float>(AT_QUERIES) + warp * D; }
    // Moves past a stage of `rows` rows.
    template <Stage S> __device__ void advance(u32 rows) {
        slot_count += divide_up(rows, slot_rows(S));
        if (normed(S) && rows > 0) norm_count++;
    }
};

// Where a warp's columns begin and end, and which words of COUNT columns they lie in.
template <u32 COLUMNS, u32 COUNT> struct Span {
    u32 from, to, first, last;
    static constexpr bool WHOLE = COLUMNS % (WARPS * GROUP) == 0 && COLUMNS / WARPS % COUNT == 0; // no word is shared
    static constexpr u32 TOUCHED = WHOLE ? COLUMNS / WARPS / COUNT : (groups_max(COLUMNS) * GROUP + COUNT - 2) / COUNT + 1;
    static constexpr u32 WORDS = divide_up(TOUCHED, WARP); // of a lane
    __device__ Span(Slice slice, u32 lane)
        : from(slice.from), to(slice.to), first(from / COUNT + lane), last((larger(to, from + 1) - 1) / COUNT) {}
    __device__ bool has(u32 column) const { return (WHOLE || column >= from) && column < to; }
};

// The residual stream as input, from the words that finishers sent or, where `words` is null, from the embedding.
template <Stage S> struct FromResidual {
    const uint4 *words;
    u32 epoch;
    const Element *token, *position;
    typedef Span<C, WIDE> Columns;

    // Puts the warp's columns, times the norm's weight, in their places, and as they are where the finishing warps will look.
    __device__ void operator()(const Block &b, Slice slice, const char *norm) const {
        const Element *weight = reinterpret_cast<const Element *>(norm);
        Columns columns(slice, b.lane);
        float scale[Columns::WORDS][WIDE], x[Columns::WORDS][WIDE];
#pragma unroll
        for (u32 i = 0; i < Columns::WORDS; i++)
#pragma unroll
            for (u32 j = 0; j < WIDE; j++) scale[i][j] = to_float(weight[smaller((columns.first + i * WARP) * WIDE + j, C - 1)]);
        read(x, columns);
#pragma unroll
        for (u32 i = 0; i < Columns::WORDS; i++)
#pragma unroll
            for (u32 j = 0; j < WIDE; j++) {
                u32 column = (columns.first + i * WARP) * WIDE + j;
                if (columns.has(column)) stream()[column] = x[i][j];
                x[i][j] *= scale[i][j];
            }
#pragma unroll
        for (u32 i = 0; i < Columns::WORDS; i++) {
            u32 column = (columns.first + i * WARP) * WIDE;
            if constexpr (HALF) {
                // Columns go in pairs, of which every other word has one and the beginning of a second.
                u32 source = i + 1 < Columns::WORDS && b.lane == 0 ? i + 1 : i;
                float after = __shfl_sync(ALL_LANES, source == i ? x[i][0] : x[(i + 1) % Columns::WORDS][0], (b.lane + 1) % WARP);
                bool odd = column % 2;
                if (columns.has(column + odd)) put2(b.input(), column + odd - columns.from, odd ? x[i][1] : x[i][0], odd ? x[i][2] : x[i][1]);
                if (!odd && columns.has(column + 2)) put2(b.input(), column + 2 - columns.from, x[i][2], after);
            } else {
#pragma unroll
                for (u32 j = 0; j < WIDE; j++)
                    if (columns.has(column + j)) reinterpret_cast<float *>(b.input())[column + j - columns.from] = x[i][j];
            }
        }
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

    __device__ void operator()(const Block &b, Slice slice, const char *) const {
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
                if (columns.has(column)) *reinterpret_cast<u32 *>(input + c * sizeof(Element)) = value;
            }
    }
};

// Slots `from` to `to` of the stage: a lane waits for each.
__device__ inline void await_slots(const Block &b, u32 from, u32 to) {
    for (u32 s = b.slot_count + from; s < b.slot_count + to; s += WARP)
        barrier_wait(SLOT_FULL + (s + b.lane) % SLOTS, (s + b.lane) / SLOTS % 2, s + b.lane < b.slot_count + to);
}
// Gives them back. An arrival does not wait for loads under way: `read`, true in every lane, must depend on their values.
__device__ inline void release_slots(const Block &b, u32 from, u32 to, bool read) {
    if (!__any_sync(ALL_LANES, read)) return;
    for (u32 s = b.slot_count + from + b.lane; s < b.slot_count + to; s += WARP) barrier_arrive(SLOT_READ + s % SLOTS);
}

// The sums of all tiles from weights in registers. Few tiles are summed in parts, so that no chain is long.
template <Stage S, u32 TILES, u32 GROUPS>
__device__ void multiply_held(Tile<Element> *tile, const uint4 (&held)[TILES][GROUPS], const typename Tile<Element>::Inputs<S> &in) {
    constexpr u32 PARTS = TILES == 1 ? 4 : TILES == 2 ? 2 : 1;
    Tile<Element> part[PARTS][TILES];
#pragma unroll
    for (u32 g = 0; g < GROUPS; g++)
#pragma unroll
        for (u32 t = 0; t < TILES; t++) part[g % PARTS][t].template add<S>(in, g, held[t][g]);
#pragma unroll
    for (u32 t = 0; t < TILES; t++) {
        tile[t] = part[0][t];
#pragma unroll
        for (u32 p = 1; p < PARTS; p++) tile[t].join(part[p][t]);
    }
}

// Takes the warp's columns of all tiles from row `row` on out of the ring.
template <Stage S, u32 TILES, u32 GROUPS> __device__ void take(const Block &b, uint4 (&held)[TILES][GROUPS], u32 row, u32 rows, Slice slice) {
    u32 from = row / slot_rows(S), to = divide_up(smaller(row + TILES * TILE_ROWS, rows), slot_rows(S));
    bool read = false;
    await_slots(b, from, to);
#pragma unroll
    for (u32 t = 0; t < TILES; t++) {
        const char *at = slot_row<S>(b.slot_count, row + t * TILE_ROWS + b.lane / 4);
#pragma unroll
        for (u32 g = 0; g < GROUPS; g++) {
            held[t][g] = load_vector<S>(at, slice.first + g, b.lane);
            read |= held[t][g].x != ALL_LANES;
        }
    }
    release_slots(b, from, to, read);
}

// The sums of one tile of rows too long for the registers, straight from the ring.
template <Stage S>
__device__ void multiply_long(const Block &b, Tile<Element> &tile, u32 row, u32 rows, const typename Tile<Element>::Inputs<S> &in, Slice slice) {
    constexpr u32 GROUPS = groups_max(inputs(S)), PARTS = 4;
    u32 from = row / slot_rows(S), to = divide_up(smaller(row + TILE_ROWS, rows), slot_rows(S));
    await_slots(b, from, to);
    const char *at = slot_row<S>(b.slot_count, row + b.lane / 4);
    Tile<Element> part[PARTS];
#pragma unroll
    for (u32 g = 0; g < GROUPS; g++) part[g % PARTS].template add<S>(in, g, load_vector<S>(at, slice.first + g, b.lane));
    tile = part[0];
#pragma unroll
    for (u32 p = 1; p < PARTS; p++) tile.join(part[p]);
    release_slots(b, from, to, tile.is_made());
}

// A multiplying warp's part of a stage. The weights wait in registers for the input where they fit; else they are taken a tile or two at a time.
template <Stage S, typename From> __device__ void multiply(Block &b, const From &from) {
    typedef Tile<Element> T;
    constexpr u32 GROUPS = groups_max(inputs(S)), TILES = pass_rows(S) / TILE_ROWS;
    constexpr u32 HELD_BYTES = WARPS == 8 ? 224 : 96; // of registers
    constexpr bool HELD = rows_max(S) <= PASS_ROWS && divide_up(rows_max(S), slot_rows(S)) <= smaller(SLOTS, 8) &&
                          TILES * GROUPS * sizeof(uint4) <= HELD_BYTES;
    constexpr u32 CHUNK = HELD ? TILES : TILES > 1 && 2 * GROUPS * sizeof(uint4) <= HELD_BYTES && 2 * TILE_ROWS <= SLOTS * slot_rows(S) ? 2 : 1;
    static_assert(divide_up(TILE_ROWS, slot_rows(S)) <= SLOTS, "the ring holds a tile");
    b.forget();
    u32 rows = rows_of(S, b.block);
    if (rows == 0) return;
    const char *norm = ::norm(b.norm_count);
    Slice slice(inputs(S), b.warp);
    uint4 held[CHUNK][CHUNK > 1 || HELD ? GROUPS : 1];
    if constexpr (HELD) take<S>(b, held, 0, rows, slice);
    if (normed(S)) barrier_wait(NORM_FULL + b.norm_count % 2, b.norm_count / 2 % 2);
    from(b, slice, norm);
    __syncwarp();
    if (normed(S) && b.lane == 0) barrier_arrive(STREAM_FULL);
    typename T::Inputs<S> in(b.input(), norm, slice, b.lane);
    for (u32 first = 0; first < rows; first += PASS_ROWS, b.pass_count++) {
        T tile[divide_up(TILES, CHUNK) * CHUNK];
        u32 last = smaller(first + PASS_ROWS, rows);
#pragma unroll
        for (u32 t = 0; t < TILES; t += CHUNK) {
            if (first + t * TILE_ROWS >= last) continue;
            if constexpr (!HELD && CHUNK > 1) take<S>(b, held, first + t * TILE_ROWS, last, slice);
            if constexpr (HELD || CHUNK > 1) multiply_held<S>(tile + t, held, in);
            else multiply_long<S>(b, tile[t], first + t * TILE_ROWS, last, in, slice);
        }
        u32 place = b.pass_count % 2;
        barrier_wait(PARTIAL_FREE + place, b.pass_count / 2 % 2 ^ 1);
#pragma unroll
        for (u32 t = 0; t < TILES; t++)
            tile[t].template store<S, KIND_SUMS, ROW_SUMS>(b.sums() + t * TILE_ROWS * ROW_SUMS + b.warp, b.lane);
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

// Mean of the residual stream, and what it is multiplied by once that is taken away.
struct Norm {
    float mean, scale;

    __device__ Norm(u32 lane, float eps) {
        constexpr u32 COUNT = divide_up(C, 4 * WARP);
        float4 x[COUNT];
        float sum = 0, square = 0;
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) {
            u32 at = (i * WARP + lane) * 4;
            x[i] = at < C ? load4(stream() + at) : make_float4(0, 0, 0, 0);
            sum += (x[i].x + x[i].y) + (x[i].z + x[i].w);
        }
        mean = warp_sum(sum) * (1.0f / C);
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) {
            float4 away = make_float4(x[i].x - mean, x[i].y - mean, x[i].z - mean, x[i].w - mean);
            if ((i * WARP + lane) * 4 < C) square = dot4(away, away, square);
        }
        float variance = fmaf(warp_sum(square), 1.0f / C, eps);
        scale = rsqrtf(variance);
        scale = fmaf(0.5f * scale, fmaf(-variance * scale, scale, 1.0f), scale);
    }
};

// A row's product with the input, normalised where the stage is.
template <Stage S> __device__ float row_sum(const float *at, float mean, float scale) {
    float sum = total(at);
    if (normed(S)) sum = fmaf(fmaf(-mean, total(at + KIND_SUMS), sum), scale, total(at + 2 * KIND_SUMS));
    return sum;
}

// What a finishing warp does with the sums: result(row, sum) for each of the block's rows, row counted within the block, a lane each, in all
// lanes, and with `valid` false where there is no such row.
template <Stage S, typename Result> __device__ void finish(Block &b, Result &&result) {
    b.forget();
    u32 rows = rows_of(S, b.block), finisher = b.warp - WARPS;
    float mean = 0, scale = 0;
    if (normed(S) && rows > 0) {
        barrier_wait(STREAM_FULL, b.norm_count % 2);
        Norm norm(b.lane, b.g.eps);
        mean = norm.mean, scale = norm.scale;
    }
    for (u32 first = 0; first < rows; first += PASS_ROWS, b.pass_count++) {
        u32 local = finisher * FINISHER_ROWS + b.lane, row = first + local, place = b.pass_count % 2;
        bool valid = b.lane < FINISHER_ROWS && row < rows;
        result.prepare(row, valid);
        barrier_wait(PARTIAL_FULL + place, b.pass_count / 2 % 2);
        float sum = 0;
        if (valid) sum = row_sum<S>(b.sums() + local * ROW_SUMS, mean, scale);
        __syncwarp();
        if (b.lane == 0) barrier_arrive(PARTIAL_FREE + place);
        result(row, sum, valid);
    }
    b.template advance<S>(rows);
}
