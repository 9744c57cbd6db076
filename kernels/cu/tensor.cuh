// Tensor cores from Ampere on: asynchronous copies into shared memory, fragments, and the 16 x 8 x 16 product in bfloat16 with float32
// sums. Fragments are laid out as PTX's mma.m16n8k16 says; lane l of a warp holds of a 16 x 8 result the elements (l / 4, l % 4 * 2 + 0, 1)
// and (l / 4 + 8, l % 4 * 2 + 0, 1).
//
// On older GPUs everything here is empty, and no launcher chooses a kernel that uses it.
#pragma once
#include "barrier.cuh"

// Copies 16 bytes to shared memory past L1, zeros where there is nothing to read.
__device__ inline void copy16(u32 to, const void *from, bool there) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
#endif
}
__device__ inline void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Returns when all but the `LATEST` groups of this thread's copies are there.
template <int LATEST> __device__ void await_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(LATEST) : "memory");
#endif
}

// Four 8 x 8 matrices; lane l names row l % 8 of matrix l / 8.
__device__ inline void load_matrices(u32 (&m)[4], u32 row) {
#if __CUDA_ARCH__ >= 800
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(row)
                 : "memory");
#endif
}
__device__ inline void load_matrices_transposed(u32 (&m)[4], u32 row) {
#if __CUDA_ARCH__ >= 800
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(row)
                 : "memory");
#endif
}

// sum += a * b: a 16 x 16, b 16 x 8.
__device__ inline void multiply(float *sum, const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// Where 16-byte piece `piece` of row `row` lies in a tile whose rows are 128 bytes: eight rows spread over all banks. The copy engine's
// swizzle of 128 bytes is the same.
__device__ inline u32 swizzled(u32 row, u32 piece) { return row * 128 + (piece ^ row % 8) * 16; }
