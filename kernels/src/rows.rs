//! Products of few rows (`cu/rows.cuh`): which are theirs, and how they are launched.

use crate::device::{Device, Launch};
use crate::element::Element;
use crate::entry::Entry;
use crate::shape::{ROW_MAX, groups};

/// The most rows of a pass that these kernels serve in place of those for many.
pub const FEW_ROWS_MAX: usize = 64;
/// Rows and outputs of the smallest tile.
const TILE_ROWS: usize = 16;
const TILE_OUTPUTS: usize = 8;
/// Warps a block, and bytes that a slice takes of a row.
const WARPS: usize = 8;
const SLICE_BYTES: usize = 128;

/// What the kernel does with the activations on their way into the product.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Rows {
    /// Nothing.
    Stored,
    /// It normalises them.
    Normed,
}

impl Rows {
    /// Dynamic shared memory of a tile `tall` and `wide` times the smallest, as `product_tile` lays it out: the warps' sums, the normalised rows
    /// with scales and shifts, the rings.
    fn shared_bytes<E: Element>(self, inputs: usize, (tall, wide): (usize, usize)) -> usize {
        let (element, rows, outputs) = (size_of::<E>(), TILE_ROWS * tall, TILE_OUTPUTS * wide);
        let sums = WARPS * rows * (outputs + 8) * 4;
        let slices = (inputs * element).div_ceil(SLICE_BYTES).div_ceil(WARPS);
        if self == Self::Stored {
            let slots = if wide == 1 { 3 } else { 2 };
            return sums + WARPS * slices.min(slots) * (outputs + rows) * SLICE_BYTES;
        }
        let (columns, pad) = (if inputs <= 512 { 512 } else { 1024 }, if element == 4 { 16 } else { 64 });
        let normed = rows * (columns * element + pad) + 2 * columns * element;
        sums + normed + WARPS * slices.min(columns * element / 1024) * outputs * SLICE_BYTES
    }

    /// How a product of so many rows is launched: not one row, rows of whole 16 bytes, the largest tile that fits and of which there are enough
    /// to keep the GPU busy. None where the kernels do not take it.
    pub(crate) fn launch<E: Element>(
        self,
        device: &Device,
        rows: u32,
        inputs: usize,
        outputs: usize,
    ) -> Option<Launch> {
        let info = device.info();
        let whole = rows > 1 && (inputs * size_of::<E>()).is_multiple_of(16) && info.compute >= (8, 0);
        if !whole || self == Self::Normed && inputs > ROW_MAX {
            return None;
        }
        let grid =
            |(tall, wide)| [groups(outputs, TILE_OUTPUTS * wide), groups(rows as usize, TILE_ROWS * tall), 1];
        let enough =
            |tile| tile == (1, 1) || grid(tile).iter().product::<u32>() * 3 >= info.multiprocessors * 2;
        let fits = |tile| self.shared_bytes::<E>(inputs, tile) <= info.shared_bytes_max;
        let tall = self == Self::Stored && rows as usize > TILE_ROWS;
        let tiles: &[(usize, usize)] = match (E::TENSOR_CORES, tall) {
            (true, true) => &[(2, 4), (1, 4), (1, 2), (1, 1)],
            (true, false) => &[(1, 4), (1, 2), (1, 1)],
            (false, _) => &[(1, 2), (1, 1)],
        };
        let tile = tiles.iter().copied().find(|&tile| enough(tile) && fits(tile))?;
        let shared_bytes = self.shared_bytes::<E>(inputs, tile) as u32;
        Some(Launch { shared_bytes, ..Launch::new(grid(tile), WARPS as u32 * 32) })
    }
}

/// The kernels, on a GPU that has them, and the most shared memory of a block, which is for them.
pub(crate) fn large_shared(compute: (u32, u32), bytes: usize) -> Vec<(Entry, u32)> {
    let entries = [
        Entry::norm_qkv_rows_f32,
        Entry::norm_qkv_rows_bf16,
        Entry::norm_gelu_rows_f32,
        Entry::norm_gelu_rows_bf16,
        Entry::norm_logits_rows_f32,
        Entry::norm_logits_rows_bf16,
        Entry::linear_add_rows_f32,
        Entry::linear_add_rows_bf16,
        Entry::linear_gelu_rows_bf16,
        Entry::qkv_rows_bf16,
    ];
    entries.into_iter().map(|entry| (entry, bytes as u32)).filter(|_| compute >= (8, 0)).collect()
}
