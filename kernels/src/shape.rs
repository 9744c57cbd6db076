//! Dimensions as the kernels take them. Each struct is laid out as its twin in the device code, which asserts its size there; here too.

use cudarc::driver::sys::CUdeviceptr;

use crate::buffer::Buffer;

/// Words of a sequence's cursor: `past`, the positions cached; `step`, the tokens sampled so far; `length`, the positions of the pass that are
/// the sequence's own, the first ones: what is behind them is padding. `Cursor` of `cu/common.cuh`.
pub const CURSOR_LEN: usize = 3;

/// Refuses a cursor `[B, 3]` of fewer than `batch` sequences.
pub(crate) fn check_cursor(cursor: &Buffer<u32>, batch: usize) {
    assert!(cursor.len() >= batch * CURSOR_LEN, "a cursor of {} words for {batch} sequences", cursor.len());
}

/// Elements that a warp holds of a row in registers: the widest row of the fused kernels (`cu/row.cuh`).
pub const ROW_MAX: usize = 1024;

/// Dimensions of a matrix product `[rows, inputs] × [outputs, inputs]ᵀ`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LinearShape {
    /// Rows of the input.
    pub rows: u32,
    /// Columns of the input and of the weight.
    pub inputs: u32,
    /// Rows of the weight, columns of the output.
    pub outputs: u32,
}
const _: () = assert!(size_of::<LinearShape>() == 12);

impl LinearShape {
    /// Elements of the input.
    pub(crate) fn x_len(self) -> usize {
        self.rows as usize * self.inputs as usize
    }
    /// Elements of the weight.
    pub(crate) fn weight_len(self) -> usize {
        self.outputs as usize * self.inputs as usize
    }
    /// Elements of the output.
    pub(crate) fn y_len(self) -> usize {
        self.rows as usize * self.outputs as usize
    }
}

/// Dimensions of a pass of `time` positions over a cache `[B, H, P, D]`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CacheShape {
    /// B.
    pub batch: u32,
    /// T.
    pub time: u32,
    /// H.
    pub heads: u32,
    /// D.
    pub head_size: u32,
    /// P.
    pub context: u32,
}
const _: () = assert!(size_of::<CacheShape>() == 20);

impl CacheShape {
    /// C = H · D.
    pub(crate) fn channels(self) -> u32 {
        self.heads * self.head_size
    }
    /// Elements of `[B, T, C]`.
    pub(crate) fn pass_len(self) -> usize {
        self.batch as usize * self.time as usize * self.channels() as usize
    }
    /// Elements of the cache.
    pub(crate) fn cache_len(self) -> usize {
        self.batch as usize * self.channels() as usize * self.context as usize
    }
}

/// Which rows of `[R, columns]` a norm reads, and how it norms them: the first `count` rows, or, where there is a cursor, of each of `count`
/// sequences of `time` rows the last of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct NormShape {
    /// Rows read, and written densely.
    pub count: u32,
    /// Rows that each of them is read from: 1 without a cursor.
    pub time: u32,
    /// Width of a row.
    pub columns: u32,
    /// Added to the variance inside the root.
    pub eps: f32,
}
const _: () = assert!(size_of::<NormShape>() == 16);

impl NormShape {
    /// Elements of x that are read from.
    pub(crate) fn x_len(self) -> usize {
        self.count as usize * self.time as usize * self.columns as usize
    }
    /// Elements written.
    pub(crate) fn y_len(self) -> usize {
        self.count as usize * self.columns as usize
    }
}

/// The address of the cursor by which a norm reads the last rows of sequences, null where it reads all rows.
pub(crate) fn last_rows(cursor: Option<&Buffer<u32>>, shape: NormShape) -> CUdeviceptr {
    match cursor {
        None => assert_eq!(shape.time, 1, "without a cursor a norm reads one row after the other"),
        Some(cursor) => check_cursor(cursor, shape.count as usize),
    }
    cursor.map_or(0, Buffer::address)
}

/// The number of groups of `size` that cover `count`.
pub(crate) fn groups(count: usize, size: usize) -> u32 {
    u32::try_from(count.div_ceil(size)).expect("a grid dimension fits u32")
}
