//! A layernorm and the linear layer behind it, in one launch.

use crate::buffer::Buffer;
use crate::device::{Device, Launch, arguments};
use crate::element::{Element, Plain};
use crate::entry::Entry;
use crate::error::Result;
use crate::shape::{NormShape, ROW_MAX, groups, last_rows};

/// As the device code takes it.
#[repr(C)]
#[derive(Clone, Copy)]
struct NormLinearShape {
    time: u32,
    inputs: u32,
    outputs: u32,
    eps: f32,
}
const _: () = assert!(size_of::<NormLinearShape>() == 16);

/// y = gelu(layernorm(x) · weightᵀ + bias); `y: [count, O]`, `x: [R, I]`, `norm: ([I], [I])` weight and bias, `weight: [O, I]`, `bias: [O]`.
/// I is a multiple of four and at most [`ROW_MAX`]. For few rows.
///
/// # Errors
/// The driver's.
pub fn norm_gelu<E: Element>(
    device: &Device,
    y: &mut Buffer<E>,
    x: &Buffer<f32>,
    norm: (&Buffer<E>, &Buffer<E>),
    weight: &Buffer<E>,
    bias: &Buffer<E>,
    rows: NormShape,
    outputs: usize,
) -> Result<()> {
    let entry = E::pick(Entry::norm_gelu_f32, Entry::norm_gelu_bf16);
    norm_linear(device, entry, y, x, norm, weight, Some(bias), None, rows, outputs)
}

/// y = layernorm(x) · weightᵀ in float32; operands as in [`norm_gelu`], without bias, and `cursor: [count, 3]` or none, which says
/// what rows of x are read.
///
/// # Errors
/// The driver's.
pub fn norm_logits<E: Element>(
    device: &Device,
    y: &mut Buffer<f32>,
    x: &Buffer<f32>,
    norm: (&Buffer<E>, &Buffer<E>),
    weight: &Buffer<E>,
    cursor: Option<&Buffer<u32>>,
    rows: NormShape,
    outputs: usize,
) -> Result<()> {
    let entry = E::pick(Entry::norm_logits_f32, Entry::norm_logits_bf16);
    norm_linear(device, entry, y, x, norm, weight, None, cursor, rows, outputs)
}

fn norm_linear<Y: Plain, E: Element>(
    device: &Device,
    entry: Entry,
    y: &mut Buffer<Y>,
    x: &Buffer<f32>,
    (norm_weight, norm_bias): (&Buffer<E>, &Buffer<E>),
    weight: &Buffer<E>,
    bias: Option<&Buffer<E>>,
    cursor: Option<&Buffer<u32>>,
    rows: NormShape,
    outputs: usize,
) -> Result<()> {
    let inputs = rows.columns as usize;
    assert!(inputs.is_multiple_of(4) && inputs <= ROW_MAX, "rows of {inputs} do not fit a warp");
    assert!(
        y.len() >= rows.count as usize * outputs && x.len() >= rows.x_len(),
        "y {}, x {}",
        y.len(),
        x.len()
    );
    assert!(norm_weight.len() >= inputs && norm_bias.len() >= inputs, "norm for rows of {inputs}");
    assert!(weight.len() >= outputs * inputs, "weight {} for {outputs} × {inputs}", weight.len());
    assert!(bias.is_none_or(|bias| bias.len() >= outputs), "bias for {outputs}");
    // Each warp normalises the row once and then walks the outputs: a few rounds of blocks are enough to fill the GPU.
    let blocks = groups(outputs, 8).min(4 * device.info().multiprocessors);
    let launch = Launch::new([blocks, rows.count, 1], 256);
    let shape =
        NormLinearShape { time: rows.time, inputs: rows.columns, outputs: outputs as u32, eps: rows.eps };
    let cursor = last_rows(cursor, rows);
    let bias = bias.map_or(0, Buffer::address);
    let (y, x, weight) = (y.address(), x.address(), weight.address());
    let (norm_weight, norm_bias) = (norm_weight.address(), norm_bias.address());
    // SAFETY: norm_{gelu,logits}_*(Y *y, const float *x, const T *norm_weight, const T *norm_bias, const T *weight, const T *bias or null,
    // const Cursor * or null, NormLinearShape), the entry chosen for Y and T by the two callers; outputs past the shape are left
    // alone, rows are aligned and lengths checked as above; the caller owns all buffers.
    unsafe {
        device.launch(entry, launch, arguments![y, x, norm_weight, norm_bias, weight, bias, cursor, shape])
    }
}
