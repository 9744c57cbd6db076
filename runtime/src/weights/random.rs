//! Parameters from a seed, for benches and memory tests: any config, no file.

use std::borrow::Cow;

use super::{Tensor, Values, WeightSource};
use crate::config::StoredDtype;
use crate::error::Result;
use crate::sampling::philox;
use crate::threads::{pieces, share};

/// Bell-shaped random parameters that depend on the seed, the tensor's name and the element's index alone.
///
/// Matrices have standard deviation 1/√(columns), so that activations keep their size through the layers; a norm's scale is
/// 1 ± 0.1 and a bias 0 ± 0.02, so that leaving one out shows.
#[derive(Clone, Copy, Debug)]
pub struct RandomWeights {
    seed: u32,
    stored: StoredDtype,
}

impl RandomWeights {
    /// The parameters that belong to `seed`, in float32.
    #[must_use]
    pub fn new(seed: u32) -> Self {
        Self { seed, stored: StoredDtype::Float32 }
    }

    /// The same, rounded to the dtype that a config declares.
    #[must_use]
    pub fn stored(self, stored: StoredDtype) -> Self {
        Self { stored, ..self }
    }
}

impl WeightSource for RandomWeights {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>> {
        let (mean, std) = match shape {
            [_, columns] => (0.0, 1.0 / (*columns as f32).sqrt()),
            _ if name.ends_with("weight") => (1.0, 0.1),
            _ => (0.0, 0.02),
        };
        let key = [self.seed, hash(name)];
        let mut values = vec![0.0; shape.iter().product()];
        let bytes = size_of_val(&values[..]);
        share([&mut values], 2, pieces(bytes), &|first, [values]| {
            for (index, values) in (first as u64 / 2..).zip(values.chunks_mut(2)) {
                let words = philox([index as u32, (index >> 32) as u32, 0, 0], key);
                let draws = [bell(words[0], words[1]), bell(words[2], words[3])];
                for (value, draw) in values.iter_mut().zip(draws) {
                    *value = mean + std * draw;
                }
            }
        });
        let values = match self.stored {
            StoredDtype::Float32 => Values::F32(Cow::Owned(values)),
            StoredDtype::Bfloat16 => Values::Bf16(values.into_iter().map(half::bf16::from_f32).collect()),
        };
        Ok(Tensor { shape: shape.to_vec(), values })
    }
}

/// The sum of four uniform 16-bit numbers, centred and scaled to variance 1: nearly normal, within ±3.5, and the same to the bit on
/// every machine, which a logarithm would not be.
fn bell(a: u32, b: u32) -> f32 {
    let sum = (a & 0xffff) + (a >> 16) + (b & 0xffff) + (b >> 16);
    // A uniform number on 0..=65535 has variance (65536² − 1) / 12; four of them, a third of 65536².
    (sum as f32 - 131_070.0) * (3f32.sqrt() / 65_536.0)
}

/// FNV-1a: spreads tensor names over Philox keys.
fn hash(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(seed: u32, name: &str, shape: &[usize]) -> Vec<f32> {
        match RandomWeights::new(seed).tensor(name, shape).unwrap().values {
            Values::F32(values) => values.into_owned(),
            other => panic!("expected float32, got {other:?}"),
        }
    }

    fn moments(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        (mean, (values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n).sqrt())
    }

    /// Without this, a bench could run on zeros, on constants, or on activations that overflow.
    #[test]
    fn the_spread_is_the_one_promised() {
        let (mean, std) = moments(&draw(7, "blocks.0.mlp.up.weight", &[301, 400]));
        assert!(mean.abs() < 1e-3 && (std - 0.05).abs() < 1e-3, "matrix: mean {mean}, std {std}");
        let (mean, std) = moments(&draw(7, "final_norm.weight", &[20_000]));
        assert!((mean - 1.0).abs() < 5e-3 && (std - 0.1).abs() < 5e-3, "scale: mean {mean}, std {std}");
        let (mean, std) = moments(&draw(7, "final_norm.bias", &[20_000]));
        assert!(mean.abs() < 1e-3 && (std - 0.02).abs() < 1e-3, "bias: mean {mean}, std {std}");
    }

    /// Without this, a bfloat16 model of random weights would be timed reading float32, twice the bytes that are reported.
    #[test]
    fn they_are_stored_as_the_config_declares() {
        let tensor = RandomWeights::new(7).stored(StoredDtype::Bfloat16);
        let expected: Vec<_> = draw(7, "a.weight", &[3, 5]).into_iter().map(half::bf16::from_f32).collect();
        match tensor.tensor("a.weight", &[3, 5]).unwrap().values {
            Values::Bf16(values) => assert_eq!(values, expected),
            other => panic!("expected bfloat16, got {other:?}"),
        }
    }

    /// Without this, every chunk of a tensor, every tensor or every seed could hold the same numbers, and a swapped weight would not
    /// show.
    #[test]
    fn seed_name_and_index_all_matter_and_nothing_else() {
        /// Enough for several threads.
        const CHUNK: usize = 1 << 14;
        let values = draw(7, "a.weight", &[5, CHUNK]);
        assert_eq!(values, draw(7, "a.weight", &[5, CHUNK]), "repeats");
        assert_ne!(values, draw(8, "a.weight", &[5, CHUNK]), "seed");
        assert_ne!(values, draw(7, "b.weight", &[5, CHUNK]), "name");
        // A thread that began to count anew would begin with the first values.
        assert_eq!(values.windows(8).filter(|window| *window == &values[..8]).count(), 1, "stretch");
        assert_eq!(draw(7, "odd.bias", &[3]).len(), 3);
    }
}
