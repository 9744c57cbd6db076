// Matrix products through Hopper's warpgroup products, for many rows: y = f(x * weight^T), x [R, I], weight [O, I], bfloat16, float32 sums.
//
// A block makes tiles of 128 rows x COLUMNS outputs: warpgroup 0 asks the copy engine for slices of 64 inputs into a ring in shared memory,
// warpgroups 1 and 2 multiply 64 rows each. Blocks come in clusters of CM x CN tiles (rows, outputs) that share what they read: of the blocks
// that need a slice, one fetches it for all, in turn. Clusters walk the tiles in strides of the grid. The weights of the first slices are read before
// the previous launch has finished. I a multiple of eight, O too; 384 threads a block. Deterministic: no sum is split. Hopper alone.
// Launchers: src/product.rs.
#include "finish.cuh"
#include "hopper.cuh"

constexpr u32 TILE_ROWS = 128, SLICE = 64, SLICE_BYTES = 128, CONSUMERS = 2;

template <int COLUMNS, int STAGES, int CM, int CN> struct Ring {
    static constexpr u32 X_BYTES = TILE_ROWS * SLICE_BYTES, WEIGHT_BYTES = COLUMNS * SLICE_BYTES;
    static constexpr u32 STAGE_BYTES = X_BYTES + WEIGHT_BYTES;
    static constexpr u32 BYTES = 1024 + STAGES * STAGE_BYTES + STAGES * 16;
    u32 tiles, barriers;
    __device__ u32 x(u32 slot) const { return tiles + slot * STAGE_BYTES; }
    __device__ u32 weight(u32 slot) const { return x(slot) + X_BYTES; }
    __device__ u32 full(u32 slot) const { return barriers + slot * 8; }
    __device__ u32 empty(u32 slot) const { return barriers + (STAGES + slot) * 8; }
};

// Which tiles there are, and which of them this cluster makes: super-tiles of CM x CN.
template <int CM, int CN> struct Walk {
    u32 supers_m, supers, stride, m, n, super;
    __device__ Walk(u32 tiles_m, u32 tiles_n) {
        supers_m = (tiles_m + CM - 1) / CM;
        supers = supers_m * ((tiles_n + CN - 1) / CN);
        super = blockIdx.x / (CM * CN), stride = gridDim.x / (CM * CN);
        locate();
    }
    __device__ void locate() { m = super % supers_m * CM + cluster_rank() / CN, n = super / supers_m * CN + cluster_rank() % CN; }
    __device__ bool more() const { return super < supers; }
    __device__ void next() { super += stride, locate(); }
};

// The weights: PARTS matrices of `outputs` rows, cut into tiles each for itself.
template <int PARTS> struct Weights {
    const TensorMap *map[PARTS];
    u32 tiles; // of a part
    __device__ const TensorMap *part(u32 i) const { return PARTS == 1 || i == 0 ? map[0] : i == 1 ? map[1 % PARTS] : map[2 % PARTS]; }
};

