// `steps` tokens of one sequence in one launch: a cluster of N blocks runs the whole model and samples, compiled for its dimensions.
//
// Every product's rows are spread evenly over the blocks, and each block streams its rows through a window (decode_window.cuh). Its warps share the
// columns: each needs only an eighth of the input, and what they sum up meets in shared memory, which is sooner done than sums over lanes. A few
// of the warps, FINISHERS, finish what all have summed up and send it: each takes the block's rows to some of the blocks, because what a warp
// stores into neighbouring words of one block travels as one. These stores count themselves on the receiver's barrier.
// A layer is five such handoffs: q, k, v to the blocks of their head, unless these make all of it themselves (LOCAL); attention; the residual;
// hidden; the residual. A row of the residual stays with the block that sums it, and is sent as the norm behind it needs it. A head's keys lie with S
// blocks, and the receivers merge the S results.
// A handoff's buffer is free again before its next values come: they need, through the handoffs between, something of every block, and a block
// sends nothing before its warps have met, each with what it has read. What they leave for each other in shared memory alternates between two
// places, or is read before they meet again.
// That is how it goes where all blocks share every layer (decode_spread.cuh). Layers of 128 channels in bfloat16 run in stages instead
// (decode_stages.cuh): a team of four blocks has each fourth layer, and hands over twice.
// Grid: one cluster of N blocks, each of 8 warps that compute, and without stages one that fetches weights and one that fetches keys. Needs sm_90.
// Deterministic.
// Files: decode_layout.cuh, what lies where; decode_warp.cuh and decode_worker.cuh, a warp; decode_product.cuh; decode_spread.cuh and
// decode_attention.cuh, or decode_stages.cuh, the layers; decode_keys.cuh.
// Launcher: src/decoder/cluster.rs.
#include "decode_layout.cuh"
#if STAGED
#include "decode_stages.cuh"
#else
#include "decode_attention.cuh"
#endif

// logits = final_norm(x) . token, to all blocks of the team, and the next token from them.
__device__ u32 Worker::head(const float4 (&x)[HeadSplit::FOURS], float moments) {
    Sums<HeadSplit> sums;
#pragma unroll
    for (int i = 0; i < int(HeadSplit::UNITS); i++) sums.add(0, head_rows[i].values(), x[i]);
    sums.leave(s.partial[0]);
    Norm::leave(s, moments);
    meet();
    if (warp < FINISHERS) send_logits();
    if (warp == 0) pick();
    meet(); // what was picked is there, and the next product may leave its sums
    return s.token;
}

// The block's logits, to all blocks.
__device__ void Worker::send_logits() const {
    Norm norm(s, a.eps);
    float value = norm.apply(whole_sum<HeadSplit>(s.partial[0], 0), ab<HeadSplit>(s.constants + HEAD_AB, 0));
    u32 v = rank * HEAD_ROWS + lane % HeadSplit::ROW_LANES, copy = lane / HeadSplit::ROW_LANES;
#pragma unroll
    for (u32 i = 0; i < TEAM / FINISHERS; i += HeadSplit::PARTS) {
        u32 there = in_block(base(), warp + (i + copy) * FINISHERS);
        if (v < V && i + copy < TEAM / FINISHERS) send(there + offset(s.logits + v), value, there + barrier(LOGITS));
    }
}

__device__ inline void generate(const DecodeArguments &a, Shared &s) {
    Decoder decoder(a, s);
    u32 past = uniform(a.cursor->past), end = past + a.steps, token = a.tokens[0];
    auto speaks = [&] { return decoder.block == 0 && decoder.warp == 0 && decoder.lane == 0; };
    if (past < end) decoder.fetch_position(past), decoder.await_position(), decoder.begin(past, end);
#pragma unroll 1
    for (; past < end; past++) {
        if (decoder.stage == 0) decoder.embed(token);
#pragma unroll 1
        for (u32 layer = decoder.stage; layer < LAYERS; layer += STAGES) decoder.layer(layer, past, end);
        if (decoder.stage > 0) continue;
        if (past + 1 < end) decoder.await_position();
        if (!HEAD_HELD) decoder.load_head();
        float4 x[HeadSplit::FOURS];
        float moments = decoder.final_input(x);
        token = decoder.head(x, moments);
        if (speaks()) a.outbox[(s.issue + past) % a.slots] = u64(s.issue + past + 1) << 32 | token;
    }
    // All blocks have read what changes here: the last logits came from each of them.
    if (speaks()) {
        a.tokens[0] = token;
        a.state->issued = s.issue + past;
        a.cursor->past = past, a.cursor->step = s.step + past;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS + FETCHING * WARP, 1) ENTRY(decode)(const __grid_constant__ DecodeArguments a) {
    extern __shared__ __align__(128) char memory[];
    Shared *start = reinterpret_cast<Shared *>(memory);
    asm volatile("" : "+l"(start)); // kept in a register, not made again and again from the block's number
    __builtin_assume(__isShared(start));
    Shared &s = *start;
    u32 rank = cluster_rank();
    if (threadIdx.x == 0) {
#pragma unroll
        for (u32 i = 0; i < HANDOFFS; i++) {
            barrier_init(shared_address(&s.arrived[i]), 1);
            barrier_expect(shared_address(&s.arrived[i]), Worker::bytes(i));
        }
#pragma unroll 1
        for (u32 i = 0; i < Window::SLOTS; i++) {
            barrier_init(shared_address(&s.full[i]), 1);
            barrier_init(shared_address(&s.empty[i]), WARPS);
        }
#pragma unroll 1
        for (u32 i = 0; i < (STAGED ? 0 : KEY_SLOTS); i++) {
            barrier_init(shared_address(&s.keys_full[i]), 1);
            barrier_init(shared_address(&s.keys_empty[i]), WARPS);
        }
        publish_barriers();
        s.rule = sampling(V, 0, *a.state);
        s.step = a.cursor->step - a.cursor->past, s.issue = a.state->issued - a.cursor->past;
    }
    for (u32 i = threadIdx.x; i < CONSTANTS; i += blockDim.x) s.constants[i] = a.constants[u64(rank) * CONSTANTS + i];
    // A weight of 0 must not meet a NaN: rows without a key yet are 0.
    for (u32 i = threadIdx.x; i < KEY_SLOTS * SLOT_BYTES / 16; i += blockDim.x)
        reinterpret_cast<uint4 *>(memory + KEYS_START)[i] = make_uint4(0, 0, 0, 0);
    for (u32 i = threadIdx.x; TABLE_HELD && i < V * C / 4; i += blockDim.x)
        reinterpret_cast<Four<Element> *>(memory + TABLE_START)[i] = reinterpret_cast<const Four<Element> *>(a.token)[i];
    __syncthreads();
    cluster_barrier();
    if (FETCHING == 0 || uniform(threadIdx.x / WARP) < WARPS) {
        generate(a, s);
    } else if (threadIdx.x == THREADS) {
        const char *stream = a.stream + u64(rank) * LAYERS * LAYER_BYTES * WARPS;
        Window::fill(shared_address(memory + WINDOW_START), shared_address(s.full), shared_address(s.empty), stream, a.steps * LAYERS);
    } else if (threadIdx.x == THREADS + WARP && rank / S < H) {
        u32 past = a.cursor->past;
        fill_keys(s, a.keys, a.values, rank / S, rank % S, past, past + a.steps);
    }
    __syncwarp();
    cluster_barrier(); // a block's shared memory stays until nobody sends to it
}
