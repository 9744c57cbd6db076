// Weights on their way: shared memory as a ring of slots that one warp fills, in the order in which the others will multiply.
//
// A slot holds whole rows. Which rows a block needs, and when, is the same for every
// token, so the fetching warp runs ahead over matrices, layers and tokens, as far as the ring reaches. From Hopper on a row is one bulk copy;
// before, lanes copy 16 bytes each. The norms' parameters have two places of their own, used in turn.
#pragma once
#include "grid_shared.cuh"

#if __CUDA_ARCH__ >= 900
constexpr u32 FETCH_ARRIVALS = 1;
#else
constexpr u32 FETCH_ARRIVALS = WARP;
#endif

// Copies `bytes`, a multiple of 16, by one lane; the barrier counts them.
__device__ inline void bulk_copy(char *to, const void *from, u32 bytes, u32 barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes), "r"(barrier_address(barrier))
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
__device__ inline void lane_copy(char *to, const void *from, u32 bytes) {
#if __CUDA_ARCH__ >= 800 && __CUDA_ARCH__ < 900
    for (u32 at = threadIdx.x % WARP * 16; at < bytes; at += WARP * 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to + at)), "l"((const char *)from + at) : "memory");
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

// Where the rows of a stage lie in device memory; null for a row that only fills a word up.
template <Stage S> __device__ const Element *weight_row(const GridArguments &g, const Layer *layer, u32 first_word, u32 r) {
    if (S == QKV) {
        u32 word = first_word + r / PACK, d = word % HEAD_WORDS * PACK + r % PACK, part = word / HEAD_WORDS % 3;
        const Element *matrix = part == 0 ? layer->q : part == 1 ? layer->k : layer->v;
        return d < D ? matrix + u64(word / HEAD_WORDS / 3 * D + d) * C : nullptr;
    }
    u32 row = first_word * rows_a_word(S) + r;
    const Element *matrix = S == OUT ? layer->out : S == UP ? layer->up : S == DOWN ? layer->down : g.token;
    u32 rows = S == UP ? F : S == HEAD ? VOCAB : C;
    return row < rows ? matrix + u64(row) * inputs(S) : nullptr;
}

// The fetching warp.
struct Fetcher {
    const GridArguments &g;
    u32 slot_count = 0, norm_count = 0;

    __device__ void norm(const Element *weight, const Element *bias) {
        constexpr u32 BYTES = C * sizeof(Element);
        u32 lane = threadIdx.x % WARP, n = norm_count % 2;
        barrier_wait(NORM_READ + n, norm_count / 2 % 2 ^ 1);
        char *to = ::norm(norm_count++);
        if constexpr (FETCH_ARRIVALS == 1) {
            if (lane == 0) expect(NORM_FULL + n, 2 * BYTES);
            __syncwarp();
            if (lane < 2) bulk_copy(to + lane * BYTES, lane == 0 ? weight : bias, BYTES, NORM_FULL + n);
        } else {
            lane_copy(to, weight, BYTES), lane_copy(to + BYTES, bias, BYTES), lanes_done(NORM_FULL + n);
        }
    }

    template <Stage S> __device__ void matrix(const Layer *layer) {
        constexpr u32 BYTES = inputs(S) * sizeof(Element);
        u32 lane = threadIdx.x % WARP, first = share(S, blockIdx.x).first, rows = rows_of(S, blockIdx.x);
        for (u32 r = 0; r < rows; r += slot_rows(S), slot_count++) {
            const Element *from = lane < slot_rows(S) && r + lane < rows ? weight_row<S>(g, layer, first, r + lane) : nullptr;
            u32 present = __ballot_sync(ALL_LANES, from != nullptr), s = slot_count % SLOTS;
            barrier_wait(SLOT_READ + s, slot_count / SLOTS % 2 ^ 1);
            char *to = slot(slot_count);
            if constexpr (FETCH_ARRIVALS == 1) {
                if (lane == 0) expect(SLOT_FULL + s, BYTES * __popc(present));
                __syncwarp();
                if (from != nullptr) bulk_copy(to + lane * stride(inputs(S)), from, BYTES, SLOT_FULL + s);
            } else {
                for (; present != 0; present &= present - 1) {
                    u32 which = __ffs(present) - 1;
                    u64 address = __shfl_sync(ALL_LANES, reinterpret_cast<u64>(from), which);
                    lane_copy(to + which * stride(inputs(S)), reinterpret_cast<const void *>(address), BYTES);
                }
                lanes_done(SLOT_FULL + s);
            }
        }
    }

    __device__ void run() {
        bool any[] = {rows_of(QKV, blockIdx.x) > 0, rows_of(UP, blockIdx.x) > 0, rows_of(HEAD, blockIdx.x) > 0};
        for (u32 t = 0; t < g.steps; t++) {
            for (const Layer *layer = g.layers; layer < g.layers + LAYERS; layer++) {
                if (any[0]) norm(layer->norm1_weight, layer->norm1_bias);
                matrix<QKV>(layer);
                matrix<OUT>(layer);
                if (any[1]) norm(layer->norm2_weight, layer->norm2_bias);
                matrix<UP>(layer);
                matrix<DOWN>(layer);
            }
            if (any[2]) norm(g.norm_weight, g.norm_bias);
            matrix<HEAD>(nullptr);
        }
    }
};
