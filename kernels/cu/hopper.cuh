// What only Hopper has (sm_90a): the copy engine, and products by warpgroups of four warps that read both operands from shared memory.
// Elsewhere all of it is empty, and no launcher chooses a kernel that uses it.
#pragma once
#include "tensor.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER 1
#else
#define HOPPER 0
#endif

// A matrix in device memory as the copy engine knows it; made by the driver (src/product.rs).
struct __align__(64) TensorMap {
    u64 opaque[16];
};

// Copies the map's box at (column, row) and counts its bytes at the barrier. Zeros lie outside the matrix.
__device__ inline void copy_box(u32 to, const TensorMap *map, u32 column, u32 row, u32 barrier) {
#if HOPPER
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(map), "r"(column), "r"(row), "r"(barrier)
                 : "memory");
#endif
}
__device__ inline void fetch_map(const TensorMap *map) {
#if HOPPER
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#endif
}

// Moves registers between warpgroups: this one gives some up, or gets some.
template <int REGISTERS> __device__ void give_registers() {
#if HOPPER
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#endif
}
template <int REGISTERS> __device__ void take_registers() {
#if HOPPER
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#endif
}

// A tile whose rows are 64 elements long, swizzled by 128 bytes, as an operand: its address, 1024 bytes from eight rows to the next eight.
__device__ inline u64 operand(u32 tile) {
    return u64(tile >> 4 & 0x3fff) | u64(1) << 16 | u64(1024 >> 4) << 32 | u64(1) << 62;
}
__device__ inline void open_products() {
#if HOPPER
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ inline void commit_products() {
#if HOPPER
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
template <int LATEST> __device__ void await_products() {
#if HOPPER
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LATEST) : "memory");
#endif
}
// Keeps the compiler from touching a sum before the products that make it are awaited.
template <int LEN> __device__ void settle(float (&sum)[LEN]) {
#pragma unroll
    for (int i = 0; i < LEN; i++) asm volatile("" : "+f"(sum[i])::"memory");
}

// A tile of rows of 64 elements, swizzled by 128 bytes, whose rows are what is summed over: the same strides.
//
// sum += a * b with a 64 x 16 in registers as fragments of tensor.cuh, a warp's 16 rows each, and b 16 x 64, 16 rows of such a tile.
__device__ inline void multiply_rows(float (&sum)[32], const u32 (&a)[4], u64 b) {
#if HOPPER
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "
                 "%24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]), "+f"(sum[4]), "+f"(sum[5]), "+f"(sum[6]), "+f"(sum[7]),
                   "+f"(sum[8]), "+f"(sum[9]), "+f"(sum[10]), "+f"(sum[11]), "+f"(sum[12]), "+f"(sum[13]), "+f"(sum[14]),
                   "+f"(sum[15]), "+f"(sum[16]), "+f"(sum[17]), "+f"(sum[18]), "+f"(sum[19]), "+f"(sum[20]), "+f"(sum[21]),
                   "+f"(sum[22]), "+f"(sum[23]), "+f"(sum[24]), "+f"(sum[25]), "+f"(sum[26]), "+f"(sum[27]), "+f"(sum[28]),
                   "+f"(sum[29]), "+f"(sum[30]), "+f"(sum[31])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}

// sum += a * b^T with a 64 x 16 and b COLUMNS x 16, both in shared memory. One specialisation a width: the instruction names every
// register of the sum.
template <int COLUMNS> struct Warpgroup;
#define TEN_NAMES(t) "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9"
#define TEN_SUMS(t)                                                                                                     \
    "+f"(sum[t##0]), "+f"(sum[t##1]), "+f"(sum[t##2]), "+f"(sum[t##3]), "+f"(sum[t##4]), "+f"(sum[t##5]),              \
        "+f"(sum[t##6]), "+f"(sum[t##7]), "+f"(sum[t##8]), "+f"(sum[t##9])
#define WARPGROUP(COLUMNS, LEN, NAMES, A, B, ...)                                                                       \
    template <> struct Warpgroup<COLUMNS> {                                                                             \
        static __device__ void multiply(float (&sum)[LEN], u64 a, u64 b) {                                              \
            asm volatile("wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16.f32.bf16.bf16 {" NAMES "}, " A ", " B        \
                         ", 1, 1, 1, 0, 0;"                                                                             \
                         : __VA_ARGS__                                                                                  \
                         : "l"(a), "l"(b));                                                                             \
        }                                                                                                               \
    };
#if HOPPER
WARPGROUP(64, 32, TEN_NAMES() ", " TEN_NAMES(1) ", " TEN_NAMES(2) ", %30, %31", "%32", "%33", TEN_SUMS(), TEN_SUMS(1),
          TEN_SUMS(2), "+f"(sum[30]), "+f"(sum[31]))
WARPGROUP(104, 52, TEN_NAMES() ", " TEN_NAMES(1) ", " TEN_NAMES(2) ", " TEN_NAMES(3) ", " TEN_NAMES(4) ", %50, %51", "%52", "%53",
          TEN_SUMS(), TEN_SUMS(1), TEN_SUMS(2), TEN_SUMS(3), TEN_SUMS(4), "+f"(sum[50]), "+f"(sum[51]))
WARPGROUP(160, 80,
          TEN_NAMES() ", " TEN_NAMES(1) ", " TEN_NAMES(2) ", " TEN_NAMES(3) ", " TEN_NAMES(4) ", " TEN_NAMES(5) ", "
          TEN_NAMES(6) ", " TEN_NAMES(7),
          "%80", "%81", TEN_SUMS(), TEN_SUMS(1), TEN_SUMS(2), TEN_SUMS(3), TEN_SUMS(4), TEN_SUMS(5), TEN_SUMS(6),
          TEN_SUMS(7))
WARPGROUP(200, 100,
          TEN_NAMES() ", " TEN_NAMES(1) ", " TEN_NAMES(2) ", " TEN_NAMES(3) ", " TEN_NAMES(4) ", " TEN_NAMES(5) ", "
          TEN_NAMES(6) ", " TEN_NAMES(7) ", " TEN_NAMES(8) ", " TEN_NAMES(9),
          "%100", "%101", TEN_SUMS(), TEN_SUMS(1), TEN_SUMS(2), TEN_SUMS(3), TEN_SUMS(4), TEN_SUMS(5), TEN_SUMS(6),
          TEN_SUMS(7), TEN_SUMS(8), TEN_SUMS(9))
#else
template <int COLUMNS> struct Warpgroup {
    static __device__ void multiply(float *, u64, u64) {}
};
#endif
