// A whole generation in one launch: `steps` tokens of a batch of one, over all multiprocessors, whose blocks talk through L2.
//
// For models whose weights exceed a few multiprocessors' memory, and for GPUs without clusters (from sm_80 on). A program of its own, compiled for
// one model: grid_model.cuh lists the constants. Grid: GRID_BLOCKS blocks of THREADS = 32 (GRID_WARPS + GRID_FINISHERS + 1) threads, all resident
// at once (one a multiprocessor: a cooperative launch sees to it), with GRID_SHARED bytes of dynamic shared memory. The exchange needs
// 16 GRID_EXCHANGE_WORDS bytes, GridState 12; both zero before the first launch, and of no other use.
//
// A block: GRID_WARPS warps multiply, each its columns of all the block's rows; GRID_FINISHERS add their sums, finish and send; 1 fetches
// weights into the ring (grid_ring.cuh). Per layer five results travel (grid_exchange.cuh): q, k, v to the tasks of attention, its result, the
// residual stream after attention, the MLP's activations, the residual stream after the MLP; per token what grid_pick.cuh says. Residual
// rows stay with their block. Rule, tokens, outbox and cursor are sample.cu's. A token below the vocabulary must stand in `tokens`.
//
// Sums have a fixed order: results repeat to the bit on the same number of blocks. Launcher: src/decoder/grid.rs.
#include "grid_attention.cuh"
#include "grid_step.cuh"

// Block-wide barrier of all but the fetching warp.
__device__ inline void sync_workers() { asm volatile("barrier.sync 14, %0;" ::"n"((WARPS + FINISHERS) * WARP) : "memory"); }

// The bias of row `row` of a block whose first word is `first`.
template <Stage S> __device__ float bias_of(const Element *bias, u32 first, u32 row, bool valid) {
    u32 index = first * rows_a_word(S) + row;
    return valid && index < (S == UP ? F : C) ? to_float(bias[index]) : 0.0f;
}

// The biases of a finishing lane's rows of the first pass, read a layer ahead.
struct Biases {
    float out, up, down;

    __device__ Biases(const Block &b, const Layer &layer) {
        u32 row = (b.warp - WARPS) * FINISHER_ROWS + b.lane;
        bool valid = b.lane < FINISHER_ROWS;
        out = bias_of<OUT>(layer.out_bias, share(OUT, b.block).first, row, valid && row < rows_of(OUT, b.block));
        up = bias_of<UP>(layer.up_bias, share(UP, b.block).first, row, valid && row < rows_of(UP, b.block));
        down = bias_of<DOWN>(layer.down_bias, share(DOWN, b.block).first, row, valid && row < rows_of(DOWN, b.block));
    }
};

// What becomes of a stage's rows. `prepare` fetches what does not depend on the sums.
template <Stage S> struct Send {
    uint4 *words;
    u32 first, epoch, lane;
    const Element *bias;
    float early, shift = 0;

    __device__ Send(const Block &b, u32 at, const Element *bias, float early, u32 epoch)
        : words(words_at(b.g.exchange, at, epoch, 0)), first(share(S, b.block).first), epoch(epoch), lane(b.lane), bias(bias), early(early) {}
    __device__ void prepare(u32 row, bool valid) {
        if (S != QKV) shift = row < PASS_ROWS ? early : bias_of<S>(bias, first, row, valid);
    }
    __device__ void operator()(u32 row, float sum, bool valid) {
        float value = sum + shift, *residual = shared<float>(AT_OWN) + row;
        if (S == UP) value = activation(value);
        if ((S == OUT || S == DOWN) && valid) value += *residual, *residual = value;
        send_lanes<rows_a_word(S)>(words + first + row / rows_a_word(S), __float_as_uint(value), valid, epoch, S != QKV, lane);
    }
};

// Logits: kept.
struct Keep {
    float *logits; // of the block's rows

    __device__ void prepare(u32, bool) {}
    __device__ void operator()(u32 row, float sum, bool valid) {
        if (valid) logits[row] = sum;
    }
};

// The token that follows. What pickers need besides the logits they make while those are on their way.
__device__ inline u32 pick(const Block &b, Token &t) {
    __shared__ PickShared shared;
    __shared__ u32 token;
    if (b.warp < PICKERS / WARP) {
        Sampling rule = uniform(sampling(VOCAB, 0, *b.g.rule));
        Share rows = share(HEAD, blockIdx.x);
        HeadScores scores(rule, {shared, b.g.exchange + AT_PICKS, t.round}, rows.first, rows.count, t.step);
        sync_workers();
        scores.read(b.g.logits + rows.first);
        u32 picked = scores.pick();
        if (threadIdx.x == 0) token = picked;
    } else {
        sync_workers();
    }
    sync_workers();
    return token;
}

