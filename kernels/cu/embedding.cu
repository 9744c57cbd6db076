// y[b, t] = token[tokens[b, t]] + position[past_b + t]; `position` may be null.
//
// Grid: one block a row (b, t); a thread takes every blockDim-th channel. Deterministic. Launcher: src/embedding.rs.
#include "common.cuh"

struct EmbeddingShape {
    u32 time, channels, vocab, context;
};
static_assert(sizeof(EmbeddingShape) == 16, "EmbeddingShape is passed from Rust");

template <typename T>
__device__ void embedding(float *y, const u32 *tokens, const T *token, const T *position, const Cursor *cursor,
                          EmbeddingShape s) {
    await_previous();
    release_next(); // after the wait: a later kernel of this pass may then read what earlier passes wrote, as attention.cu does
    u32 row = blockIdx.x;
    u32 id = tokens[row];
    u32 place = cursor[row / s.time].past + row % s.time;
    bool known = id < s.vocab && (position == nullptr || place < s.context);
    for (u32 c = threadIdx.x; c < s.channels; c += blockDim.x) {
        float sum = NOT_A_NUMBER;
        if (known) {
            sum = to_float(token[u64(id) * s.channels + c]);
            if (position != nullptr) sum += to_float(position[u64(place) * s.channels + c]);
        }
        y[u64(row) * s.channels + c] = sum;
    }
}

#define EMBEDDING(T)                                                                                                    \
    (float *y, const u32 *tokens, const T *token, const T *position, const Cursor *cursor, EmbeddingShape s) {          \
        embedding<T>(y, tokens, token, position, cursor, s);                                                            \
    }
extern "C" __global__ void embedding_f32 EMBEDDING(float)
extern "C" __global__ void embedding_bf16 EMBEDDING(bf16)
