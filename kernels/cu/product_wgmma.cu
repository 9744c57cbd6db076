// Matrix products through Hopper's warpgroup products, for many rows: y = f(x * weight^T), x [R, I], weight [O, I], bfloat16, float32 sums.
//
// A block makes a tile of 128 or 256 rows: warpgroup 0 asks the copy engine for slices of 64 inputs into a ring in shared memory, warpgroups 1
// and 2 multiply 64 or 128 rows each. What bounds it is the bytes that reach a multiprocessor, hence tiles as large as the registers hold:
// 256 x 200 do twice the arithmetic a byte of 128 x 104. Where there are few rows or outputs the smaller tile fills the device better, and
// where even of those there are few, the blocks of a cluster make a tile together, each of its share of the inputs. The weights of the first
// slices are read before the previous launch has finished. I a multiple of eight, O too; 384 threads a block. Deterministic: a cluster's
// sums are added in the order of its blocks. Hopper alone. Launchers: src/product.rs.
#include "cluster.cuh"
#include "finish.cuh"
#include "hopper.cuh"

constexpr u32 SLICE = 64, SLICE_BYTES = 128, CONSUMERS = 2, CLUSTER_MAX = 4;

// A tile of ROWS x COLUMNS sums, its slices in STAGES slots.
template <int TILE_ROWS, int TILE_COLUMNS, int TILE_STAGES> struct Ring {
    static constexpr int ROWS = TILE_ROWS, COLUMNS = TILE_COLUMNS, STAGES = TILE_STAGES;
    static constexpr u32 GROUP_ROWS = ROWS / CONSUMERS;
    static constexpr u32 X_BYTES = ROWS * SLICE_BYTES, STAGE_BYTES = X_BYTES + COLUMNS * SLICE_BYTES;
    u32 tiles, barriers;
    bf16 *bias; // of the tile's outputs
    __device__ u32 x(u32 turn) const { return tiles + turn % STAGES * STAGE_BYTES; }
    __device__ u32 weight(u32 turn) const { return x(turn) + X_BYTES; }
    __device__ u32 full(u32 turn) const { return barriers + turn % STAGES * 16; }
    __device__ u32 empty(u32 turn) const { return full(turn) + 8; }
    __device__ u32 parity(u32 turn) const { return turn / STAGES & 1; }
};

// What a block multiplies: a tile from `row` and `output` on, slices first .. last; so many blocks make the tile.
struct Share {
    const TensorMap *x, *weight;
    u32 row, output, first, last, blocks = 1;
};

// Asks for every slice, as slots of the ring become free. One thread.
template <typename R> __device__ void produce(R ring, const Share &s) {
    u32 count = s.last - s.first, ahead = min(count, u32(R::STAGES));
    auto ask_weight = [&](u32 turn) {
        barrier_await(ring.empty(turn), ring.parity(turn) ^ 1);
        barrier_expect(ring.full(turn), R::STAGE_BYTES);
        copy_box(ring.weight(turn), s.weight, (s.first + turn) * SLICE, s.output, ring.full(turn));
    };
    auto ask_x = [&](u32 turn) { copy_box(ring.x(turn), s.x, (s.first + turn) * SLICE, s.row, ring.full(turn)); };
    for (u32 turn = 0; turn < ahead; turn++) ask_weight(turn);
    await_previous();
    for (u32 turn = 0; turn < ahead; turn++) ask_x(turn);
    for (u32 turn = ahead; turn < count; turn++) ask_weight(turn), ask_x(turn);
}

// The sums of one warpgroup's rows, 64 at the top and, of 128, 64 at the bottom.
template <typename R> struct Sums {
    static constexpr int LEN = R::COLUMNS / 2;
    static constexpr bool BOTH = R::GROUP_ROWS == 128;
    float top[LEN] = {}, bottom[BOTH ? LEN : 1] = {};
};

template <typename R> __device__ void consume(R ring, u32 count, Sums<R> &sums) {
    u32 group = threadIdx.x / 128 - 1;
    settle(sums.top), settle(sums.bottom); // they are zero before the first product
    for (u32 turn = 0; turn < count; turn++) {
        barrier_await(ring.full(turn), ring.parity(turn));
        u64 a = operand(ring.x(turn) + group * R::GROUP_ROWS * SLICE_BYTES), b = operand(ring.weight(turn));
        open_products();
#pragma unroll
        for (u32 k = 0; k < SLICE / 16; k++) {
            Warpgroup<R::COLUMNS>::multiply(sums.top, a + k * 2, b + k * 2);
            if constexpr (Sums<R>::BOTH)
                Warpgroup<R::COLUMNS>::multiply(sums.bottom, a + 64 * SLICE_BYTES / 16 + k * 2, b + k * 2);
        }
        commit_products();
        if (turn == 0) continue;
        await_products<1>();
        if (threadIdx.x % WARP == 0) barrier_arrive(ring.empty(turn - 1)); // this warp has read it
    }
    await_products<0>();
    settle(sums.top), settle(sums.bottom);
}

