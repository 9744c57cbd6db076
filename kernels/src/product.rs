//! Matrix products through tensor cores: which of the two strategies takes a shape, and how it is launched. The launchers of `linear`,
//! `linear_add`, `linear_gelu` and `qkv` come here for passes of many rows.

use cudarc::driver::sys;

use crate::buffer::Buffer;
use crate::device::{Device, Launch, Start};
use crate::driver::check;
use crate::element::Element;
use crate::entry::Entry;
use crate::error::Result;
use crate::shape::groups;

/// Rows, outputs and inputs of a tile of `product_mma.cu`.
const MMA_TILE: usize = 64;
/// Dynamic shared memory there: a ring of five pairs of tiles.
const MMA_SHARED_BYTES: u32 = 5 * 2 * 64 * 128;
/// Rows from which on the tiles of `product_wgmma.cu` are worth their start, and the same for long sums: of so many inputs at least.
const WGMMA_ROWS_MIN: usize = 192;
const LONG_ROWS_MIN: usize = 33;
const LONG_SUM: usize = 1024;
/// Inputs that those tiles take at a time, and the fewest times that a block of a cluster is worth its part in a tile.
const WGMMA_SLICE: usize = 64;
const SLICES_MIN: usize = 4;

/// A kernel of `product_wgmma.cu`: rows and outputs of its tile, and the dynamic shared memory of its ring.
#[derive(Clone, Copy)]
pub(crate) struct Wide {
    pub(crate) entry: Entry,
    rows: usize,
    columns: usize,
    shared_bytes: u32,
}

impl Wide {
    const fn new(entry: Entry, (rows, columns): (usize, usize), stages: usize) -> Self {
        let stage_bytes = (rows + columns) * 128;
        // Barriers take 16 bytes a stage, the bias two an output; the ring begins at a multiple of 1024.
        let shared_bytes = (1024 + stages * (stage_bytes + 16) + columns * 2) as u32;
        Self { entry, rows, columns, shared_bytes }
    }

    /// Grid and block for `parts` matrices of `outputs` rows.
    pub(crate) fn launch(self, rows: usize, outputs: usize, parts: u32) -> Launch {
        let grid = [groups(rows, self.rows), groups(outputs, self.columns), parts];
        Launch { shared_bytes: self.shared_bytes, ..Launch::new(grid, 384) }
    }

    /// The same for one matrix, where few tiles are made by clusters, each block of which takes its share of the inputs. Clusters of four leave
    /// some multiprocessors over, those of two hardly any.
    pub(crate) fn launch_clusters(
        self,
        device: &Device,
        rows: usize,
        inputs: usize,
        outputs: usize,
    ) -> Launch {
        let (launch, all) = (self.launch(rows, outputs, 1), device.info().multiprocessors);
        let (tiles, slices) = (launch.grid[0] * launch.grid[1], inputs.div_ceil(WGMMA_SLICE));
        let worth = |blocks, room| slices >= blocks as usize * SLICES_MIN && tiles * blocks <= room;
        let blocks = if worth(4, all / 4 * 3) {
            4
        } else if worth(2, all) {
            2
        } else {
            return launch;
        };
        let grid = [launch.grid[0] * blocks, launch.grid[1], 1];
        Launch { grid, start: Start::EarlyClusters(blocks), ..launch }
    }

    /// This one, or `narrow` where even half the GPU has no tile of this one to make.
    pub(crate) fn or_narrow(
        self,
        device: &Device,
        narrow: Self,
        rows: usize,
        outputs: usize,
        parts: u32,
    ) -> Self {
        let tiles = self.launch(rows, outputs, parts).grid.iter().product::<u32>();
        if tiles * 2 <= device.info().multiprocessors { narrow } else { self }
    }

    /// An activation `[rows, inputs]` as the kernel's tiles take it.
    pub(crate) fn input<E: Element>(self, x: &Buffer<E>, rows: usize, inputs: usize) -> Result<TensorMap> {
        map(x, rows, inputs, self.rows)
    }

    /// A weight `[outputs, inputs]` as they take it.
    pub(crate) fn weight<E: Element>(
        self,
        w: &Buffer<E>,
        outputs: usize,
        inputs: usize,
    ) -> Result<TensorMap> {
        map(w, outputs, inputs, self.columns)
    }
}

