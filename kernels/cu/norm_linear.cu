// A layernorm and the linear layer behind it in one launch, for few rows.
//
// norm_gelu: y[r] = gelu(n W^T + bias), n = layernorm(x[r]); norm_logits: y[r] = n W^T, float32, no bias, of the last row of sequence r where
// there are cursors. One warp an
// output, in strides of the grid; every warp normalises the row for itself. Grid (blocks, R), 8 warps a block. I a multiple of 4, at most
// ROW_MAX. The first weights are read before the previous launch has finished. Deterministic. Launcher: src/norm_linear.rs.
#include "gelu.cu"
#include "row.cuh"

struct NormLinearShape {
    u32 time, inputs, outputs;
    float eps;
};
static_assert(sizeof(NormLinearShape) == 16, "NormLinearShape is passed from Rust");

// What becomes of an output: the MLP's activation in the working precision, or the logits as they are.
template <typename T> struct Gelu {
    typedef T Element;
    typedef T Output;
    static __device__ float apply(float x) { return gelu(x); }
};
template <typename T> struct Logits {
    typedef T Element;
    typedef float Output;
    static __device__ float apply(float x) { return x; }
};

template <typename TO, int CHUNKS>
__device__ void norm_linear(typename TO::Output *y, const float *x, const typename TO::Element *norm_weight,
                            const typename TO::Element *norm_bias, const typename TO::Element *weight,
                            const typename TO::Element *bias, const Cursor *cursor, NormLinearShape s) {
    u32 output = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, row = blockIdx.y;
    if (output >= s.outputs) return;
    Row<CHUNKS> w = load_row<CHUNKS>(weight + u64(output) * s.inputs, s.inputs);
    Norm<CHUNKS> norm(norm_weight, norm_bias, s.inputs, s.eps);
    float extra = bias != nullptr ? to_float(bias[output]) : 0.0f;
    u32 from = source_row(cursor, s.time, row);
    release_next();
    await_previous();
    Row<CHUNKS> n = load_row<CHUNKS>(x + u64(from) * s.inputs, s.inputs);
    norm.apply(n, s.inputs);
    for (;;) {
        float sum = TO::apply(dot(n, w) + extra);
        if (threadIdx.x % WARP == 0) y[u64(row) * s.outputs + output] = from_float<typename TO::Output>(sum);
        output += gridDim.x * (blockDim.x / WARP);
        if (output >= s.outputs) return;
        w = load_row<CHUNKS>(weight + u64(output) * s.inputs, s.inputs);
        extra = bias != nullptr ? to_float(bias[output]) : 0.0f;
    }
}

#define NORM_LINEAR(T, TO)                                                                                              \
    (TO::Output * y, const float *x, const T *norm_weight, const T *norm_bias, const T *weight, const T *bias,          \
     const Cursor *cursor, NormLinearShape s) {                                                                         \
        BY_WIDTH(s.inputs, norm_linear, TO, y, x, norm_weight, norm_bias, weight, bias, cursor, s)                      \
    }
extern "C" __global__ void __launch_bounds__(256) norm_gelu_f32 NORM_LINEAR(float, Gelu<float>)
extern "C" __global__ void __launch_bounds__(256) norm_gelu_bf16 NORM_LINEAR(bf16, Gelu<bf16>)
extern "C" __global__ void __launch_bounds__(256) norm_logits_f32 NORM_LINEAR(float, Logits<float>)
extern "C" __global__ void __launch_bounds__(256) norm_logits_bf16 NORM_LINEAR(bf16, Logits<bf16>)
