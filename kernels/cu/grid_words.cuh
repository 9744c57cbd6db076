// Words of 16 bytes in L2 that say themselves when they are there: 12 bytes of values and the epoch they belong to, written and read as one. A reader
// polls the words it needs: no fence, no counter. All three values must be of use to it: for a word that is needed in part, the assembler makes
// several loads, which may see different words.
#pragma once
#include "grid_model.cuh"

__device__ inline void send(uint4 *word, u32 a, u32 b, u32 c, u32 epoch) {
    asm volatile("{\n .reg .b128 word;\n .reg .b64 low, high;\n mov.b64 low, {%1, %2};\n mov.b64 high, {%3, %4};\n"
                 " mov.b128 word, {low, high};\n st.relaxed.gpu.global.b128 [%0], word;\n}" ::"l"(word), "r"(a), "r"(b), "r"(c), "r"(epoch));
}

__device__ inline uint4 peek(const uint4 *word) {
    uint4 v;
    asm volatile("{\n .reg .b128 word;\n .reg .b64 low, high;\n ld.relaxed.gpu.global.b128 word, [%4];\n"
                 " mov.b128 {low, high}, word;\n mov.b64 {%0, %1}, low;\n mov.b64 {%2, %3}, high;\n}"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(word));
    return v;
}

// Waits for COUNT words a lane at once; those from `count` on are left alone. The warp stays together.
template <u32 COUNT> __device__ void receive(uint4 (&v)[COUNT], const uint4 *const (&word)[COUNT], u32 epoch, u32 count = COUNT) {
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) v[i] = i < count ? peek(word[i]) : make_uint4(0, 0, 0, epoch);
    for (u32 round = 0;; round++) {
        bool there = true;
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) there &= v[i].w == epoch;
        if (__all_sync(ALL_LANES, there)) return;
        GRID_ON_SPIN(round, word[0], epoch)
#pragma unroll
        for (u32 i = 0; i < COUNT; i++)
            if (v[i].w != epoch) v[i] = peek(word[i]);
    }
}
