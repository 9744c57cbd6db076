// Matrix products of few rows: y = f(x * weight^T), weight [O, I], x [R, I] as it is or behind a layernorm; float32 sums.
//
// With few rows a product is the way of its operands to the multiprocessors: the outputs are spread over many small blocks, and what does not
// depend on the launch before is on its way when that ends. A block of 8 warps makes 16 ROW_TILES rows x 8 COLUMN_TILES outputs. The warps
// share the inputs: warp w takes slices w, w + 8, … of 128 bytes, which asynchronous copies bring into a ring of SLOTS in shared memory that
// the warp has to itself, the first weights before the previous launch has finished. bfloat16 goes through tensor cores: a lane takes 16
// bytes of its rows, so that within a slice the inputs are summed in an order of their own, the same for both operands. In float32 a lane
// makes 4 x COLUMN_TILES sums by itself. The warps' sums meet in shared memory, in the order of the warps; no sum depends on the number of
// rows, nor on the tile.
//
// Grid (tiles of outputs, tiles of rows), from which follows COLUMN_TILES. Rows are whole 16 bytes. Deterministic. From Ampere on. How
// they are launched: src/rows.rs.
#pragma once
#include "append.cu"
#include "row.cuh"
#include "tensor.cuh"

constexpr u32 ROWS_WARPS = 8, ROWS_THREADS = ROWS_WARPS * WARP, ROWS_SLICE_BYTES = 128;

// Slices of rows as a warp moves and holds them: 128 bytes of a row, in pieces of 16.
template <typename T> struct Slab {
    static constexpr u32 LEN = ROWS_SLICE_BYTES / sizeof(T); // elements of a slice
    static constexpr u32 ROWS = 4;                           // rows that a warp moves at once, 8 lanes each
    static __device__ u32 row() { return threadIdx.x % WARP / 8; }
    static __device__ u32 piece() { return threadIdx.x % 8; }
    // Where a piece lies: rows that are read at once are spread over the banks, eight in float32, two in bfloat16.
    static __device__ u32 at(u32 row, u32 piece) {
        return sizeof(T) == 4 ? swizzled(row, piece) : row * ROWS_SLICE_BYTES + (piece ^ row % 2 * 4) * 16;
    }
};

__device__ inline uint4 read16(u32 from) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(from) : "memory");
    return v;
}
__device__ inline float4 as_floats(uint4 v) {
    return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
}

// What a weight's row is: of one matrix, or of three of as many rows.
template <typename T> struct OneMatrix {
    const T *weight;
    u32 inputs, outputs;
    __device__ const T *row(u32 output) const { return output < outputs ? weight + u64(output) * inputs : nullptr; }
};
template <typename T> struct ThreeMatrices {
    const T *weight[3];
    u32 channels;
    __device__ const T *row(u32 output) const {
        u32 part = (output >= channels) + (output >= 2 * channels) + (output >= 3 * channels);
        const T *matrix = part == 0 ? weight[0] : part == 1 ? weight[1] : weight[2];
        return part < 3 ? matrix + u64(output - part * channels) * channels : nullptr;
    }
};

// Activations as they are: they pass through the ring, behind the weights.
template <typename T> struct Stored {
    static constexpr bool IN_RING = true;
    template <int COLUMN_TILES> struct Slots {
        static constexpr u32 COUNT = COLUMN_TILES < 2 ? 3 : 2; // 64 to 96 KiB a block
    };
    const T *x;
    u32 rows, inputs;
    static constexpr u32 BYTES = 0; // of shared memory beside the ring
    __device__ void early(u32) const {}
    __device__ void begin(u32, u32) const {}
    __device__ void ask(u32 to, u32 row, u32 column) const {
        bool there = row < rows && column < inputs;
        copy16(to, there ? x + u64(row) * inputs + column : x, there);
    }
};