// Asks for every slice of every tile of this block, as slots of the ring become free. One thread.
template <int COLUMNS, int STAGES, int CM, int CN, int PARTS>
__device__ void produce(Ring<COLUMNS, STAGES, CM, CN> ring, const TensorMap *x, Weights<PARTS> weights, u32 tiles_m, u32 slices) {
    using R = Ring<COLUMNS, STAGES, CM, CN>;
    u32 rank = cluster_rank(), rank_m = rank / CN, rank_n = rank % CN, turn = 0, ahead = min(slices, u32(STAGES));
    u16 same_n = 0, same_m = 0;
    for (u32 i = 0; i < CM; i++) same_n |= 1 << (i * CN + rank_n);
    for (u32 i = 0; i < CN; i++) same_m |= 1 << (rank_m * CN + i);
    for (Walk<CM, CN> tile(tiles_m, weights.tiles * PARTS); tile.more(); tile.next()) {
        u32 part = PARTS == 1 ? 0 : min(tile.n / weights.tiles, u32(PARTS - 1)), row = (tile.n - part * weights.tiles) * COLUMNS;
        const TensorMap *weight = weights.part(part);
        auto ask_weight = [&](u32 slice, u32 turn) {
            u32 slot = turn % STAGES;
            await_barrier(ring.empty(slot), (turn / STAGES & 1) ^ 1);
            expect_bytes(ring.full(slot), R::STAGE_BYTES);
            if (CM == 1) copy_box(ring.weight(slot), weight, slice * SLICE, row, ring.full(slot));
            else if (turn % CM == rank_m) copy_box(ring.weight(slot), weight, slice * SLICE, row, ring.full(slot), same_n);
        };
        auto ask_x = [&](u32 slice, u32 turn) {
            u32 slot = turn % STAGES;
            if (CN == 1) copy_box(ring.x(slot), x, slice * SLICE, tile.m * TILE_ROWS, ring.full(slot));
            else if (turn % CN == rank_n) copy_box(ring.x(slot), x, slice * SLICE, tile.m * TILE_ROWS, ring.full(slot), same_m);
        };
        u32 slice = 0;
        if (turn == 0) {
            for (; slice < ahead; slice++) ask_weight(slice, slice);
            await_previous();
            for (slice = 0; slice < ahead; slice++) ask_x(slice, slice);
            turn = ahead;
        }
        for (; slice < slices; slice++, turn++) ask_weight(slice, turn), ask_x(slice, turn);
    }
}

// Multiplies the slices as they come, and hands 64 rows of each tile to its Finish. One warpgroup.
template <int COLUMNS, int STAGES, int CM, int CN, typename Choose>
__device__ void consume(Ring<COLUMNS, STAGES, CM, CN> ring, u32 tiles_m, u32 tiles_n, u32 slices, Choose store) {
    u32 group = threadIdx.x / 128 - 1, thread = threadIdx.x % 128, turn = 0, rank = cluster_rank();
    bool releases = thread < CM * CN && (thread / CN == rank / CN || thread % CN == rank % CN);
    for (Walk<CM, CN> tile(tiles_m, tiles_n); tile.more(); tile.next()) {
        float sum[COLUMNS / 2];
        for (u32 slice = 0; slice < slices; slice++, turn++) {
            u32 slot = turn % STAGES;
            await_barrier(ring.full(slot), turn / STAGES & 1);
            u64 a = operand(ring.x(slot) + group * 64 * SLICE_BYTES), b = operand(ring.weight(slot));
            open_products();
#pragma unroll
            for (u32 k = 0; k < SLICE / 16; k++) Warpgroup<COLUMNS>::multiply(sum, a + k * 2, b + k * 2, slice + k);
            commit_products();
            if (slice > 0) {
                await_products<1>();
                if (releases) arrive_at(ring.empty((turn - 1) % STAGES), thread);
            }
        }
        await_products<0>();
        settle(sum);
        if (releases) arrive_at(ring.empty((turn - 1) % STAGES), thread);
        store(sum, tile.m * TILE_ROWS + group * 64 + thread / WARP * 16, tile.n);
    }
}

template <int COLUMNS, int STAGES, int CM, int CN, int PARTS, typename Store>
__device__ void product_wgmma(const TensorMap *x, Weights<PARTS> weights, u32 rows, u32 inputs, Store store) {
#if HOPPER
    extern __shared__ char shared[];
    Ring<COLUMNS, STAGES, CM, CN> ring;
    ring.tiles = (shared_address(shared) + 1023) / 1024 * 1024;
    ring.barriers = ring.tiles + STAGES * ring.STAGE_BYTES;
    u32 tiles_m = (rows + TILE_ROWS - 1) / TILE_ROWS, slices = (inputs + SLICE - 1) / SLICE;
    release_next();
    if (threadIdx.x == 0) {
        for (u32 slot = 0; slot < STAGES; slot++)
            init_barrier(ring.full(slot), 1), init_barrier(ring.empty(slot), CONSUMERS * (CM + CN - 1));
        fence_barriers();
    }
    if (CM * CN > 1) sync_cluster();
    else __syncthreads();
    if (threadIdx.x < 128) {
        if (threadIdx.x == 0) produce(ring, x, weights, tiles_m, slices);
        __syncwarp();
    } else {
        await_previous();
        consume(ring, tiles_m, weights.tiles * PARTS, slices, store);
    }
    // A block must not leave while another of its cluster may still write to its memory or arrive at its barriers.
    if (CM * CN > 1) sync_cluster();
#endif
}

