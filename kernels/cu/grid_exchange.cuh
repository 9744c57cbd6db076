// How blocks hand results to each other: words of 16 bytes in L2 that say themselves when they are there.
//
// A word is 12 bytes of values and the epoch they belong to, written and read as one. Every layer of every token has an epoch of its own, and
// every kind of word a buffer for even and one for odd epochs. A reader polls the words it needs: no fence, no counter. A buffer is written
// again two epochs later, after every result that anybody made from it has been needed by all: so it is free by then.
#pragma once
#include "grid_share.cuh"
#include "grid_pick.cuh"

// Where the words of a parity lie. Attention's are those of all heads, once for each piece: CORE_PACK values and what they weigh, in bf16 as the
// logarithm, in float as maximum and total.
constexpr u32 CORE_PACK = HALF ? 4 : 1, CORE_WORDS = C / CORE_PACK;
constexpr u32 AT_QKV = 0, AT_CORE = AT_QKV + words(QKV), AT_MIDDLE = AT_CORE + SPLITS * CORE_WORDS;
constexpr u32 AT_HIDDEN = AT_MIDDLE + words(OUT), AT_RESIDUAL = AT_HIDDEN + words(UP);
constexpr u32 COPY_WORDS = AT_RESIDUAL + words(DOWN);

// Words that all blocks read are there REPLICAS times, so that not all of them poll the same lines: block b reads copy b % REPLICAS.
constexpr u32 REPLICAS = 6, AT_PICKS = 2 * REPLICAS * COPY_WORDS, EXCHANGE_WORDS = AT_PICKS + PICK_WORDS;
static_assert(EXCHANGE_WORDS == GRID_EXCHANGE_WORDS, "the host counts the words as we do");

__device__ inline uint4 *words_at(uint4 *exchange, u32 at, u32 epoch, u32 copy) {
    return exchange + (epoch % 2 * REPLICAS + copy % REPLICAS) * COPY_WORDS + at;
}

// Value i of a word of the working precision.
__device__ inline float unpack(const uint4 &v, u32 i) {
    if constexpr (HALF) {
        u32 pair = i / 2 == 0 ? v.x : i / 2 == 1 ? v.y : v.z;
        return __uint_as_float(i % 2 ? pair & 0xffff0000u : pair << 16);
    }
    return __uint_as_float(i == 0 ? v.x : i == 1 ? v.y : v.z);
}
// What a pair leaves of the values it was made from.
__device__ inline u32 pack_rest(float low, float high, u32 pair) {
    return pack(low - __uint_as_float(pair << 16), high - __uint_as_float(pair & 0xffff0000u));
}

// Sends words of COUNT neighbouring lanes, 3 with 32 bits each or 6 with a value to be rounded to bf16, to all copies of `word`, or to the first
// alone. All lanes call this, those of a word that is not to be sent with `sends` false.
template <u32 COUNT> __device__ void send_lanes(uint4 *word, u32 mine, bool sends, u32 epoch, bool copies, u32 lane) {
    u32 start = lane / COUNT * COUNT, part[3];
    if constexpr (COUNT == 6) mine = pack(__uint_as_float(mine), __uint_as_float(__shfl_down_sync(ALL_LANES, mine, 1)));
#pragma unroll
    for (u32 i = 0; i < 3; i++) part[i] = __shfl_sync(ALL_LANES, mine, start + i * (COUNT / 3));
    if (!sends) return;
    if (!copies) {
        if (lane == start) send(word, part[0], part[1], part[2], epoch);
        return;
    }
#pragma unroll
    for (u32 copy = 0; copy < REPLICAS; copy += COUNT) send(word + (copy + lane - start) * COPY_WORDS, part[0], part[1], part[2], epoch);
}
