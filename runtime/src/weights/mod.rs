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
        /// Values that are looked at together, with vector instructions, before one of them is looked for.
        const CHUNK: usize = 1024;
        fn find<T: Copy>(
            values: &[T],
            finite: impl Fn(T) -> bool,
            widen: impl Fn(T) -> f64,
        ) -> Option<(usize, f64)> {
            let odd = |chunk: &[T]| !chunk.iter().fold(true, |all, &value| all & finite(value));
            let start = CHUNK * values.chunks(CHUNK).position(odd)?;
            let index = start + values[start..].iter().position(|&value| !finite(value))?;
            Some((index, widen(values[index])))
        }
        match self {
            Self::F32(values) => find(values, f32::is_finite, f64::from),
            Self::Bf16(values) => find(values, half::bf16::is_finite, f64::from),
            Self::F64(values) => find(values, f64::is_finite, |value| value),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Without this, a NaN far into a large tensor could be overlooked, or named with a wrong index.
    #[test]
    fn the_first_value_that_is_not_finite_is_found_wherever_it_is() {
        for len in [1, 1023, 1024, 1025, 3000] {
            let mut values = vec![1.0f32; len];
            assert!(Values::F32(values.as_slice().into()).first_not_finite().is_none());
            for index in (0..len).rev().step_by(97) {
                values[index] = f32::INFINITY;
                let halves: Vec<_> = values.iter().map(|&value| half::bf16::from_f32(value)).collect();
                let doubles: Vec<_> = values.iter().map(|&value| f64::from(value)).collect();
                let stored = [
                    Values::F32(values.as_slice().into()),
                    Values::Bf16(halves.into()),
                    Values::F64(doubles.into()),
                ];
                for values in stored {
                    assert_eq!(values.first_not_finite(), Some((index, f64::INFINITY)), "{len} values");
                }
            }
        }
    }
}
