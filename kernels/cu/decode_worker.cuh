// A warp of decode.cu: its place in the window of weights, and its share of the head.
#pragma once
#include "decode_product.cuh"

struct Worker : Warp {
    Reader reader;
    const u32 stage; // the cluster's blocks come team by team
    Four<Element> head_rows[HeadSplit::UNITS];

    __device__ Worker(const DecodeArguments &a, Shared &s) : Warp(a, s), reader(s), stage(STAGED ? block / TEAM : 0) {
        if (HEAD_HELD) load_head();
    }
    __device__ void load_head() {
#pragma unroll
        for (int i = 0; i < int(HeadSplit::UNITS); i++) {
            u32 row = min(rank * HEAD_ROWS + HeadSplit::row(0, lane), V - 1);
            head_rows[i] = reinterpret_cast<const Four<Element> *>(a.token + u64(row) * C + HeadSplit::column(warp, lane))[i];
        }
    }

    __device__ const float *constants(u32 layer) const { return s.constants + layer / STAGES * LAYER_CONSTANTS; }
    template <typename Split> __device__ float2 ab(const float *pairs, u32 i) const {
        return reinterpret_cast<const float2 *>(pairs)[Split::row(i, lane)];
    }
    __device__ u32 head(const float4 (&x)[HeadSplit::FOURS], float moments);
    __device__ void send_logits() const;
};
