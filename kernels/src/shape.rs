//! Dimensions as the kernels take them. Each struct is laid out as its twin in the device code, which asserts its size there; here too.

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

/// Which rows of `[R, columns]` a norm reads, and how it norms them: `count` rows, `first`, `first + step`, ….
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct NormShape {
    /// Rows read, and written densely.
    pub count: u32,
    /// First row read.
    pub first: u32,
    /// Distance between rows read.
    pub step: u32,
    /// Width of a row.
    pub columns: u32,
    /// Added to the variance inside the root.
    pub eps: f32,
}
const _: () = assert!(size_of::<NormShape>() == 20);

impl NormShape {
    /// Elements of x up to the end of the last row read.
    pub(crate) fn x_len(self) -> usize {
        let last = self.first as usize + (self.count as usize).saturating_sub(1) * self.step as usize;
        (last + 1) * self.columns as usize
    }
    /// Elements written.
    pub(crate) fn y_len(self) -> usize {
        self.count as usize * self.columns as usize
    }
}

/// The number of groups of `size` that cover `count`.
pub(crate) fn groups(count: usize, size: usize) -> u32 {
    u32::try_from(count.div_ceil(size)).expect("a grid dimension fits u32")
}
