// Matrix products through Hopper's warpgroup products, for many rows: y = f(x * weight^T), x [R, I], weight [O, I], bfloat16, float32 sums.
//
// A block makes a tile of 256 rows x COLUMNS outputs: warpgroup 0 asks the copy engine for slices of 64 inputs into a ring in shared memory,
// warpgroups 1 and 2 multiply 128 rows each. What bounds it is the bytes that reach a multiprocessor, hence tiles as large as the registers
// hold: 256 x 200 do twice the arithmetic a byte of 128 x 104. The weights of the first slices are read before the previous launch has
// finished. I a multiple of eight, O too; 384 threads a block. Deterministic. Hopper alone. Launchers: src/product.rs.
//
// linear_add_wgmma: outputs are too few to fill the device with such tiles, so a cluster of three blocks shares a tile, a third of the inputs
// each. They leave their sums in shared memory, and each adds up a third of the tile in the order of the inputs.
#include "finish.cuh"
#include "hopper.cuh"

constexpr u32 TILE_ROWS = 256, SLICE = 64, SLICE_BYTES = 128, CONSUMERS = 2, GROUP_ROWS = TILE_ROWS / CONSUMERS;

template <int COLUMNS, int STAGES> struct Ring {
    static constexpr u32 X_BYTES = TILE_ROWS * SLICE_BYTES, STAGE_BYTES = X_BYTES + COLUMNS * SLICE_BYTES;
    u32 tiles, barriers;
    bf16 *bias; // of the tile's outputs
    __device__ u32 x(u32 turn) const { return tiles + turn % STAGES * STAGE_BYTES; }
    __device__ u32 weight(u32 turn) const { return x(turn) + X_BYTES; }
    __device__ u32 full(u32 turn) const { return barriers + turn % STAGES * 16; }
    __device__ u32 empty(u32 turn) const { return full(turn) + 8; }
    __device__ u32 parity(u32 turn) const { return turn / STAGES & 1; }
};

// What a block multiplies: a tile from `row` and `output` on, slices first .. last.
struct Share {
    const TensorMap *x, *weight;
    u32 row, output, first, last;
};

// Asks for every slice, as slots of the ring become free. One thread.
template <int COLUMNS, int STAGES> __device__ void produce(Ring<COLUMNS, STAGES> ring, const Share &s) {
    u32 count = s.last - s.first, ahead = min(count, u32(STAGES));
    auto ask_weight = [&](u32 turn) {
        await_barrier(ring.empty(turn), ring.parity(turn) ^ 1);
        expect_bytes(ring.full(turn), ring.STAGE_BYTES);
        copy_box(ring.weight(turn), s.weight, (s.first + turn) * SLICE, s.output, ring.full(turn));
    };
    auto ask_x = [&](u32 turn) { copy_box(ring.x(turn), s.x, (s.first + turn) * SLICE, s.row, ring.full(turn)); };
    for (u32 turn = 0; turn < ahead; turn++) ask_weight(turn);
    await_previous();
    for (u32 turn = 0; turn < ahead; turn++) ask_x(turn);
    for (u32 turn = ahead; turn < count; turn++) ask_weight(turn), ask_x(turn);
}

// The sums of 128 rows, 64 and 64: one warpgroup.
template <int COLUMNS, int STAGES>
__device__ void consume(Ring<COLUMNS, STAGES> ring, u32 count, float (&top)[COLUMNS / 2], float (&bottom)[COLUMNS / 2]) {
    u32 group = threadIdx.x / 128 - 1;
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; i++) top[i] = bottom[i] = 0;
    for (u32 turn = 0; turn < count; turn++) {
        await_barrier(ring.full(turn), ring.parity(turn));
        u64 a = operand(ring.x(turn) + group * GROUP_ROWS * SLICE_BYTES), b = operand(ring.weight(turn));
        open_products();
#pragma unroll
        for (u32 k = 0; k < SLICE / 16; k++) {
            Warpgroup<COLUMNS>::multiply(top, a + k * 2, b + k * 2);
            Warpgroup<COLUMNS>::multiply(bottom, a + 64 * SLICE_BYTES / 16 + k * 2, b + k * 2);
        }
        commit_products();
        if (turn == 0) continue;
        await_products<1>();
        if (threadIdx.x % 128 == 0) arrive(ring.empty(turn - 1));
    }
    await_products<0>();
    settle(top), settle(bottom);
}

