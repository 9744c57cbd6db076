// What lies where in a block's shared memory, and the barriers there.
//
//   inputs      [WARPS][INPUT_BYTES]  each multiplying warp's columns of the input: see grid_tile.cuh
//   queries     [WARPS][D] float  the query of a warp's keys
//   partial     [2][3][PARTIAL_ROWS][ROW_SUMS] float  the warps' sums of a pass, in two places by turns
//   core        [WARPS + FINISHERS][CORE_SUMS] float  the warps' sums of values
//   residual    [rows_max(OUT)] float  the block's own rows of the residual stream
//   stream      [C] float  the residual stream, for its mean and variance
//   spans       [WARPS] float2  maximum and total of a warp's scores
//   barriers    see below
//   norms       [2][2][C] Element  a norm's weight and bias, in two places by turns
//   slots       [SLOTS][SLOT_BYTES]  the ring of weights: whole rows, each half a line of all banks further on than the one before, so that
//               eight lanes find 64 bytes of two rows in different banks
#pragma once
#include "grid_share.cuh"

constexpr u32 BANKS_BYTES = 128;
__device__ constexpr u32 stride(u32 columns) { return (columns * u32(sizeof(Element)) + 63) / BANKS_BYTES * BANKS_BYTES + 64; }
__device__ constexpr u32 power_below(u32 n) { return n >= 8 ? 8 : n >= 4 ? 4 : n >= 2 ? 2 : 1; }
// A slot's length lets the rows of DOWN go on through the banks from slot to slot where each has one of its own.
constexpr u32 SLOT_LEAST = larger(stride(F), stride(C) * (stride(C) * 8 <= 13 * 1024 ? 8 : 4));
constexpr u32 SLOT_BYTES = divide_up(SLOT_LEAST, BANKS_BYTES) * BANKS_BYTES + (SLOT_LEAST < 2 * stride(F) ? 64 : 0);
__device__ constexpr u32 slot_rows(Stage s) { return power_below(SLOT_BYTES / stride(inputs(s))); }

// Rows are multiplied in tiles, and added up in passes; a finisher's rows of a pass are whole words.
constexpr u32 TILE_ROWS = 8, FINISHER_ROWS = 24, PASS_ROWS = FINISHERS * FINISHER_ROWS;
__device__ constexpr u32 pass_rows(Stage s) { return smaller(PASS_ROWS, divide_up(rows_max(s), TILE_ROWS) * TILE_ROWS); }
constexpr u32 PARTIAL_ROWS = larger(larger(larger(pass_rows(QKV), pass_rows(OUT)), larger(pass_rows(UP), pass_rows(DOWN))), pass_rows(HEAD));
constexpr u32 ROW_SUMS = WARPS + 4, KIND_SUMS = PARTIAL_ROWS * ROW_SUMS, PARTIAL_SUMS = 3 * KIND_SUMS, CORE_SUMS = D + 4;

// A warp's input: of C columns, in bf16 their upper halves and what those leave, and of F columns. Columns that a warp does not have stay zero.
constexpr u32 AT_REST = groups_max(C) * GROUP_BYTES, AT_WIDE_INPUT = (HALF ? 2 : 1) * AT_REST;
constexpr u32 INPUT_BYTES = AT_WIDE_INPUT + groups_max(F) * GROUP_BYTES;

constexpr u32 AT_INPUTS = 0, AT_QUERIES = AT_INPUTS + WARPS * INPUT_BYTES, AT_PARTIAL = AT_QUERIES + WARPS * D * 4;
constexpr u32 AT_CORE_SUMS = AT_PARTIAL + 2 * PARTIAL_SUMS * 4;
constexpr u32 AT_OWN = AT_CORE_SUMS + (WARPS + FINISHERS) * CORE_SUMS * 4, AT_STREAM = AT_OWN + divide_up(rows_max(OUT), 4) * 16;
constexpr u32 AT_SPANS = AT_STREAM + C * 4, AT_NORMS = AT_SPANS + WARPS * 8;
constexpr u32 AT_BARRIERS = AT_NORMS + 2 * 2 * C * sizeof(Element);

// Barriers by number. Those of the ring are two a slot.
constexpr u32 NORM_FULL = 0, NORM_READ = 2, PARTIAL_FULL = 4, PARTIAL_FREE = 6, CORE_FULL = 8, CORE_FREE = 9, STREAM_FULL = 10, SLOT_FULL = 11;
static_assert(AT_BARRIERS + 8 * SLOT_FULL < GRID_SHARED, "there is room for a ring");
constexpr u32 SLOTS = (GRID_SHARED - AT_BARRIERS - 8 * SLOT_FULL) / (SLOT_BYTES + 16), SLOT_READ = SLOT_FULL + SLOTS;
constexpr u32 AT_SLOTS = divide_up(AT_BARRIERS + 8 * (SLOT_READ + SLOTS), 16) * 16, SHARED_BYTES = AT_SLOTS + SLOTS * SLOT_BYTES;
static_assert(SLOT_BYTES % 16 == 0 && INPUT_BYTES % 16 == 0 && AT_BARRIERS % 16 == 0, "vectors are aligned");
static_assert(SLOTS > 0 && SHARED_BYTES <= GRID_SHARED, "the ring fits");

extern __shared__ __align__(128) char shared_memory[];

template <typename T> __device__ inline T *shared(u32 at) { return reinterpret_cast<T *>(shared_memory + at); }
__device__ inline u32 shared_address(const void *p) { return u32(__cvta_generic_to_shared(p)); }

// A barrier's phase ends when all have arrived and all bytes announced have come.
__device__ inline u32 barrier_address(u32 number) { return shared_address(shared_memory) + AT_BARRIERS + 8 * number; }
__device__ inline void barrier_init(u32 number, u32 count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier_address(number)), "r"(count));
}
__device__ inline void barrier_arrive(u32 number) {
    asm volatile("{\n .reg .b64 state;\n mbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(barrier_address(number)) : "memory");
}
__device__ inline bool barrier_passed(u32 number, u32 parity) {
    u32 passed = 0;
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n .reg .pred p;\n mbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(passed) : "r"(barrier_address(number)), "r"(parity) : "memory");
#elif __CUDA_ARCH__ >= 800
    asm volatile("{\n .reg .pred p;\n mbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(passed) : "r"(barrier_address(number)), "r"(parity) : "memory");
#endif
    return passed;
}
// Waits for the end of the phase of this parity, of a barrier for each lane or one for all. The warp stays together, so that no lane can fall
// behind a whole phase when another has arrived for all. The first form waits only where `waits`.
__device__ inline void barrier_wait(u32 number, u32 parity, bool waits) {
    for (u32 round = 0; !__all_sync(ALL_LANES, !waits || barrier_passed(number, parity)); round++) {
        GRID_ON_SPIN(round, shared_memory + number, parity)
    }
}
__device__ inline void barrier_wait(u32 number, u32 parity) { barrier_wait(number, parity, true); }
