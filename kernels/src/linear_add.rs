//! A linear layer and the residual addition behind it, in one launch.

use crate::buffer::Buffer;
use crate::device::{Device, Launch, arguments};
use crate::element::Element;
use crate::entry::Entry;
use crate::error::Result;
use crate::shape::{LinearShape, groups};

/// y += x · weightᵀ + bias; `y: [R, O]`, `x: [R, I]`, `weight: [O, I]`, `bias: [O]`. I is a multiple of four. For few rows.
///
/// # Errors
/// The driver's.
pub fn linear_add<E: Element>(
    device: &Device,
    y: &mut Buffer<f32>,
    x: &Buffer<E>,
    weight: &Buffer<E>,
    bias: &Buffer<E>,
    shape: LinearShape,
) -> Result<()> {
    const WARPS: usize = 4;
    assert!(
        y.len() >= shape.y_len() && x.len() >= shape.x_len(),
        "y {}, x {} for {shape:?}",
        y.len(),
        x.len()
    );
    assert!(
        weight.len() >= shape.weight_len() && bias.len() >= shape.outputs as usize,
        "weight, bias for {shape:?}"
    );
    assert!(shape.inputs.is_multiple_of(4), "rows of {} are not aligned", shape.inputs);
    let entry = E::pick(Entry::linear_add_f32, Entry::linear_add_bf16);
    let launch = Launch::new([groups(shape.outputs as usize, WARPS), shape.rows, 1], WARPS as u32 * 32);
    let (y, x, weight, bias) = (y.address(), x.address(), weight.address(), bias.address());
    // SAFETY: linear_add_*(float *y, const T *x, const T *weight, const T *bias, LinearShape); one warp an output inside the shape, rows
    // aligned to four elements as asserted, lengths as above; the caller owns all buffers.
    unsafe { device.launch(entry, launch, arguments![y, x, weight, bias, shape]) }
}