pub(crate) const LINEAR_GELU: Wide = Wide::new(Entry::linear_gelu_wgmma_bf16, (256, 200), 3);
pub(crate) const LINEAR_GELU_NARROW: Wide = Wide::new(Entry::linear_gelu_wgmma_narrow_bf16, (128, 104), 7);
pub(crate) const LINEAR_ADD: Wide = Wide::new(Entry::linear_add_wgmma_bf16, (128, 104), 7);
pub(crate) const QKV: Wide = Wide::new(Entry::qkv_wgmma_bf16, (256, 160), 4);
pub(crate) const QKV_NARROW: Wide = Wide::new(Entry::qkv_wgmma_narrow_bf16, (128, 104), 7);

/// The kernels that want more than 48 KiB of dynamic shared memory on a GPU of this compute capability, and how much.
pub(crate) fn large_shared(compute: (u32, u32)) -> Vec<(Entry, u32)> {
    let mma = [
        Entry::linear_mma_bf16,
        Entry::linear_add_mma_bf16,
        Entry::linear_gelu_mma_bf16,
        Entry::qkv_mma_bf16,
    ];
    let ampere = mma.into_iter().map(|entry| (entry, MMA_SHARED_BYTES)).filter(|_| compute >= (8, 0));
    let wide = [LINEAR_GELU, LINEAR_GELU_NARROW, LINEAR_ADD, QKV, QKV_NARROW];
    let wide = wide.into_iter().map(|kernel| (kernel.entry, kernel.shared_bytes));
    ampere.chain(wide.filter(|_| has_warpgroups(compute))).collect()
}

/// Whether a GPU has warpgroup products: Hopper alone.
pub(crate) fn has_warpgroups(compute: (u32, u32)) -> bool {
    compute.0 == 9
}

/// Whether tensor cores take a product of this many inputs and outputs in this precision: rows of 16 bytes, from Ampere on.
#[must_use]
pub fn tensor_cores<E: Element>(device: &Device, inputs: usize, outputs: usize) -> bool {
    let aligned = inputs.is_multiple_of(8) && outputs.is_multiple_of(8);
    E::TENSOR_CORES && aligned && device.info().compute >= (8, 0)
}

/// Whether a product of this many rows and inputs goes through warpgroup products: not few rows, unless their sums are long, which small
/// tiles take a slice at a time.
pub(crate) fn wide(device: &Device, rows: usize, inputs: usize) -> bool {
    let enough = rows >= WGMMA_ROWS_MIN || rows >= LONG_ROWS_MIN && inputs >= LONG_SUM;
    has_warpgroups(device.info().compute) && enough
}

/// Grid and block of a kernel of `product_mma.cu` for `parts` matrices of `outputs` rows.
pub(crate) fn mma_launch(rows: usize, outputs: usize, parts: u32) -> Launch {
    let grid = [parts * groups(outputs, MMA_TILE), groups(rows, MMA_TILE), 1];
    Launch { shared_bytes: MMA_SHARED_BYTES, ..Launch::new(grid, 256) }
}

/// A matrix in device memory as Hopper's copy engine takes it, a kernel's argument by value.
pub(crate) type TensorMap = sys::CUtensorMap;

/// Boxes of `box_rows` rows and 64 columns of `x: [rows, columns]`, swizzled by 128 bytes, zeros outside.
pub(crate) fn map<E: Element>(
    x: &Buffer<E>,
    rows: usize,
    columns: usize,
    box_rows: usize,
) -> Result<TensorMap> {
    assert!(E::TENSOR_CORES && columns.is_multiple_of(8), "rows of {columns} are not whole 16 bytes");
    assert!(x.len() >= rows * columns, "{} values for {rows} × {columns}", x.len());
    let mut map = TensorMap { opaque: [0; 16] };
    let (dims, stride_bytes) = ([columns as u64, rows as u64], [columns as u64 * size_of::<E>() as u64]);
    let (extent, steps) = ([64, box_rows as u32], [1, 1]);
    // SAFETY: every pointer is to a live array of the rank's length, or for the strides one less; the address is only noted down, and the
    // matrix lies within the buffer as asserted.
    let code = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            2,
            x.address() as *mut std::ffi::c_void,
            dims.as_ptr(),
            stride_bytes.as_ptr(),
            extent.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    check("cuTensorMapEncodeTiled", code.result())?;
    Ok(map)
}
