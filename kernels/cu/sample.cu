// Picks a token a row of logits (pick.cuh) and writes it to `tokens` and into the outbox, in host memory that the device sees.
//
// One block a row: of 256 threads where thread i holds logits i, i + 256, …, up to four of them, in registers; of 1024 in `sample_wide`, for any
// number of logits, which passes over them several times. Each block advances its row's cursor, the last one the count of rows issued.
// Launcher: src/sample.rs.
#include "pick.cuh"

struct SampleShape {
    u32 vocab, slots;
};
static_assert(sizeof(SampleShape) == 8, "SampleShape is passed from Rust");

// Picks the row's token; waits for the previous launch in between.
template <u32 HELD> __device__ u32 pick_held(const Sampling &s, const float *logits, u32 step) {
    typedef WholeBlock<256> Team;
    __shared__ u64 shared[Team::WARPS];
    Scores<HELD, Team> scores(s, {shared}, [&](u32 token) { return gumbel(token, step, s); });
    release_next();
    await_previous();
    scores.read(logits);
    return scores.pick();
}

// Hands over the block's token.
__device__ inline void deliver(u32 token, u32 step, u32 issued, volatile u64 *outbox, OutboxState *state, u32 *tokens, Cursor *cursor,
                               const SampleShape &shape) {
    u32 row = blockIdx.x;
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

// Rules, counts and cursors are changed by these kernels in an earlier pass, or by the host: never by the launch just before.
extern "C" __global__ void __launch_bounds__(256, 1) sample_f32(volatile u64 *outbox, OutboxState *state, u32 *tokens, Cursor *cursor,
                                                                const float *logits, SampleShape shape) {
    Sampling s = sampling(shape.vocab, blockIdx.x, *state);
    u32 step = cursor[blockIdx.x].step, issued = state->issued;
    logits += u64(blockIdx.x) * s.vocab;
    u32 token = s.vocab <= 256 ? pick_held<1>(s, logits, step) : pick_held<4>(s, logits, step);
    if (threadIdx.x == 0) deliver(token, step, issued, outbox, state, tokens, cursor, shape);
}

extern "C" __global__ void __launch_bounds__(1024, 1) sample_wide_f32(volatile u64 *outbox, OutboxState *state, u32 *tokens, Cursor *cursor,
                                                                      const float *logits, SampleShape shape) {
    typedef WholeBlock<1024> Team;
    __shared__ u64 shared[Team::WARPS];
    __shared__ Candidates candidates;
    Sampling s = sampling(shape.vocab, blockIdx.x, *state);
    u32 step = cursor[blockIdx.x].step, issued = state->issued;
    release_next();
    await_previous();
    u32 token = pick(s, Team{shared}, logits + u64(blockIdx.x) * s.vocab, step, candidates);
    if (threadIdx.x == 0) deliver(token, step, issued, outbox, state, tokens, cursor, shape);
}
