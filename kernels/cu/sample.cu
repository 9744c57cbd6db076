// Picks a token a row of logits (pick.cuh) and writes it to `tokens` and into the outbox, in host memory that the device sees.
//
// One block of 256 threads a row; thread i takes logits i, i + 256, …, up to four of them held in registers. Each block advances its
// row's cursor, the last one the count of rows issued. Launcher: src/sample.rs.
#include "pick.cuh"

struct SampleShape {
    u32 vocab, slots;
};
static_assert(sizeof(SampleShape) == 8, "SampleShape is passed from Rust");

// Picks the row's token; waits for the previous launch in between.
template <u32 HELD> __device__ u32 pick(const Sampling &s, const float *logits, u32 step) {
    __shared__ u64 shared[WholeBlock::WARPS];
    Scores<HELD, WholeBlock> scores(s, {shared}, logits, step);
    release_next();
    await_previous();
    return scores.pick();
}

extern "C" __global__ void __launch_bounds__(256, 1) sample_f32(volatile u64 *outbox, OutboxState *state, u32 *tokens, Cursor *cursor,
                                           const float *logits, SampleShape shape) {
    // Rules, counts and cursors are changed by this kernel in an earlier pass, or by the host: never by the launch just before.
    u32 row = blockIdx.x, step = cursor[row].step, issued = state->issued;
    Sampling s = sampling(shape.vocab, row, *state);
    logits += u64(row) * s.vocab;
    u32 token = s.vocab <= WholeBlock::THREADS       ? pick<1>(s, logits, step)
                : s.vocab <= 4 * WholeBlock::THREADS ? pick<4>(s, logits, step)
                                                     : pick<0>(s, logits, step);
    if (threadIdx.x != 0) return;
    tokens[row] = token;
    cursor[row] = {cursor[row].past + cursor[row].length, step + 1, 1};
    outbox[u64(issued % shape.slots) * gridDim.x + row] = u64(issued + 1) << 32 | token;
    if (gridDim.x > 1) {
        __threadfence();
        if (atomicAdd(&state->finished, 1) + 1 < gridDim.x) return;
        state->finished = 0;
    }
    state->issued = issued + 1;
}
