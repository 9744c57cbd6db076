// `steps` tokens of one sequence in one launch: a train of clusters, each of which has a layer of the model, and the first of them the head as well.
//
// A cluster's weights stay with it over the launch, in registers and shared memory, and so do its keys and values: what a token meets is latency
// alone. While the others work, a block brings what it multiplies next into registers. Within a cluster a layer is handed over as in decode.cu: q, k
// and v to the blocks of their heads, attention, the residual, hidden. From one cluster to the next the residual goes through L2, in words that carry
// their token's number: every warp polls those of the columns that it multiplies. The first cluster awaits the last one's for the head, picks the
// next token and begins with it. A handoff's buffer is free again before its next values come, those of the next token: that has gone through all
// clusters, and of this one needed something of every warp that read it. What warps leave for each other in shared memory alternates between two
// places, or is read before they meet again.
// Grid: CLUSTERS clusters of N blocks, all resident at once, each of 8 warps. Needs sm_90. Deterministic. bfloat16 only: what products multiply is
// rounded to it, as PyTorch does; the residual and its norms' moments stay float32.
// Files: train_layout.cuh, what lies where; train_product.cuh; train_attention.cuh; train_worker.cuh, the layer; decode_warp.cuh and decode_sums.cuh as
// of decode.cu.
// Launcher: src/decoder/cluster.rs.
#include "train_worker.cuh"

__device__ inline void generate(const DecodeArguments &a, Shared &s) {
    Train train(a, s);
    bool first = train.layer == 0, speaker = blockIdx.x == 0 && threadIdx.x == 0;
    u32 past = uniform(s.past), end = past + a.steps, epoch = uniform(s.epoch), token = s.token;
    if (past >= end) return;
    if (first) train.fetch_position(past), train.await_position();
    train.begin(past);
    if (first) train.embed(token);
    train.load_ahead();
#pragma unroll 1
    for (; past < end; past++) {
        epoch++;
        if (!first) train.receive_residual(epoch);
        train.run(past, end, epoch);
        train.load_ahead();
        if (!first) continue;
        if (past + 1 < end) train.await_position();
        train.receive_residual(epoch);
        token = train.head();
        if (speaker) a.outbox[(s.issue + past) % a.slots] = u64(s.issue + past + 1) << 32 | token;
        if (past + 1 < end) train.embed(token);
    }
    // All blocks have read what changes here: the last logits came by way of each of them.
    if (speaker) {
        a.tokens[0] = token;
        a.state->issued = s.issue + past;
        a.cursor->past = past, a.cursor->step = s.step + past;
        a.exchange[0].x = epoch;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) ENTRY(decode)(const __grid_constant__ DecodeArguments a) {
    extern __shared__ __align__(128) char memory[];
    Shared *start = reinterpret_cast<Shared *>(memory);
    asm volatile("" : "+l"(start)); // kept in a register, not made again and again from the block's number
    __builtin_assume(__isShared(start));
    Shared &s = *start;
    if (threadIdx.x == 0) {
#pragma unroll
        for (u32 i = 0; i < HANDOFFS; i++) {
            barrier_init(shared_address(&s.arrived[i]), 1);
            u32 bytes = i == QKV ? qkv_bytes(cluster_rank(), a.cursor->past) : Warp::bytes(i);
            if (i != RESIDUAL) barrier_expect(shared_address(&s.arrived[i]), bytes);
        }
        publish_barriers();
        s.rule = sampling(V, 0, *a.state);
        s.past = a.cursor->past, s.epoch = a.exchange[0].x, s.token = a.tokens[0];
        s.step = a.cursor->step - s.past, s.issue = a.state->issued - s.past;
    }
    for (u32 i = threadIdx.x; i < CONSTANTS; i += THREADS) s.constants[i] = a.constants[u64(blockIdx.x) * CONSTANTS + i];
    // A weight of 0 must not meet a NaN: rows without a key yet are 0.
    for (u32 i = threadIdx.x; i < ROUNDS * 2 * KEY_BYTES / 16; i += THREADS)
        reinterpret_cast<uint4 *>(memory + KEYS_START)[i] = make_uint4(0, 0, 0, 0);
    __syncthreads();
    cluster_barrier();
    generate(a, s);
    __syncwarp();
    cluster_barrier(); // a block's shared memory stays until nobody sends to it
}
