// Weights on their way to the warps of decode_shards.cu: some warps copy the rows of their block into a ring of slots, ahead of the others, in the
// order of their use.
#pragma once
#include "shard_layout.cuh"

__device__ inline char *ring(Shared &s) { return reinterpret_cast<char *>(&s) + RING_START; }

// Waits of a whole warp, which leaves together.
__device__ inline void await(u32 barrier, u32 parity) {
    for (u32 round = 0; !__all_sync(ALL_LANES, barrier_try(barrier, parity)); round++) { GRID_ON_SPIN(round, (void *)(u64(barrier)), parity) }
}

// Where somebody stands in the ring.
struct Place {
    u32 slot = 0, parity = 0;

    // The place `ahead`, fewer than SLOTS, further on.
    __device__ Place after(u32 ahead) const {
        Place there = {slot + ahead, parity};
        if (there.slot >= SLOTS) there.slot -= SLOTS, there.parity ^= 1;
        return there;
    }
};

// A warp's place.
struct Reader {
    Shared &s;
    Place place;

    __device__ Reader(Shared &s) : s(s) {}
    // Waits for the slot `ahead`.
    __device__ void await(u32 ahead) const {
        Place there = place.after(ahead);
        ::await(shared_address(&s.full[there.slot]), there.parity);
    }
    // The warp's section of it.
    __device__ const char *section(u32 ahead) const { return ring(s) + place.after(ahead).slot * SLOT_BYTES + threadIdx.x / WARP * SECTION; }
    // Gives the next `count` slots back. An arrival does not wait for loads under way: `read` must depend on their values.
    __device__ void release(u32 count, bool read) {
        if (__any_sync(ALL_LANES, read) && threadIdx.x % WARP == 0)
            for (u32 i = 0; i < count; i++) barrier_arrive(shared_address(&s.empty[place.after(i).slot]));
        place = place.after(count);
    }
};

// The matrices of a stage in device memory: one, or those of q, k and v.
struct Matrices {
    const Element *part[3];
};

// An address that the compiler is to know all lanes have.
__device__ inline const Element *uniform(const Element *p) {
    u64 x = reinterpret_cast<u64>(p);
    return reinterpret_cast<const Element *>(u64(uniform(u32(x >> 32))) << 32 | uniform(u32(x)));
}

// A warp that fills the ring: in every slot the sections of some warps. What it works out is the same for all lanes, because the copy engine takes
// addresses from uniform registers: for a lane's own, a copy takes 270 cycles to ask for.
struct Fetcher {
    const GridArguments &g;
    Shared &s;
    const u32 cluster = uniform(blockIdx.x / N), rank = uniform(cluster_rank()), first = uniform(threadIdx.x / WARP - WARPS) * SECTIONS;
    const bool leads = threadIdx.x % WARP == 0;
    u64 policy = 0;
    Place place;
    u32 due = clock(); // when to copy next

    __device__ Fetcher(const GridArguments &g, Shared &s) : g(g), s(s) {
        asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    }
    // Copies rows that follow each other, once they are due.
    __device__ void copy(u32 to, const void *from, u32 bytes, u32 barrier) {
        u32 now = clock();
        while (int(due - now) > 0) now = clock();
        due = now + bytes * FETCHERS / BYTES_A_CLOCK;
        if (leads)
            asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to),
                         "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
                         : "memory");
    }

    // Row `r` of the cluster's rows of a stage, from the cluster's first column on.
    template <Stage S> __device__ const Element *row(const Matrices &m, u32 r) const {
        if (S == QKV) {
            u32 part = r / D % 3, head = heads_of(cluster).first + r / D / 3;
            return (part == 0 ? m.part[0] : part == 1 ? m.part[1] : m.part[2]) + u64(head * D + r % D) * C;
        }
        if (S == UP) r += units_of(cluster).first;
        return m.part[0] + u64(r) * inputs(S) + columns_of(S, cluster).first;
    }

    // A section's `count` rows from row `r` of the cluster's on.
    template <Stage S> __device__ void section(const Matrices &m, u32 r, u32 count, u32 to, u32 full) {
        constexpr bool APART = S == OUT || S == DOWN;
        u32 bytes = columns_of(S, cluster).count * sizeof(Element);
#pragma unroll 1
        for (u32 run; count > 0; count -= run, r += run, to += run * row_bytes(S)) {
            run = APART ? 1 : S == QKV ? smaller(count, D - r % D) : count;
            copy(to, row<S>(m, r), run * bytes, full);
        }
    }

    // The block's rows of a stage.
    template <Stage S> __device__ void matrix(const Matrices &m) {
        constexpr u32 EACH = section_rows(S);
        Part rows[SECTIONS];
#pragma unroll
        for (u32 i = 0; i < SECTIONS; i++) rows[i] = within(block_rows(S, cluster, rank), WARPS, first + i);
#pragma unroll 1
        for (u32 t = 0; t < slots(S); t++, place = place.after(1)) {
            u32 full = shared_address(&s.full[place.slot]), to = shared_address(ring(s)) + place.slot * SLOT_BYTES, count[SECTIONS], all = 0;
#pragma unroll
            for (u32 i = 0; i < SECTIONS; i++) all += count[i] = smaller(EACH, rows[i].count - smaller(t * EACH, rows[i].count));
            await(shared_address(&s.empty[place.slot]), place.parity ^ 1);
            if (leads) barrier_expect(full, all * columns_of(S, cluster).count * sizeof(Element));
            __syncwarp();
#pragma unroll
            for (u32 i = 0; i < SECTIONS; i++) section<S>(m, rows[i].first + t * EACH, count[i], to + (first + i) * SECTION, full);
        }
    }

    __device__ void run() {
        for (u32 t = 0; t < g.steps; t++) {
            for (u32 l = 0; l < LAYERS; l++) {
                const Layer &layer = s.layers[l];
                matrix<QKV>({uniform(layer.q), uniform(layer.k), uniform(layer.v)});
                matrix<OUT>({uniform(layer.out)});
                matrix<UP>({uniform(layer.up)});
                matrix<DOWN>({uniform(layer.down)});
            }
            matrix<HEAD>({g.token});
        }
    }
};