// Activations behind a layernorm, made from all rows of x, or with cursors from the last of each sequence of `time`: each warp normalises two
// rows in registers and leaves them in shared memory, as T. CHUNKS of 128 columns.
template <typename T> struct NormedRows {
    const float *x;
    const T *weight, *bias;
    u32 rows, inputs;
    const Cursor *cursor;
    u32 time;
    float eps;
};
template <typename T, int CHUNKS> struct Normed : NormedRows<T> {
    static constexpr bool IN_RING = false;
    template <int> struct Slots {
        static constexpr u32 COUNT = CHUNKS * sizeof(T) / 8; // all that a warp takes
    };
    static constexpr u32 PAD_BYTES = sizeof(T) == 4 ? 16 : 64; // spreads the rows that are read at once over the banks
    using R = NormedRows<T>;
    using R::x, R::weight, R::bias, R::rows, R::inputs, R::cursor, R::time, R::eps;
    float inverse; // 1 / columns
    __device__ Normed(const R &rows) : R(rows), inverse(1.0f / rows.inputs) {}

    // Rows of the tile, then scales and shifts.
    static constexpr u32 STRIDE_BYTES = CHUNKS * 128 * sizeof(T) + PAD_BYTES, VECTOR_BYTES = CHUNKS * 128 * sizeof(T);
    static __device__ u32 scales(u32 tile) { return tile + 16 * STRIDE_BYTES; }
    static constexpr u32 BYTES = 16 * STRIDE_BYTES + 2 * VECTOR_BYTES;

    // Fetches scales and shifts, which no earlier launch changes.
    __device__ void early(u32 tile) const {
        for (u32 i = threadIdx.x; i * 16 < inputs * sizeof(T); i += ROWS_THREADS) {
            copy16(scales(tile) + i * 16, weight + i * (16 / sizeof(T)), true);
            copy16(scales(tile) + VECTOR_BYTES + i * 16, bias + i * (16 / sizeof(T)), true);
        }
        commit_copies();
    }
    __device__ void begin(u32 row0, u32 tile) const {
        constexpr u32 AT_ONCE = CHUNKS > 4 ? 1 : 2; // as the registers allow
        u32 own = threadIdx.x / WARP * 2;
#pragma unroll 1
        for (u32 r = 0; r < 2; r += AT_ONCE) normalise<AT_ONCE>(row0, own + r, tile);
        __syncthreads();
    }
    // Rows from `own` on of the tile. Means, and the reciprocal root, are as in Norm of row.cuh.
    template <u32 COUNT> __device__ void normalise(u32 row0, u32 own, u32 tile) const {
        Row<CHUNKS> row[COUNT];
        float mean[COUNT], shift[COUNT], square[COUNT];
#pragma unroll
        for (u32 r = 0; r < COUNT; r++) {
            u32 source = source_row(cursor, time, min(row0 + own + r, rows - 1));
            row[r] = load_row<CHUNKS>(x + u64(source) * inputs, inputs);
        }
#pragma unroll
        for (u32 r = 0; r < COUNT; r++) {
            mean[r] = 0;
#pragma unroll
            for (const float4 &c : row[r].chunk) mean[r] += (c.x + c.y) + (c.z + c.w);
        }
#pragma unroll
        for (float &m : mean) m = warp_sum(m) * inverse;
#pragma unroll
        for (u32 r = 0; r < COUNT; r++) {
            shift[r] = square[r] = 0;
#pragma unroll
            for (int i = 0; i < CHUNKS; i++) {
                float4 &c = row[r].chunk[i];
                c = make_float4(c.x - mean[r], c.y - mean[r], c.z - mean[r], c.w - mean[r]);
                if (chunk_start(i) >= inputs) c = make_float4(0, 0, 0, 0);
                shift[r] += (c.x + c.y) + (c.z + c.w);
                square[r] = dot4(c, c, square[r]);
            }
        }
#pragma unroll
        for (u32 r = 0; r < COUNT; r++) shift[r] = warp_sum(shift[r]) * inverse, square[r] = warp_sum(square[r]) * inverse;
#pragma unroll
        for (u32 r = 0; r < COUNT; r++) {
            float variance = fmaxf(fmaf(-shift[r], shift[r], square[r]), 0.0f) + eps, scale = rsqrtf(variance);
            scale = fmaf(0.5f * scale, fmaf(-variance * scale, scale, 1.0f), scale);
#pragma unroll
            for (int i = 0; i < CHUNKS; i++) store(tile, own + r, i, row[r].chunk[i], shift[r], scale);
        }
    }
    __device__ void store(u32 tile, u32 row, int i, float4 c, float shift, float scale) const {
        u32 place = chunk_start(i) * sizeof(T), to = tile + row * STRIDE_BYTES + place;
        float4 w = read4(scales(tile) + place), b = read4(scales(tile) + VECTOR_BYTES + place);
        float4 y = make_float4(fmaf((c.x - shift) * scale, w.x, b.x), fmaf((c.y - shift) * scale, w.y, b.y),
                               fmaf((c.z - shift) * scale, w.z, b.z), fmaf((c.w - shift) * scale, w.w, b.w));
        if (chunk_start(i) >= inputs) y = make_float4(0, 0, 0, 0);
        if constexpr (sizeof(T) == 4)
            asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(y.x), "f"(y.y), "f"(y.z), "f"(y.w) : "memory");
        else asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(to), "r"(pack(y.x, y.y)), "r"(pack(y.z, y.w)) : "memory");
    }
    static __device__ float4 read4(u32 from) {
        if constexpr (sizeof(T) == 4) return as_floats(read16(from));
        uint2 raw;
        asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(raw.x), "=r"(raw.y) : "r"(from) : "memory");
        return unpack4(raw);
    }
    __device__ void ask(u32, u32, u32) const {}
};

