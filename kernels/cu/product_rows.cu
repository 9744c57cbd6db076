// Products of few rows as they are (rows.cuh), in bfloat16, where rows are too wide to be normalised on the way: y = gelu(x * weight^T + bias),
// and the three projections with the append to the cache. Launchers: src/linear_gelu.rs, src/qkv.rs.
#include "norm_linear.cu"
#include "norm_qkv.cu"
#include "product_mma.cu"

extern "C" __global__ void __launch_bounds__(256, 2) linear_gelu_rows_bf16(bf16 *y, const bf16 *x, const bf16 *weight, const bf16 *bias,
                                                                           LinearShape s) {
    OneMatrix<bf16> matrix = {weight, s.inputs, s.outputs};
    NormLinearOut<Gelu<bf16>> out(y, bias, s.rows, s.outputs);
    product_stored(Stored<bf16>{x, s.rows, s.inputs}, matrix, out, s.outputs);
}

extern "C" __global__ void __launch_bounds__(256, 2) qkv_rows_bf16(Projections p, const bf16 *x, const Cursor *cursor, CacheShape s) {
    u32 channels = s.heads * s.head_size;
    ThreeMatrices<bf16> matrices = {{p.weight[0], p.weight[1], p.weight[2]}, channels};
    QkvOut<bf16> out(p.place[0], p.place[1], p.place[2], cursor, s);
    product_stored(Stored<bf16>{x, s.batch * s.time, channels}, matrices, out, 3 * channels);
}
