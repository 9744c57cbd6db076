//! Element types of device buffers.

use std::borrow::Cow;

use half::bf16;
use half::slice::HalfFloatSliceExt as _;

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
    /// Many at once, as they are where this is their type, else rounded to nearest even.
    fn from_f32s(values: &[f32]) -> Cow<'_, [Self]>;
    /// Many at once, as they are where this is their type, else exact.
    fn from_bf16s(values: &[bf16]) -> Cow<'_, [Self]>;
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
    fn from_f32s(values: &[f32]) -> Cow<'_, [f32]> {
        values.into()
    }
    fn from_bf16s(values: &[bf16]) -> Cow<'_, [f32]> {
        values.to_f32_vec().into()
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
    fn from_f32s(values: &[f32]) -> Cow<'_, [bf16]> {
        let mut rounded = vec![bf16::ZERO; values.len()];
        rounded.convert_from_f32_slice(values);
        rounded.into()
    }
    fn from_bf16s(values: &[bf16]) -> Cow<'_, [bf16]> {
        values.into()
    }
    fn pick(_f32: Entry, bf16: Entry) -> Entry {
        bf16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without this, a checkpoint's weights could be rounded otherwise than single values are, or moved.
    #[test]
    fn many_values_are_converted_as_each_alone() {
        let wide: Vec<f32> = (0..1000).map(|i| (i as f32 - 500.0).powi(3) * 1.000_321e-4).collect();
        let halves: Vec<bf16> = wide.iter().map(|&value| bf16::from_f64(value.into())).collect();
        assert_eq!(bf16::from_f32s(&wide), halves);
        assert_eq!(f32::from_f32s(&wide), wide);
        assert_eq!(bf16::from_bf16s(&halves), halves);
        let widened: Vec<f32> = halves.iter().map(|&value| f32::from_f64(value.to_f64())).collect();
        assert_eq!(f32::from_bf16s(&halves), widened);
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
