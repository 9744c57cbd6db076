//! Where parameters come from: a checkpoint's folder, memory, or a seed.

mod checkpoint;
mod map;
mod random;

pub use checkpoint::Checkpoint;
pub use map::MapWeights;
pub use random::RandomWeights;

use std::borrow::Cow;

use crate::error::Result;

/// A parameter as it is stored.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The values, in the stored dtype.
    pub values: Values<'a>,
}

/// Values of a stored dtype, borrowed from the file's bytes where their alignment allows.
#[derive(Clone, Debug)]
pub enum Values<'a> {
    /// float32.
    F32(Cow<'a, [f32]>),
    /// bfloat16.
    Bf16(Cow<'a, [half::bf16]>),
    /// float64.
    F64(Cow<'a, [f64]>),
}

impl Values<'_> {
    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
            Self::F64(values) => values.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first NaN or infinity: its index and itself.
    #[must_use]
    pub fn first_not_finite(&self) -> Option<(usize, f64)> {
        fn find<T: Copy>(values: &[T], widen: impl Fn(T) -> f64) -> Option<(usize, f64)> {
            values.iter().map(|&value| widen(value)).enumerate().find(|(_, value)| !value.is_finite())
        }
        match self {
            Self::F32(values) => find(values, f64::from),
            Self::Bf16(values) => find(values, f64::from),
            Self::F64(values) => find(values, |value| value),
        }
    }
}

/// Gives parameters by name.
pub trait WeightSource {
    /// The tensor `name`, which must have this shape.
    ///
    /// # Errors
    /// A missing tensor, or one of another shape, with both shapes named.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>>;
}