// A warp's sums of 16 ROW_TILES x 8 COLUMN_TILES. `add` takes a slice: `x_at` and `w_at` say where 16 bytes of a row lie.
template <typename T, int ROW_TILES, int COLUMN_TILES> struct WarpSums;

template <int ROW_TILES, int COLUMN_TILES> struct WarpSums<bf16, ROW_TILES, COLUMN_TILES> {
    float sum[ROW_TILES][COLUMN_TILES][4] = {};

    template <typename X, typename W> __device__ void add(X x_at, W w_at) {
        u32 row = threadIdx.x % WARP / 4;
#pragma unroll 1
        for (u32 half = 0; half < 2; half++) {
            u32 piece = half * 4 + threadIdx.x % 4;
            uint4 w[COLUMN_TILES];
#pragma unroll
            for (int j = 0; j < COLUMN_TILES; j++) w[j] = read16(w_at(j * 8 + row, piece));
#pragma unroll
            for (int i = 0; i < ROW_TILES; i++) {
                uint4 top = read16(x_at(i * 16 + row, piece)), bottom = read16(x_at(i * 16 + 8 + row, piece));
                u32 front[4] = {top.x, bottom.x, top.y, bottom.y}, back[4] = {top.z, bottom.z, top.w, bottom.w};
#pragma unroll
                for (int j = 0; j < COLUMN_TILES; j++) multiply(sum[i][j], front, w[j].x, w[j].y);
#pragma unroll
                for (int j = 0; j < COLUMN_TILES; j++) multiply(sum[i][j], back, w[j].z, w[j].w);
            }
        }
    }
    __device__ void store(float *to, u32 stride) const {
        u32 lane = threadIdx.x % WARP;
        to += lane / 4 * stride + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < ROW_TILES; i++)
#pragma unroll
            for (int j = 0; j < COLUMN_TILES; j++) {
                const float *s = sum[i][j];
                *reinterpret_cast<float2 *>(to + i * 16 * stride + j * 8) = make_float2(s[0], s[1]);
                *reinterpret_cast<float2 *>(to + (i * 16 + 8) * stride + j * 8) = make_float2(s[2], s[3]);
            }
    }
};

