//! Element types of device buffers.

use half::bf16;

use crate::entry::Entry;

/// Plain data that may lie in device memory: any bit pattern is a value.
pub trait Plain: Copy + Default + Send + Sync + 'static + sealed::Sealed {}

impl Plain for f32 {}
impl Plain for bf16 {}
impl Plain for u32 {}
impl Plain for u8 {}

/// A working precision that the kernels exist for.
pub trait Element: Plain {
    /// The name, as in the golden cases and at the end of entry points.
    const NAME: &'static str;
    /// Whether tensor cores multiply it exactly and sum in float32. They would cut float32 to TF32 first.
    const TENSOR_CORES: bool;
    /// Rounds to nearest even.
    fn from_f64(value: f64) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
    /// Chooses between an op's two entry points.
    fn pick(f32: Entry, bf16: Entry) -> Entry;
}

impl Element for f32 {
    const NAME: &'static str = "f32";
    const TENSOR_CORES: bool = false;
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn pick(f32: Entry, _bf16: Entry) -> Entry {
        f32
    }
}

impl Element for bf16 {
    const NAME: &'static str = "bf16";
    const TENSOR_CORES: bool = true;
    fn from_f64(value: f64) -> Self {
        bf16::from_f64(value)
    }
    fn to_f64(self) -> f64 {
        self.to_f64()
    }
    fn pick(_f32: Entry, bf16: Entry) -> Entry {
        bf16
    }
}

mod sealed {
    /// Keeps other crates from declaring a type with invalid bit patterns plain.
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
    impl Sealed for u32 {}
    impl Sealed for u8 {}
}
