//! A linear layer and the activation behind it, in one launch, for many rows.

use crate::buffer::Buffer;
use crate::device::{Device, arguments};
use crate::element::Element;
use crate::entry::Entry;
use crate::error::Result;
use crate::product::{self, LINEAR_GELU, LINEAR_GELU_NARROW};
use crate::rows::{FEW_ROWS_MAX, Rows};
use crate::shape::LinearShape;

/// y = gelu(x · weightᵀ + bias) through tensor cores; `y: [R, O]`, `x: [R, I]`, `weight: [O, I]`, `bias: [O]`, for which
/// [`crate::tensor_cores`] holds.
///
/// # Errors
/// The driver's.
pub fn linear_gelu<E: Element>(
    device: &Device,
    y: &mut Buffer<E>,
    x: &Buffer<E>,
    weight: &Buffer<E>,
    bias: &Buffer<E>,
    shape: LinearShape,
) -> Result<()> {
    let (rows, inputs, outputs) = (shape.rows as usize, shape.inputs as usize, shape.outputs as usize);
    assert!(product::tensor_cores::<E>(device, inputs, outputs), "{shape:?} is not for tensor cores");
    assert!(
        y.len() >= shape.y_len() && x.len() >= shape.x_len(),
        "y {}, x {} for {shape:?}",
        y.len(),
        x.len()
    );
    assert!(weight.len() >= shape.weight_len() && bias.len() >= outputs, "weight, bias for {shape:?}");
    if product::wide(device, rows, inputs) {
        let kernel = LINEAR_GELU.or_narrow(device, LINEAR_GELU_NARROW, rows, outputs, 1);
        let launch = kernel.launch(rows, outputs, 1);
        let (x, weight) = (kernel.input(x, rows, inputs)?, kernel.weight(weight, outputs, inputs)?);
        let (y, bias) = (y.address(), bias.address());
        // SAFETY: linear_gelu_wgmma[_narrow]_bf16(TensorMap x, TensorMap weight, bf16 *y, const bf16 *bias, LinearShape); the maps end where the
        // matrices do, stores are inside the shape, lengths as above; the caller owns all buffers.
        return unsafe { device.launch(kernel.entry, launch, arguments![x, weight, y, bias, shape]) };
    }
    let few = Rows::Stored.launch::<E>(device, shape.rows, inputs, outputs).filter(|_| rows <= FEW_ROWS_MAX);
    let (entry, launch) = match few {
        Some(launch) => (Entry::linear_gelu_rows_bf16, launch),
        None => (Entry::linear_gelu_mma_bf16, product::mma_launch(rows, outputs, 1)),
    };
    let (y, x, weight, bias) = (y.address(), x.address(), weight.address(), bias.address());
    // SAFETY: linear_gelu_{rows,mma}_bf16(bf16 *y, const bf16 *x, const bf16 *weight, const bf16 *bias, LinearShape); nothing outside the shape
    // is read or written, rows are whole 16 bytes, lengths as above; the caller owns all buffers.
    unsafe { device.launch(entry, launch, arguments![y, x, weight, bias, shape]) }
}