// Adds up the sums of a cluster's blocks in its first block: the others leave theirs in its ring. All threads of the cluster pass both
// barriers, of which the first says that nobody's ring is in use any more.
template <typename R> __device__ void gather(R ring, Sums<R> &sums, u32 blocks) {
    static_assert(!Sums<R>::BOTH && Sums<R>::LEN % 4 == 0, "one set of sums a thread, in pieces of 16 bytes");
    constexpr u32 PIECES = Sums<R>::LEN / 4, BYTES = PIECES * CONSUMERS * 128 * 16;
    static_assert(BYTES * (CLUSTER_MAX - 1) <= R::STAGES * R::STAGE_BYTES, "the ring has room for the others' sums");
    u32 place = ring.tiles + (threadIdx.x - 128) * 16, rank = cluster_rank();
    cluster_barrier();
    if (rank > 0) {
        u32 to = in_block(place + (rank - 1) * BYTES, 0);
#pragma unroll
        for (u32 i = 0; i < PIECES; i++) {
            const float *v = sums.top + i * 4;
            store_remote(to + i * CONSUMERS * 128 * 16, make_float4(v[0], v[1], v[2], v[3]));
        }
    }
    cluster_barrier();
    for (u32 from = place; rank == 0 && from < place + (blocks - 1) * BYTES; from += BYTES) {
#pragma unroll
        for (u32 i = 0; i < PIECES; i++) {
            float4 v;
            asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                         : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(from + i * CONSUMERS * 128 * 16) : "memory");
            sums.top[i * 4] += v.x, sums.top[i * 4 + 1] += v.y, sums.top[i * 4 + 2] += v.z, sums.top[i * 4 + 3] += v.w;
        }
    }
}

// Makes the block's share.
template <typename R, typename Finish> __device__ void product_wgmma(R ring, const Share &share, const Finish &out) {
    release_next();
    if (threadIdx.x == 0) {
        fetch_map(share.x), fetch_map(share.weight);
        for (u32 slot = 0; slot < R::STAGES; slot++) barrier_init(ring.full(slot), 1), barrier_init(ring.empty(slot), CONSUMERS * 4);
        publish_barriers();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        give_registers<24>();
        if (threadIdx.x == 0) produce(ring, share);
        __syncwarp();
        if (share.blocks > 1) cluster_barrier(), cluster_barrier();
    } else {
        take_registers<240>();
        await_previous();
        constexpr int TILES = R::COLUMNS / 8;
        u32 row = share.row + (threadIdx.x / 128 - 1) * R::GROUP_ROWS + threadIdx.x % 128 / WARP * 16;
        auto ahead = read_ahead<TILES>(out, row, share.output);
        Sums<R> sums;
        consume(ring, share.last - share.first, sums);
        if constexpr (!Sums<R>::BOTH)
            if (share.blocks > 1) gather(ring, sums, share.blocks);
        finish<TILES>(out, ahead, sums.top, row, share.output);
        if constexpr (Sums<R>::BOTH) finish<TILES>(out, sums.bottom, row + 64, share.output);
    }
}

template <typename R> __device__ R make_ring() {
    extern __shared__ char shared[];
    R ring;
    ring.tiles = (shared_address(shared) + 1023) / 1024 * 1024;
    ring.barriers = ring.tiles + R::STAGES * R::STAGE_BYTES;
    ring.bias = reinterpret_cast<bf16 *>(shared + (ring.barriers + R::STAGES * 16 - shared_address(shared)));
    return ring;
}

// Brings the bias of the tile's outputs to shared memory, before the sums are there: product_wgmma begins with a barrier. What indexes it as
// the whole vector.
template <typename R> __device__ const bf16 *fetch_bias(R ring, const bf16 *bias, const Share &share, u32 outputs) {
    u32 output = share.output + threadIdx.x;
    if (threadIdx.x < R::COLUMNS) ring.bias[threadIdx.x] = output < outputs ? bias[output] : bf16{};
    return ring.bias - share.output;
}
__device__ inline u32 slices_of(u32 inputs) { return (inputs + SLICE - 1) / SLICE; }