// A multiplying warp's part of a token.
__device__ inline void multiply_token(Block &b, u32 &task_count, Token &t) {
    const GridArguments &g = b.g;
    const Element *token = g.token + u64(t.id) * C, *position = g.position + u64(t.past) * C;
    const uint4 *residual = nullptr; // at first, the embedding
    Cache next(g.layers[0]);
    for (u32 l = 0; l < LAYERS; l++) {
        u32 epoch = t.epoch + 1;
        Cache cache = next;
        next = Cache(g.layers[l + 1 < LAYERS ? l + 1 : 0]);
        multiply<QKV>(b, FromResidual<QKV>{residual, t.epoch, token, position});
        attend(b, task_count, cache, t.past, epoch);
        multiply<OUT>(b, FromCore{words_at(g.exchange, AT_CORE, epoch, b.block), epoch, pieces(t.past)});
        multiply<UP>(b, FromResidual<UP>{words_at(g.exchange, AT_MIDDLE, epoch, b.block), epoch, nullptr, nullptr});
        multiply<DOWN>(b, FromHidden{words_at(g.exchange, AT_HIDDEN, epoch, b.block), epoch});
        residual = words_at(g.exchange, AT_RESIDUAL, epoch, b.block);
        t.epoch = epoch;
    }
    multiply<HEAD>(b, FromResidual<HEAD>{residual, t.epoch, nullptr, nullptr});
}

// The block's rows of the residual stream at the start of a token, each where the lane that finishes it will look.
__device__ inline void embed_rows(const Block &b, const Token &t) {
    u32 first = share(OUT, blockIdx.x).first * WIDE, rows = rows_of(OUT, blockIdx.x);
    for (u32 start = (b.warp - WARPS) * FINISHER_ROWS; start < rows; start += PASS_ROWS) {
        u32 row = start + b.lane, column = first + row;
        if (b.lane >= FINISHER_ROWS || row >= rows) continue;
        column = smaller(column, C - 1);
        shared<float>(AT_OWN)[row] = to_float(b.g.token[u64(t.id) * C + column]) + to_float(b.g.position[u64(t.past) * C + column]);
    }
}

// A finishing warp's part of a token.
__device__ inline void finish_token(Block &b, u32 &task_count, Token &t, Biases &next) {
    const GridArguments &g = b.g;
    embed_rows(b, t);
    for (u32 l = 0; l < LAYERS; l++) {
        const Layer &layer = g.layers[l];
        u32 epoch = ++t.epoch;
        Biases biases = next;
        Cache cache(layer);
        next = Biases(b, g.layers[l + 1 < LAYERS ? l + 1 : 0]);
        finish<QKV>(b, Send<QKV>(b, AT_QKV, nullptr, 0, epoch));
        finish_attention(b, task_count, cache, t.past, epoch);
        finish<OUT>(b, Send<OUT>(b, AT_MIDDLE, layer.out_bias, biases.out, epoch));
        finish<UP>(b, Send<UP>(b, AT_HIDDEN, layer.up_bias, biases.up, epoch));
        finish<DOWN>(b, Send<DOWN>(b, AT_RESIDUAL, layer.down_bias, biases.down, epoch));
    }
    finish<HEAD>(b, Keep{g.logits + share(HEAD, blockIdx.x).first});
}

__device__ inline void decode_grid(const GridArguments &g) {
    u32 warp = threadIdx.x / WARP;
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < 2; i++) {
            barrier_init(NORM_FULL + i, FETCH_ARRIVALS), barrier_init(NORM_READ + i, WARPS);
            barrier_init(PARTIAL_FULL + i, WARPS), barrier_init(PARTIAL_FREE + i, FINISHERS);
        }
        barrier_init(CORE_FULL, WARPS), barrier_init(CORE_FREE, FINISHERS), barrier_init(STREAM_FULL, WARPS);
        for (u32 i = 0; i < SLOTS; i++) barrier_init(SLOT_FULL + i, FETCH_ARRIVALS), barrier_init(SLOT_READ + i, WARPS);
#if __CUDA_ARCH__ >= 900
        asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
#endif
    }
    for (u32 at = threadIdx.x * 16; at < WARPS * INPUT_BYTES; at += THREADS * 16) *shared<uint4>(AT_INPUTS + at) = make_uint4(0, 0, 0, 0);
    Token t = {g.tokens[0], g.cursor->past, g.cursor->step, g.state->epoch, g.state->round};
    u32 issued = g.rule->issued, task_count = 0, first_epoch = t.epoch;
    __syncthreads();
    if (warp == WARPS + FINISHERS) {
        Fetcher{g}.run();
    } else {
        Block b = {g, blockIdx.x, warp, threadIdx.x % WARP};
        Biases next(b, g.layers[0]);
        for (u32 i = 0; i < g.steps; i++) {
            if (warp < WARPS) multiply_token(b, task_count, t);
            else finish_token(b, task_count, t, next);
            t.id = pick(b, t);
            t.past++, t.step++;
            if (blockIdx.x == 0 && threadIdx.x == 0) deliver(g, t, issued++);
        }
    }
    __syncthreads();
    if (threadIdx.x != 0 || atomicAdd(&g.state->finished, 1) + 1 < BLOCKS) return;
    g.state->finished = 0;
    g.state->epoch = first_epoch + g.steps * LAYERS;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) ENTRY(decode_grid)(const __grid_constant__ GridArguments g) { decode_grid(g); }
