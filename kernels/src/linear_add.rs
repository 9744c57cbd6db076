//! A linear layer and the residual addition behind it, in one launch.

use crate::buffer::Buffer;
use crate::device::{Device, Launch, arguments};
use crate::element::Element;
use crate::entry::Entry;
use crate::error::Result;
use crate::product::{self, LINEAR_ADD};
use crate::rows::{FEW_ROWS_MAX, Rows};
use crate::shape::{LinearShape, groups};

/// y += x · weightᵀ + bias; `y: [R, O]`, `x: [R, I]`, `weight: [O, I]`, `bias: [O]`. I and O are multiples of four. For few rows.
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
    check_lengths(y, x, weight, bias, shape);
    let (inputs, outputs) = (shape.inputs as usize, shape.outputs as usize);
    assert!(inputs.is_multiple_of(4) && outputs.is_multiple_of(4), "{shape:?} is not aligned");
    let (entry, launch) = if let Some(launch) = Rows::Stored.launch::<E>(device, shape.rows, inputs, outputs)
    {
        (E::pick(Entry::linear_add_rows_f32, Entry::linear_add_rows_bf16), launch)
    } else {
        let grid = [groups(outputs, WARPS), shape.rows, 1];
        (E::pick(Entry::linear_add_f32, Entry::linear_add_bf16), Launch::new(grid, WARPS as u32 * 32))
    };
    let (y, x, weight, bias) = (y.address(), x.address(), weight.address(), bias.address());
    // SAFETY: linear_add_*(float *y, const T *x, const T *weight, const T *bias, LinearShape); nothing outside the shape is read or written,
    // rows are aligned to four elements, or to 16 bytes for `rows`, lengths as above; the caller owns all buffers.
    unsafe { device.launch(entry, launch, arguments![y, x, weight, bias, shape]) }
}

/// The same for any number of rows, many of them through tensor cores, and shapes for which [`crate::tensor_cores`] holds.
///
/// # Errors
/// The driver's.
pub fn linear_add_many<E: Element>(
    device: &Device,
    y: &mut Buffer<f32>,
    x: &Buffer<E>,
    weight: &Buffer<E>,
    bias: &Buffer<E>,
    shape: LinearShape,
) -> Result<()> {
    let (rows, inputs, outputs) = (shape.rows as usize, shape.inputs as usize, shape.outputs as usize);
    assert!(product::tensor_cores::<E>(device, inputs, outputs), "{shape:?} is not for tensor cores");
    let wide = product::wide(device, rows, inputs);
    if rows <= FEW_ROWS_MAX && !wide {
        return linear_add(device, y, x, weight, bias, shape);
    }
    check_lengths(y, x, weight, bias, shape);
    let (y, bias) = (y.address(), bias.address());
    if wide {
        let launch = LINEAR_ADD.launch_clusters(device, rows, inputs, outputs);
        let x = LINEAR_ADD.input(x, rows, inputs)?;
        let weight = LINEAR_ADD.weight(weight, outputs, inputs)?;
        // SAFETY: linear_add_wgmma_bf16(TensorMap x, TensorMap weight, float *y, const bf16 *bias, LinearShape); the maps end where the
        // matrices do, loads and stores of y are inside the shape, lengths as above; the caller owns all
        // buffers.
        return unsafe { device.launch(LINEAR_ADD.entry, launch, arguments![x, weight, y, bias, shape]) };
    }
    let launch = product::mma_launch(rows, outputs, 1);
    let (x, weight) = (x.address(), weight.address());
    // SAFETY: linear_add_mma_bf16(float *y, const bf16 *x, const bf16 *weight, const bf16 *bias, LinearShape); nothing outside the shape is
    // read or written and rows are whole 16 bytes, lengths as above; the caller owns all buffers.
    unsafe { device.launch(Entry::linear_add_mma_bf16, launch, arguments![y, x, weight, bias, shape]) }
}

fn check_lengths<E: Element>(
    y: &Buffer<f32>,
    x: &Buffer<E>,
    weight: &Buffer<E>,
    bias: &Buffer<E>,
    shape: LinearShape,
) {
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
}