// Lane l sums rows l / 8 + 4 i and outputs l % 8 + 8 j.
template <int ROW_TILES, int COLUMN_TILES> struct WarpSums<float, ROW_TILES, COLUMN_TILES> {
    float sum[ROW_TILES * 4][COLUMN_TILES] = {};

    template <typename X, typename W> __device__ void add(X x_at, W w_at) {
        u32 lane = threadIdx.x % WARP;
#pragma unroll 1
        for (u32 piece = 0; piece < 8; piece++) {
            float4 w[COLUMN_TILES];
#pragma unroll
            for (int j = 0; j < COLUMN_TILES; j++) w[j] = as_floats(read16(w_at(j * 8 + lane % 8, piece)));
#pragma unroll
            for (int i = 0; i < ROW_TILES * 4; i++) {
                float4 x = as_floats(read16(x_at(i * 4 + lane / 8, piece)));
#pragma unroll
                for (int j = 0; j < COLUMN_TILES; j++) sum[i][j] = dot4(x, w[j], sum[i][j]);
            }
        }
    }
    __device__ void store(float *to, u32 stride) const {
        u32 lane = threadIdx.x % WARP;
        to += lane / 8 * stride + lane % 8;
#pragma unroll
        for (int i = 0; i < ROW_TILES * 4; i++)
#pragma unroll
            for (int j = 0; j < COLUMN_TILES; j++) to[i * 4 * stride + j * 8] = sum[i][j];
    }
};

// What becomes of two neighbouring sums is an Out: `shift` is added to them and known early, `before` is read once the previous launch has
// finished, and `put` stores them.
struct AsItIs {
    __device__ float2 shift(u32) const { return make_float2(0, 0); }
    __device__ float2 before(u32, u32) const { return make_float2(0, 0); }
};
// Two neighbours of a vector, zero where there is none.
template <typename T> __device__ float2 two(const T *p, u32 i, u32 len) {
    return make_float2(i < len ? to_float(p[i]) : 0.0f, i + 1 < len ? to_float(p[i + 1]) : 0.0f);
}
__device__ inline void put2(float *y, float2 v) { *reinterpret_cast<float2 *>(y) = v; }
__device__ inline void put2(bf16 *y, float2 v) { *reinterpret_cast<u32 *>(y) = pack(v.x, v.y); }