// Makes the block's share; `store` gets 16 x COLUMNS sums of a warp and their row within the tile, and every consumer calls it twice. Then
// every thread calls `end`.
template <int COLUMNS, int STAGES, typename Store, typename End>
__device__ void product_wgmma(Ring<COLUMNS, STAGES> ring, const Share &share, Store store, End end) {
    release_next();
    if (threadIdx.x == 0) {
        fetch_map(share.x), fetch_map(share.weight);
        for (u32 slot = 0; slot < STAGES; slot++) init_barrier(ring.full(slot), 1), init_barrier(ring.empty(slot), CONSUMERS);
        fence_barriers();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        give_registers<24>();
        if (threadIdx.x == 0) produce(ring, share);
        __syncwarp();
        end(false);
    } else {
        take_registers<240>();
        float top[COLUMNS / 2], bottom[COLUMNS / 2];
        await_previous();
        consume(ring, share.last - share.first, top, bottom);
        u32 row = (threadIdx.x / 128 - 1) * GROUP_ROWS + threadIdx.x % 128 / WARP * 16;
        store(top, row), store(bottom, row + 64);
        end(true);
    }
}

template <int COLUMNS, int STAGES> __device__ Ring<COLUMNS, STAGES> make_ring() {
    extern __shared__ char shared[];
    Ring<COLUMNS, STAGES> ring;
    ring.tiles = (shared_address(shared) + 1023) / 1024 * 1024;
    ring.barriers = ring.tiles + STAGES * ring.STAGE_BYTES;
    ring.bias = reinterpret_cast<bf16 *>(shared + (ring.barriers + STAGES * 16 - shared_address(shared)));
    return ring;
}
__device__ inline u32 slices_of(u32 inputs) { return (inputs + SLICE - 1) / SLICE; }

// Grid (tiles of rows, tiles of outputs).
template <bool GELU, int COLUMNS, int STAGES>
__device__ void linear_wgmma(const TensorMap *x, const TensorMap *weight, bf16 *y, const bf16 *bias, LinearShape s) {
    Share share = {x, weight, blockIdx.x * TILE_ROWS, blockIdx.y * COLUMNS, 0, slices_of(s.inputs)};
    Ring<COLUMNS, STAGES> ring = make_ring<COLUMNS, STAGES>();
    // The bias comes to shared memory before the sums are there; product_wgmma begins with a barrier.
    if (threadIdx.x < COLUMNS) ring.bias[threadIdx.x] = share.output + threadIdx.x < s.outputs ? bias[share.output + threadIdx.x] : bf16{};
    Dense<GELU> out = {y, ring.bias - share.output, s.rows, s.outputs};
    auto store = [&](const float *sum, u32 row) { finish<COLUMNS / 8>(out, sum, share.row + row, share.output); };
    product_wgmma(ring, share, store, [](bool) {});
}

// Where the three projections go.
struct QkvPlaces {
    bf16 *place[3]; // q, keys, values
};

// Grid (tiles of rows, tiles of outputs, projections).
template <int COLUMNS, int STAGES>
__device__ void qkv_wgmma(const TensorMap *x, const TensorMap *weight, QkvPlaces to, const Cursor *cursor, CacheShape s) {
    Share share = {x, weight, blockIdx.x * TILE_ROWS, blockIdx.y * COLUMNS, 0, slices_of(s.heads * s.head_size)};
    // The cursor changes at the end of a pass only.
    Append out = {blockIdx.z == 0 ? to.place[0] : blockIdx.z == 1 ? to.place[1] : to.place[2], blockIdx.z > 0, cursor->past, s};
    auto store = [&](const float *sum, u32 row) { finish<COLUMNS / 8>(out, sum, share.row + row, share.output); };
    product_wgmma(make_ring<COLUMNS, STAGES>(), share, store, [](bool) {});
}