// The weights' tiles of COLUMNS outputs each.
__device__ inline u32 tiles_of(u32 outputs, u32 columns) { return (outputs + columns - 1) / columns; }

template <bool GELU, int COLUMNS, int STAGES, int CM, int CN>
__device__ void linear_wgmma(const TensorMap *x, const TensorMap *weight, bf16 *y, const bf16 *bias, LinearShape s) {
    Weights<1> weights = {{weight}, tiles_of(s.outputs, COLUMNS)};
    Dense<GELU> out = {y, bias, s.rows, s.outputs};
    auto store = [&](const float *sum, u32 row, u32 tile) { finish<COLUMNS / 8>(out, sum, row, tile * COLUMNS); };
    product_wgmma<COLUMNS, STAGES, CM, CN>(x, weights, s.rows, s.inputs, store);
}

template <int COLUMNS, int STAGES, int CM, int CN>
__device__ void linear_add_wgmma(const TensorMap *x, const TensorMap *weight, float *y, const bf16 *bias, LinearShape s) {
    Weights<1> weights = {{weight}, tiles_of(s.outputs, COLUMNS)};
    Residual out = {y, bias, s.rows, s.outputs};
    auto store = [&](const float *sum, u32 row, u32 tile) { finish<COLUMNS / 8>(out, sum, row, tile * COLUMNS); };
    product_wgmma<COLUMNS, STAGES, CM, CN>(x, weights, s.rows, s.inputs, store);
}

// Where the three projections go.
struct QkvPlaces {
    bf16 *place[3]; // q, keys, values
};

template <int COLUMNS, int STAGES, int CM, int CN>
__device__ void qkv_wgmma(const TensorMap *x, Weights<3> weights, QkvPlaces to, const Cursor *cursor, CacheShape s) {
    u32 channels = s.heads * s.head_size;
    weights.tiles = tiles_of(channels, COLUMNS);
    u32 past = cursor->past; // the cursor changes at the end of a pass only
    auto store = [&](const float *sum, u32 row, u32 tile) {
        u32 part = tile / weights.tiles;
        if (part > 2) return; // a cluster's last tile may lie outside
        Append out = {part == 0 ? to.place[0] : part == 1 ? to.place[1] : to.place[2], part > 0, past, s};
        finish<COLUMNS / 8>(out, sum, row, (tile - part * weights.tiles) * COLUMNS);
    };
    product_wgmma<COLUMNS, STAGES, CM, CN>(x, weights, s.batch * s.time, channels, store);
}

// Width of a tile and stages of the ring: as wide as the outputs of usual models divide into whole rounds of tiles over 128 blocks.
extern "C" __global__ void __launch_bounds__(384, 1) linear_gelu_wgmma_bf16(const __grid_constant__ TensorMap x,
                                                                            const __grid_constant__ TensorMap weight, bf16 *y,
                                                                            const bf16 *bias, LinearShape s) {
    linear_wgmma<true, 200, 5, 2, 1>(&x, &weight, y, bias, s);
}
extern "C" __global__ void __launch_bounds__(384, 1) linear_add_wgmma_bf16(const __grid_constant__ TensorMap x,
                                                                           const __grid_constant__ TensorMap weight, float *y,
                                                                           const bf16 *bias, LinearShape s) {
    linear_add_wgmma<104, 7, 2, 1>(&x, &weight, y, bias, s);
}
extern "C" __global__ void __launch_bounds__(384, 1) qkv_wgmma_bf16(const __grid_constant__ TensorMap x,
                                                                    const __grid_constant__ TensorMap q,
                                                                    const __grid_constant__ TensorMap k,
                                                                    const __grid_constant__ TensorMap v, QkvPlaces to,
                                                                    const Cursor *cursor, CacheShape s) {
    qkv_wgmma<160, 6, 2, 1>(&x, Weights<3>{{&q, &k, &v}, 0}, to, cursor, s);
}
