//! Matrix products with a weight.

use crate::buffer::Buffer;
use crate::device::{Device, Launch, arguments};
use crate::element::{Element, Plain};
use crate::entry::Entry;
use crate::error::Result;
use crate::product;
use crate::shape::{LinearShape, groups};

/// Rows from which on a tile of the weight is worth keeping in shared memory.
const TILE_ROWS: u32 = 33;

/// y = x · weightᵀ + bias; `y: [R, O]`, `x: [R, I]`, `weight: [O, I]`, `bias: [O]` or none.
///
/// # Errors
/// The driver's.
pub fn linear<E: Element>(
    device: &Device,
    y: &mut Buffer<E>,
    x: &Buffer<E>,
    weight: &Buffer<E>,
    bias: Option<&Buffer<E>>,
    shape: LinearShape,
) -> Result<()> {
    let warp = E::pick(Entry::linear_warp_f32, Entry::linear_warp_bf16);
    if shape.rows >= TILE_ROWS
        && product::tensor_cores::<E>(device, shape.inputs as usize, shape.outputs as usize)
    {
        return linear_mma(device, y, x, weight, bias, shape);
    }
    let tile = E::pick(Entry::linear_tile_f32, Entry::linear_tile_bf16);
    tiles(device, (warp, tile), y, x, weight, bias, shape)
}

/// y = x · weightᵀ in float32; `y: [R, O]`, `x: [R, I]`, `weight: [O, I]`.
///
/// # Errors
/// The driver's.
pub fn logits<E: Element>(
    device: &Device,
    y: &mut Buffer<f32>,
    x: &Buffer<E>,
    weight: &Buffer<E>,
    shape: LinearShape,
) -> Result<()> {
    let warp = E::pick(Entry::linear_warp_f32, Entry::logits_warp_bf16);
    let tile = E::pick(Entry::linear_tile_f32, Entry::logits_tile_bf16);
    tiles(device, (warp, tile), y, x, weight, None, shape)
}

fn tiles<Y: Plain, E: Element>(
    device: &Device,
    (warp, tile): (Entry, Entry),
    y: &mut Buffer<Y>,
    x: &Buffer<E>,
    weight: &Buffer<E>,
    bias: Option<&Buffer<E>>,
    shape: LinearShape,
) -> Result<()> {
    check_lengths(y, x, weight, bias, shape);
    let (rows, outputs) = (shape.rows as usize, shape.outputs as usize);
    let (entry, grid) = if shape.rows < TILE_ROWS {
        (warp, [groups(outputs, 8), shape.rows, 1])
    } else {
        (tile, [groups(outputs, 64), groups(rows, 64), 1])
    };
    let bias = bias.map_or(0, Buffer::address);
    let (y, x, weight) = (y.address(), x.address(), weight.address());
    // SAFETY: linear_*(Y *y, const T *x, const T *weight, const T *bias or null, LinearShape), the entry chosen for Y and T by the two
    // callers; rows and outputs past the shape are neither read nor written, and the lengths above cover the rest; the caller owns all.
    unsafe { device.launch(entry, Launch::new(grid, 256), arguments![y, x, weight, bias, shape]) }
}

fn linear_mma<E: Element>(
    device: &Device,
    y: &mut Buffer<E>,
    x: &Buffer<E>,
    weight: &Buffer<E>,
    bias: Option<&Buffer<E>>,
    shape: LinearShape,
) -> Result<()> {
    check_lengths(y, x, weight, bias, shape);
    let launch = product::mma_launch(shape.rows as usize, shape.outputs as usize, 1);
    let bias = bias.map_or(0, Buffer::address);
    let (y, x, weight) = (y.address(), x.address(), weight.address());
    // SAFETY: linear_mma_bf16(bf16 *y, const bf16 *x, const bf16 *weight, const bf16 *bias or null, LinearShape); nothing outside the shape
    // is read or written, rows are whole 16 bytes as the caller saw, lengths as above; the caller owns all buffers.
    unsafe { device.launch(Entry::linear_mma_bf16, launch, arguments![y, x, weight, bias, shape]) }
}

fn check_lengths<Y: Plain, E: Element>(
    y: &Buffer<Y>,
    x: &Buffer<E>,
    weight: &Buffer<E>,
    bias: Option<&Buffer<E>>,
    shape: LinearShape,
) {
    assert!(
        y.len() >= shape.y_len() && x.len() >= shape.x_len(),
        "y {}, x {} for {shape:?}",
        y.len(),
        x.len()
    );
    assert!(weight.len() >= shape.weight_len(), "weight {} for {shape:?}", weight.len());
    assert!(bias.is_none_or(|bias| bias.len() >= shape.outputs as usize), "bias for {shape:?}");
}
