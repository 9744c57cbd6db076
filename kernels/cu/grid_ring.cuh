// Weights on their way: shared memory as a ring of slots that one warp fills, in the order in which the others will multiply.
//
// A slot holds whole rows. Which rows a block needs, and when, is the same for every token, so the fetching warp runs ahead over matrices, layers
// and tokens, as far as the ring reaches. From Hopper on a row is one bulk copy; before, lanes copy 16 bytes each. The norms' parameters have two
// places of their own, used in turn.
#pragma once
#include "grid_shared.cuh"

#if __CUDA_ARCH__ >= 900
constexpr u32 FETCH_ARRIVALS = 1;
#else
constexpr u32 FETCH_ARRIVALS = WARP;
#endif

// What L2 does with weights: they leave first, since they are read once a token; the exchange and the caches stay.
__device__ inline u64 weights_policy() {
    u64 policy = 0;
#if __CUDA_ARCH__ >= 800
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
    return policy;
}

// Copies `bytes`, a multiple of 16, by one lane; the barrier counts them.
__device__ inline void bulk_copy(char *to, const void *from, u32 bytes, u32 barrier, u64 policy) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(bytes), "r"(barrier_address(barrier)), "l"(policy)
                 : "memory");
#endif
}
__device__ inline void expect(u32 barrier, u32 bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n .reg .b64 state;\n mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1;\n}" ::"r"(barrier_address(barrier)), "r"(bytes)
                 : "memory");
#endif
}
// Copies `bytes` by all lanes of the warp.
__device__ inline void lane_copy(char *to, const void *from, u32 bytes, u64 policy) {
#if __CUDA_ARCH__ >= 800 && __CUDA_ARCH__ < 900
    for (u32 at = threadIdx.x % WARP * 16; at < bytes; at += WARP * 16)
        asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(shared_address(to + at)),
                     "l"((const char *)from + at), "l"(policy)
                     : "memory");
#endif
}
__device__ inline void lanes_done(u32 barrier) {
#if __CUDA_ARCH__ >= 800 && __CUDA_ARCH__ < 900
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier_address(barrier)) : "memory");
#endif
}

// Slot and norm by their number in the order of fetching; row r of a stage whose first slot is number `slot_count`.
__device__ inline char *slot(u32 count) { return shared<char>(AT_SLOTS) + count % SLOTS * SLOT_BYTES; }
__device__ inline char *norm(u32 count) { return shared<char>(AT_NORMS) + count % 2 * 2 * C * sizeof(Element); }
template <Stage S> __device__ const char *slot_row(u32 slot_count, u32 r) {
    return slot(slot_count + r / slot_rows(S)) + r % slot_rows(S) * stride(inputs(S));
}

// Addresses of a layer, one a lane, in the order of Layer; of no layer, none. They are read a layer ahead.
struct Addresses {
    u64 mine = 0;

    __device__ Addresses(const Layer *layer) {
        constexpr u32 COUNT = sizeof(Layer) / sizeof(u64);
        if (threadIdx.x % WARP < COUNT) mine = reinterpret_cast<const u64 *>(layer)[threadIdx.x % WARP];
    }
    __device__ const Element *operator[](u32 i) const { return reinterpret_cast<const Element *>(__shfl_sync(ALL_LANES, mine, i)); }
};
constexpr u32 NORM1 = 0, Q = 2, OUT_WEIGHT = 5, NORM2 = 7, UP_WEIGHT = 9, DOWN_WEIGHT = 11;

// The matrices of a stage in device memory: one, or those of q, k and v.
struct Matrices {
    const Element *part[3];
};