template <typename T, int ROW_TILES, int COLUMN_TILES, typename X, typename Matrix, typename Out>
__device__ void product_tile(X x, const Matrix &matrix, const Out &out, u32 inputs) {
    using S = Slab<T>;
    constexpr u32 SLOTS = X::template Slots<COLUMN_TILES>::COUNT;
    constexpr u32 ROWS = ROW_TILES * 16, COLUMNS = COLUMN_TILES * 8, STRIDE = COLUMNS + 8, PAIRS = COLUMNS / 2;
    constexpr u32 ITEMS = (ROWS * PAIRS + ROWS_THREADS - 1) / ROWS_THREADS, SUMS = ROWS_WARPS * ROWS * STRIDE;
    constexpr u32 SLOT_BYTES = (COLUMNS + (X::IN_RING ? ROWS : 0)) * ROWS_SLICE_BYTES;
    extern __shared__ __align__(1024) float partial[]; // of all warps; behind it normalised rows, and the rings
    u32 warp = threadIdx.x / WARP, row0 = blockIdx.y * ROWS, output0 = blockIdx.x * COLUMNS;
    u32 slices = (inputs + S::LEN - 1) / S::LEN, tile = shared_address(partial + SUMS), ring = tile + X::BYTES;
    ring += warp * min(u32(SLOTS), (slices + ROWS_WARPS - 1) / ROWS_WARPS) * SLOT_BYTES;
    auto ask_weights = [&](u32 slot, u32 slice) {
        u32 column = slice * S::LEN + S::piece() * (16 / sizeof(T));
#pragma unroll
        for (u32 j = 0; j < COLUMNS / S::ROWS; j++) {
            const T *row = matrix.row(output0 + j * S::ROWS + S::row());
            bool there = row != nullptr && column < inputs;
            copy16(slot + S::at(j * S::ROWS + S::row(), S::piece()), there ? row + column : matrix.row(0), there);
        }
    };
    auto ask_rows = [&](u32 slot, u32 slice) {
        u32 column = slice * S::LEN + S::piece() * (16 / sizeof(T));
#pragma unroll
        for (u32 i = 0; i < ROWS / S::ROWS; i++) {
            u32 row = i * S::ROWS + S::row();
            x.ask(slot + S::at(COLUMNS + row, S::piece()), row0 + row, column);
        }
        commit_copies();
    };
    x.early(tile);
#pragma unroll
    for (u32 d = 0; d < SLOTS; d++)
        if (warp + d * ROWS_WARPS < slices) ask_weights(ring + d * SLOT_BYTES, warp + d * ROWS_WARPS);
    float2 shift[ITEMS], before[ITEMS];
#pragma unroll
    for (u32 i = 0; i < ITEMS; i++) shift[i] = out.shift(output0 + (threadIdx.x + i * ROWS_THREADS) % PAIRS * 2);
    release_next();
    if constexpr (!X::IN_RING) {
        await_copies<0>(); // of scales and shifts: the weights are not committed yet
        __syncthreads();
    }
    await_previous();
    x.begin(row0, tile);
#pragma unroll
    for (u32 d = 0; d < SLOTS; d++) {
        if (warp + d * ROWS_WARPS < slices) ask_rows(ring + d * SLOT_BYTES, warp + d * ROWS_WARPS);
        else commit_copies();
    }
#pragma unroll
    for (u32 i = 0; i < ITEMS; i++) {
        u32 item = threadIdx.x + i * ROWS_THREADS;
        before[i] = item < ROWS * PAIRS ? out.before(row0 + item / PAIRS, output0 + item % PAIRS * 2) : make_float2(0, 0);
    }
    WarpSums<T, ROW_TILES, COLUMN_TILES> sums;
    u32 slot = ring;
    for (u32 slice = warp, turn = 0; slice < slices; slice += ROWS_WARPS) {
        await_copies<SLOTS - 1>();
        __syncwarp();
        auto w_at = [&](u32 row, u32 piece) { return slot + S::at(row, piece); };
        auto x_at = [&](u32 row, u32 piece) {
            if constexpr (X::IN_RING) return slot + S::at(COLUMNS + row, piece);
            else return tile + row * X::STRIDE_BYTES + slice * ROWS_SLICE_BYTES + piece * 16;
        };
        sums.add(x_at, w_at);
        __syncwarp();
        u32 next = slice + SLOTS * ROWS_WARPS;
        if (next < slices) ask_weights(slot, next), ask_rows(slot, next);
        else commit_copies();
        turn = turn + 1 == SLOTS ? 0 : turn + 1;
        slot = ring + turn * SLOT_BYTES;
    }
    sums.store(partial + warp * ROWS * STRIDE, STRIDE);
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < ITEMS; i++) {
        u32 item = threadIdx.x + i * ROWS_THREADS, row = item / PAIRS, column = item % PAIRS * 2;
        if (item >= ROWS * PAIRS) break;
        float2 total = make_float2(0, 0);
#pragma unroll
        for (u32 k = 0; k < ROWS_WARPS; k++) {
            float2 part = *reinterpret_cast<const float2 *>(partial + (k * ROWS + row) * STRIDE + column);
            total = make_float2(total.x + part.x, total.y + part.y);
        }
        out.put(row0 + row, output0 + column, make_float2(total.x + shift[i].x, total.y + shift[i].y), before[i]);
    }
}

// float32 has no wider tile than 16 outputs: it would gain nothing.
template <typename T, typename X, typename Matrix, typename Out>
__device__ void product_rows(const X &x, const Matrix &matrix, const Out &out, u32 outputs) {
    if (gridDim.x * 8 >= outputs) product_tile<T, 1, 1>(x, matrix, out, x.inputs);
    else if (sizeof(T) == 4 || gridDim.x * 16 >= outputs) product_tile<T, 1, 2>(x, matrix, out, x.inputs);
    else if constexpr (sizeof(T) == 2) product_tile<T, 1, 4>(x, matrix, out, x.inputs);
}
template <typename T, typename Matrix, typename Out>
__device__ void product_stored(const Stored<T> &x, const Matrix &matrix, const Out &out, u32 outputs) {
    if (sizeof(T) == 4 || gridDim.y * 16 >= x.rows) product_rows<T>(x, matrix, out, outputs);
    else if constexpr (sizeof(T) == 2) product_tile<T, 2, 4>(x, matrix, out, x.inputs);
}
template <typename T, typename Matrix, typename Out>
__device__ void product_normed(const NormedRows<T> &x, const Matrix &matrix, const Out &out, u32 outputs) {
    if (x.inputs <= 512) product_rows<T>(Normed<T, 4>(x), matrix, out, outputs);
    else product_rows<T>(Normed<T, 8>(x), matrix, out, outputs);
}
