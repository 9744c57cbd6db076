//! LayerNorm.

use crate::buffer::Buffer;
use crate::device::{Device, Launch, arguments};
use crate::element::Element;
use crate::entry::Entry;
use crate::error::Result;
use crate::shape::{NormShape, groups, last_rows};

/// y = (x − mean) / sqrt(var + eps) · weight + bias, row by row; `y: [count, columns]`, `x: [R, columns]`, `weight, bias: [columns]`,
/// `cursor: [count, 3]` or none, which says what rows of x are read.
///
/// # Errors
/// The driver's.
pub fn layernorm<E: Element>(
    device: &Device,
    y: &mut Buffer<E>,
    x: &Buffer<f32>,
    weight: &Buffer<E>,
    bias: &Buffer<E>,
    cursor: Option<&Buffer<u32>>,
    shape: NormShape,
) -> Result<()> {
    const ROWS_A_BLOCK: usize = 4;
    /// What a warp holds of a row in registers: it is then read once.
    const HELD_COLUMNS_MAX: usize = 2048;
    assert!(
        y.len() >= shape.y_len() && x.len() >= shape.x_len(),
        "y {}, x {} for {shape:?}",
        y.len(),
        x.len()
    );
    let columns = shape.columns as usize;
    assert!(weight.len() >= columns && bias.len() >= columns, "weight {}, bias {}", weight.len(), bias.len());
    let cursor = last_rows(cursor, shape);
    let held = columns.is_multiple_of(4) && columns <= HELD_COLUMNS_MAX;
    let bf16 = if held { Entry::layernorm_row_bf16 } else { Entry::layernorm_bf16 };
    let entry = E::pick(Entry::layernorm_f32, bf16);
    let launch = Launch::new([groups(shape.count as usize, ROWS_A_BLOCK), 1, 1], ROWS_A_BLOCK as u32 * 32);
    let (y, x, weight, bias) = (y.address(), x.address(), weight.address(), bias.address());
    // SAFETY: layernorm_*(T *y, const float *x, const T *weight, const T *bias, const Cursor * or null, LayernormShape); warps past `count` do nothing,
    // rows that are held are aligned to four elements, and the lengths above cover every row read and written; the caller owns all buffers.
    unsafe { device.launch(entry, launch, arguments![y, x, weight, bias, cursor, shape]) }
}
