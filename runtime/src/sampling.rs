//! How the next token is picked, and the counter-based random numbers behind it.

use crate::error::{Error, Result};

/// The rule that turns a row of logits into a token.
///
/// Temperature 0 is greedy: the largest logit, the lowest index on a tie. Otherwise z = logits / temperature; top-k keeps every z that is
/// at least the k-th largest; top-p keeps, of those, the smallest set of largest z whose softmax mass reaches p, ties included; the pick is
/// argmax of z_i − ln(−ln u_i) over the kept i (the Gumbel form of sampling from their softmax), u_i drawn by [`uniform`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Keeps the k largest; 0 keeps all.
    pub top_k: u32,
    /// Keeps this much probability; 1 keeps all.
    pub top_p: f32,
    /// Seeds the random numbers.
    pub seed: u64,
}

impl Sampling {
    /// Always the largest logit.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 };

    /// The rule as given, where it means something.
    ///
    /// # Errors
    /// [`Error::Argument`] where the temperature is neither 0 nor within [`TEMPERATURES`], or top-p is not within (0, 1].
    pub fn checked(self) -> Result<Self> {
        let (low, high) = (TEMPERATURES.start(), TEMPERATURES.end());
        if self.temperature != 0.0 && !TEMPERATURES.contains(&self.temperature) {
            let problem = format!("is {}, expected 0 (greedy) or {low} to {high}", self.temperature);
            return Err(Error::Argument { name: "temperature", problem });
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            let problem = format!("is {}, expected more than 0 and at most 1 (off)", self.top_p);
            return Err(Error::Argument { name: "top-p", problem });
        }
        Ok(self)
    }
}

/// Temperatures other than 0. Below, logits / temperature leaves float32 and infinities would tie; above, every choice is equally likely.
pub const TEMPERATURES: std::ops::RangeInclusive<f32> = 1e-4..=1e4;

/// Philox4x32-10 of a counter under a key: four random words that depend on nothing else.
///
/// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#[must_use]
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    for _ in 0..10 {
        let (a, b) = (u64::from(counter[0]) * MULTIPLIERS[0], u64::from(counter[2]) * MULTIPLIERS[1]);
        let high = |product: u64| (product >> 32) as u32;
        counter = [high(b) ^ counter[1] ^ key[0], b as u32, high(a) ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// The number in (0, 1) that belongs to vocabulary index `index` at sampling step `step`: whatever else the batch holds, a sequence draws the
/// same.
///
/// It has 25 bits: float32 would round the upper half of the range, and its last number to 1, whose Gumbel is infinite.
#[must_use]
pub fn uniform(seed: u64, step: u32, index: u32) -> f64 {
    let words = philox([index / 4, step, 0, 0], [seed as u32, (seed >> 32) as u32]);
    (f64::from(words[index as usize % 4] >> 8) + 0.5) / f64::from(1 << 24)
}

#[cfg(test)]
mod tests {
    use super::{Sampling, philox};

    /// Without this, a temperature or a top-p that means nothing would reach the device and pick from NaN.
    #[test]
    fn a_rule_without_a_meaning_is_refused() {
        let good = Sampling { temperature: 0.8, top_k: 40, top_p: 0.9, seed: 1 };
        assert_eq!(good.checked().unwrap(), good);
        assert_eq!(Sampling::GREEDY.checked().unwrap(), Sampling::GREEDY);
        for temperature in [-0.1, f32::NAN, f32::INFINITY, 1e-30, 1e30] {
            let error = Sampling { temperature, ..good }.checked().unwrap_err().to_string();
            assert!(error.starts_with(&format!("temperature: is {temperature}, expected 0")), "{error}");
        }
        for top_p in [0.0, -0.5, 1.1, f32::NAN] {
            let error = Sampling { top_p, ..good }.checked().unwrap_err().to_string();
            assert!(error.starts_with(&format!("top-p: is {top_p}, expected")), "{error}");
        }
    }

    /// Without this, a wrong round constant would still look random. Vectors: Random123's `kat_vectors`.
    #[test]
    fn philox_gives_the_published_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }
}