// Adds up the third that is this block's of the sums that the cluster's blocks left at `sums`. The consumers; loads come in batches.
template <int COLUMNS, int PITCH, int RANKS>
__device__ void add_up(u32 sums, u32 rank, const Share &share, float *y, const bf16 *bias, LinearShape s) {
    constexpr u32 FOURS = COLUMNS / 4, TOTAL = TILE_ROWS * FOURS, STRIDE = CONSUMERS * 128;
    constexpr int BATCH = 8;
    u32 end = TOTAL * (rank + 1) / RANKS;
    for (u32 start = TOTAL * rank / RANKS + threadIdx.x - 128; start < end; start += BATCH * STRIDE) {
        float4 *to[BATCH], sum[BATCH];
#pragma unroll
        for (int j = 0; j < BATCH; j++) {
            u32 i = start + j * STRIDE, row = i / FOURS, column = i % FOURS * 4, output = share.output + column;
            to[j] = nullptr;
            if (i >= end || share.row + row >= s.rows || output >= s.outputs) continue;
            to[j] = reinterpret_cast<float4 *>(y + u64(share.row + row) * s.outputs + output);
            float4 all = load4_of(sums + (row * PITCH + column) * 4, 0), shift = load4(bias + output), before = *to[j];
#pragma unroll
            for (u32 r = 1; r < RANKS; r++) {
                float4 part = load4_of(sums + (row * PITCH + column) * 4, r);
                all = make_float4(all.x + part.x, all.y + part.y, all.z + part.z, all.w + part.w);
            }
            sum[j] = make_float4(before.x + (all.x + shift.x), before.y + (all.y + shift.y), before.z + (all.z + shift.z),
                                 before.w + (all.w + shift.w));
        }
#pragma unroll
        for (int j = 0; j < BATCH; j++)
            if (to[j] != nullptr) *to[j] = sum[j];
    }
}

// Grid (RANKS tiles of rows, tiles of outputs), clusters of RANKS blocks.
template <int COLUMNS, int STAGES, int RANKS>
__device__ void linear_add_wgmma(const TensorMap *x, const TensorMap *weight, float *y, const bf16 *bias, LinearShape s) {
    constexpr u32 PITCH = COLUMNS % 16 == 8 ? COLUMNS : COLUMNS + 8; // of a row of sums: four rows then lie in different banks
    static_assert(TILE_ROWS * PITCH * 4 <= STAGES * Ring<COLUMNS, STAGES>::STAGE_BYTES, "the sums take the ring's place");
    u32 rank = blockIdx.x % RANKS, slices = slices_of(s.inputs);
    Share share = {x,     weight, blockIdx.x / RANKS * TILE_ROWS, blockIdx.y * COLUMNS, slices * rank / RANKS, slices * (rank + 1) / RANKS};
    Ring<COLUMNS, STAGES> ring = make_ring<COLUMNS, STAGES>();
    auto store = [&](const float *sum, u32 row) {
        if (row % GROUP_ROWS < 64) sync_some<CONSUMERS * 128>(1); // both warpgroups have read all slices
        u32 lane = threadIdx.x % WARP, to = ring.tiles + ((row + lane / 4) * PITCH + lane % 4 * 2) * 4;
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; j++) {
            store2(to + j * 32, sum[j * 4], sum[j * 4 + 1]);
            store2(to + j * 32 + 8 * PITCH * 4, sum[j * 4 + 2], sum[j * 4 + 3]);
        }
    };
    auto end = [&](bool consumer) {
        sync_cluster();
        if (consumer) add_up<COLUMNS, PITCH, RANKS>(ring.tiles, rank, share, y, bias, s);
        sync_cluster(); // a block must not leave while another reads its sums
    };
    product_wgmma(ring, share, store, end);
}

// Width of a tile and stages of the ring. Usual models have outputs that 160, 184 or 200 cut
// into few tiles more than they must.
extern "C" __global__ void __launch_bounds__(384, 1) linear_gelu_wgmma_bf16(const __grid_constant__ TensorMap x,
                                                                            const __grid_constant__ TensorMap weight, bf16 *y,
                                                                            const bf16 *bias, LinearShape s) {
#if HOPPER
    linear_wgmma<true, 200, 3>(&x, &weight, y, bias, s);
#endif
}
extern "C" __global__ void __launch_bounds__(384, 1) linear_add_wgmma_bf16(const __grid_constant__ TensorMap x,
                                                                           const __grid_constant__ TensorMap weight, float *y,
                                                                           const bf16 *bias, LinearShape s) {
#if HOPPER
    linear_add_wgmma<184, 4, 3>(&x, &weight, y, bias, s);
#endif
}
extern "C" __global__ void __launch_bounds__(384, 1) qkv_wgmma_bf16(const __grid_constant__ TensorMap x,
                                                                    const __grid_constant__ TensorMap q,
                                                                    const __grid_constant__ TensorMap k,
                                                                    const __grid_constant__ TensorMap v, QkvPlaces to,
                                                                    const Cursor *cursor, CacheShape s) {
#if HOPPER
    qkv_wgmma<160, 4>(&x, blockIdx.z == 0 ? &q : blockIdx.z == 1 ? &k : &v, to, cursor, s);
#endif
}