// Where row `r` of a block's rows lies; null where it only fills a word up.
template <Stage S> __device__ const Element *weight_row(const Matrices &matrices, u32 first_word, u32 r) {
    if (S == QKV) {
        u32 word = first_word + r / PACK, d = word % HEAD_WORDS * PACK + r % PACK, part = word / HEAD_WORDS % 3;
        const Element *matrix = part == 0 ? matrices.part[0] : part == 1 ? matrices.part[1] : matrices.part[2];
        return d < D ? matrix + u64(word / HEAD_WORDS / 3 * D + d) * C : nullptr;
    }
    u32 row = first_word * rows_a_word(S) + r, rows = S == UP ? F : S == HEAD ? VOCAB : C;
    return row < rows ? matrices.part[0] + u64(row) * inputs(S) : nullptr;
}

// The fetching warp.
struct Fetcher {
    const GridArguments &g;
    u64 policy = weights_policy();
    u32 slot_count = 0, norm_count = 0;

    __device__ void norm(const Element *weight, const Element *bias) {
        constexpr u32 BYTES = C * sizeof(Element);
        u32 lane = threadIdx.x % WARP, n = norm_count % 2;
        barrier_wait(NORM_READ + n, norm_count / 2 % 2 ^ 1);
        char *to = ::norm(norm_count++);
        if constexpr (FETCH_ARRIVALS == 1) {
            if (lane == 0) expect(NORM_FULL + n, 2 * BYTES);
            __syncwarp();
            if (lane < 2) bulk_copy(to + lane * BYTES, lane == 0 ? weight : bias, BYTES, NORM_FULL + n, policy);
        } else {
            lane_copy(to, weight, BYTES, policy), lane_copy(to + BYTES, bias, BYTES, policy), lanes_done(NORM_FULL + n);
        }
    }

    template <Stage S> __device__ void matrix(const Matrices &matrices) {
        constexpr u32 BYTES = inputs(S) * sizeof(Element);
        u32 lane = threadIdx.x % WARP, first = share(S, blockIdx.x).first, rows = rows_of(S, blockIdx.x);
        for (u32 r = 0; r < rows; r += slot_rows(S), slot_count++) {
            const Element *from = lane < slot_rows(S) && r + lane < rows ? weight_row<S>(matrices, first, r + lane) : nullptr;
            u32 present = __ballot_sync(ALL_LANES, from != nullptr), s = slot_count % SLOTS;
            barrier_wait(SLOT_READ + s, slot_count / SLOTS % 2 ^ 1);
            char *to = slot(slot_count);
            if constexpr (FETCH_ARRIVALS == 1) {
                if (lane == 0) expect(SLOT_FULL + s, BYTES * __popc(present));
                __syncwarp();
                if (from != nullptr) bulk_copy(to + lane * stride(inputs(S)), from, BYTES, SLOT_FULL + s, policy);
            } else {
                for (; present != 0; present &= present - 1) {
                    u32 which = __ffs(present) - 1;
                    u64 address = __shfl_sync(ALL_LANES, reinterpret_cast<u64>(from), which);
                    lane_copy(to + which * stride(inputs(S)), reinterpret_cast<const void *>(address), BYTES, policy);
                }
                lanes_done(SLOT_FULL + s);
            }
        }
    }

    __device__ void run() {
        bool any[] = {rows_of(QKV, blockIdx.x) > 0, rows_of(UP, blockIdx.x) > 0, rows_of(HEAD, blockIdx.x) > 0};
        Addresses next(g.layers);
        for (u32 t = 0; t < g.steps; t++) {
            for (u32 l = 0; l < LAYERS; l++) {
                Addresses at = next;
                next = Addresses(g.layers + (l + 1 < LAYERS ? l + 1 : 0));
                const Element *weight = at[NORM1], *bias = at[NORM1 + 1];
                if (any[0]) norm(weight, bias);
                matrix<QKV>({at[Q], at[Q + 1], at[Q + 2]});
                matrix<OUT>({at[OUT_WEIGHT]});
                weight = at[NORM2], bias = at[NORM2 + 1];
                if (any[1]) norm(weight, bias);
                matrix<UP>({at[UP_WEIGHT]});
                matrix<DOWN>({at[DOWN_WEIGHT]});
            }
            if (any[2]) norm(g.norm_weight, g.norm_bias);
            matrix<HEAD>({g.token});
        }
    }
};