// Grid (tiles of rows, tiles of outputs).
template <typename R, bool GELU>
__device__ void linear_wgmma(const TensorMap *x, const TensorMap *weight, bf16 *y, const bf16 *bias, LinearShape s) {
    R ring = make_ring<R>();
    Share share = {x, weight, blockIdx.x * R::ROWS, blockIdx.y * R::COLUMNS, 0, slices_of(s.inputs)};
    Dense<GELU> out = {y, fetch_bias(ring, bias, share, s.outputs), s.rows, s.outputs};
    product_wgmma(ring, share, out);
}

// Grid (tiles of rows x blocks of a cluster, tiles of outputs). What a cluster's first block has gathered it adds; the others have no rows.
template <typename R>
__device__ void linear_add_wgmma(const TensorMap *x, const TensorMap *weight, float *y, const bf16 *bias, LinearShape s) {
    R ring = make_ring<R>();
    u32 blocks = cluster_size(), rank = blockIdx.x % blocks, slices = slices_of(s.inputs);
    Share share = {x, weight, blockIdx.x / blocks * R::ROWS, blockIdx.y * R::COLUMNS, slices * rank / blocks, slices * (rank + 1) / blocks, blocks};
    Residual out = {y, fetch_bias(ring, bias, share, s.outputs), rank == 0 ? s.rows : 0, s.outputs};
    product_wgmma(ring, share, out);
}

// Where the three projections go.
struct QkvPlaces {
    bf16 *place[3]; // q, keys, values
};

// Grid (tiles of rows, tiles of outputs, projections).
template <typename R>
__device__ void qkv_wgmma(const TensorMap *x, const TensorMap *weight, QkvPlaces to, const Cursor *cursor, CacheShape s) {
    Share share = {x, weight, blockIdx.x * R::ROWS, blockIdx.y * R::COLUMNS, 0, slices_of(s.heads * s.head_size)};
    Append out = {blockIdx.z == 0 ? to.place[0] : blockIdx.z == 1 ? to.place[1] : to.place[2], blockIdx.z > 0, cursor, s};
    product_wgmma(make_ring<R>(), share, out);
}

// Tiles and stages of the ring. Of usual models' outputs few tiles are cut. `narrow` are for few rows.
extern "C" __global__ void __launch_bounds__(384, 1) linear_gelu_wgmma_bf16(const __grid_constant__ TensorMap x,
                                                                            const __grid_constant__ TensorMap weight, bf16 *y,
                                                                            const bf16 *bias, LinearShape s) {
#if HOPPER
    linear_wgmma<Ring<256, 200, 3>, true>(&x, &weight, y, bias, s);
#endif
}
extern "C" __global__ void __launch_bounds__(384, 1) linear_gelu_wgmma_narrow_bf16(const __grid_constant__ TensorMap x,
                                                                                   const __grid_constant__ TensorMap weight, bf16 *y,
                                                                                   const bf16 *bias, LinearShape s) {
#if HOPPER
    linear_wgmma<Ring<128, 104, 7>, true>(&x, &weight, y, bias, s);
#endif
}
extern "C" __global__ void __launch_bounds__(384, 1) linear_add_wgmma_bf16(const __grid_constant__ TensorMap x,
                                                                           const __grid_constant__ TensorMap weight, float *y,
                                                                           const bf16 *bias, LinearShape s) {
#if HOPPER
    linear_add_wgmma<Ring<128, 104, 7>>(&x, &weight, y, bias, s);
#endif
}
extern "C" __global__ void __launch_bounds__(384, 1) qkv_wgmma_bf16(const __grid_constant__ TensorMap x,
                                                                    const __grid_constant__ TensorMap q,
                                                                    const __grid_constant__ TensorMap k,
                                                                    const __grid_constant__ TensorMap v, QkvPlaces to,
                                                                    const Cursor *cursor, CacheShape s) {
#if HOPPER
    qkv_wgmma<Ring<256, 160, 4>>(&x, blockIdx.z == 0 ? &q : blockIdx.z == 1 ? &k : &v, to, cursor, s);
#endif
}
extern "C" __global__ void __launch_bounds__(384, 1) qkv_wgmma_narrow_bf16(const __grid_constant__ TensorMap x,
                                                                           const __grid_constant__ TensorMap q,
                                                                           const __grid_constant__ TensorMap k,
                                                                           const __grid_constant__ TensorMap v, QkvPlaces to,
                                                                           const Cursor *cursor, CacheShape s) {
#if HOPPER
    qkv_wgmma<Ring<128, 104, 7>>(&x, blockIdx.z == 0 ? &q : blockIdx.z == 1 ? &k : &v, to, cursor, s);
#endif
}
