//! The two precisions that the host computes in, and their elementary functions.
//!
//! The float32 functions are straight-line arithmetic, so that loops over them vectorise. Their polynomials are least-squares
//! fits on Chebyshev points, reweighted towards the smallest maximum error.

use std::ops::{Add, AddAssign, Div, Mul, Sub};

use super::lanes::Lanes;
use crate::plan::Precision;

/// f32, the precision that people use, or f64, the oracle.
pub trait Float:
    Lanes
    + PartialOrd
    + Add<Output = Self>
    + AddAssign
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
{
    /// What the memory plan needs to know.
    const PRECISION: Precision;
    /// Zero.
    const ZERO: Self;

    /// Rounds to the nearest value, ties to even.
    fn from_f64(x: f64) -> Self;
    /// The same value.
    fn to_f64(self) -> f64;
    /// e to the power of `self`.
    fn exp(self) -> Self;
    /// x · Φ(x), Φ the distribution function of the standard normal.
    fn gelu(self) -> Self;
}

impl Float for f32 {
    const PRECISION: Precision = Precision { name: "f32", working_bytes: 4, wide_bytes: 4 };
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        x as f32
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    fn exp(self) -> Self {
        exp_f32(self)
    }

    #[inline(always)]
    fn gelu(self) -> Self {
        self * normal_cdf_f32(self)
    }
}

impl Float for f64 {
    const PRECISION: Precision = Precision { name: "f64", working_bytes: 8, wide_bytes: 8 };
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        x
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }

    #[inline(always)]
    fn exp(self) -> Self {
        f64::exp(self)
    }

    #[inline(always)]
    fn gelu(self) -> Self {
        // erfc of the negated argument is 1 + erf without the cancellation in the left tail.
        0.5 * self * libm::erfc(-self * std::f64::consts::FRAC_1_SQRT_2)
    }
}

/// c[0] + c[1]·x + c[2]·x² + …
#[inline(always)]
fn polynomial<const N: usize>(x: f32, c: [f32; N]) -> f32 {
    c.into_iter().rev().fold(0.0, |sum, c| sum.mul_add(x, c))
}

/// e^x for x up to 88; 0 below −87.3, where the result would be subnormal.
///
/// e^x = 2^n · e^r with n = round(x / ln 2) and |r| ≤ ln 2 / 2; e^r = 1 + r + r²·p(r), with an error of 3.3e-9 before rounding.
#[inline(always)]
fn exp_f32(x: f32) -> f32 {
    /// Adding it leaves the rounded sum in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first of which has so few bits that its product with n is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2[1], n.mul_add(-LN_2[0], x));
    let p = polynomial(r, [0.499_999_93, 0.166_665_15, 0.041_668_457, 0.008_369_419, 0.001_381_314_2]);
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    let y = (r * r).mul_add(p, r) + 1.0;
    if x < -87.3 { 0.0 } else { y * scale }
}

/// Φ(x), the distribution function of the standard normal.
///
/// Near 0: 1/2 + x·p(x²), with an error of 4e-10 before rounding. Elsewhere: Φ(−|x|) = e^(−x²/2) · p(1 / (1 + 0.3·|x|)), with a
/// relative error of 7e-9 before rounding, or 1 less that.
#[inline(always)]
fn normal_cdf_f32(x: f32) -> f32 {
    const CENTRE: [f32; 7] = [
        3.989_423e-1,
        -6.649_037e-2,
        9.973_474e-3,
        -1.187_035_2e-3,
        1.149_355_3e-4,
        -9.000_992e-6,
        4.633_414_2e-7,
    ];
    const TAIL: [f32; 9] = [
        8.410_378e-6,
        1.194_734_3e-1,
        1.219_324_8e-1,
        9.522_5e-2,
        1.390_588_2e-1,
        -6.656_723e-2,
        2.135_621_8e-1,
        -1.573_213e-1,
        3.459_876e-2,
    ];
    let square = x * x;
    let centre = x.mul_add(polynomial(square, CENTRE), 0.5);
    let tail = exp_f32(-0.5 * square) * polynomial(1.0 / x.abs().mul_add(0.3, 1.0), TAIL);
    let outside = if x > 0.0 { 1.0 - tail } else { tail };
    if x.abs() < 1.28 { centre } else { outside }
}

#[cfg(test)]
mod tests {
    use super::Float;

    /// Distance in units of the last place of the nearest float32 to `expected`.
    fn ulps(actual: f32, expected: f64) -> f64 {
        let ulp = f64::from((expected.abs() as f32).next_up()) - f64::from(expected.abs() as f32);
        (f64::from(actual) - expected).abs() / ulp
    }

    /// Without this, a wrong coefficient would cost digits that softmax's normalisation hides.
    #[test]
    fn exp_is_accurate_to_the_last_place() {
        let worst = (-873_000..=880_000)
            .map(|i| i as f32 * 1e-4)
            .map(|x| ulps(Float::exp(x), f64::from(x).exp()))
            .fold(0.0, f64::max);
        assert!(worst <= 1.0, "{worst} units in the last place");
    }

    /// Without this, the first score of a softmax could be scaled by something other than 0, or a NaN could pass for a number.
    #[test]
    fn exp_keeps_zero_nan_and_what_underflows() {
        assert_eq!(Float::exp(0.0f32), 1.0);
        assert_eq!(Float::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(Float::exp(-1000.0f32), 0.0);
        assert!(Float::exp(f32::NAN).is_nan());
    }

    /// Without this, GELU could lose digits at the seam of its two forms, or take the tanh form, which is 5e-4 away.
    #[test]
    fn gelu_f32_agrees_with_the_error_function() {
        for x in (-120_000..=120_000).map(|i| i as f32 * 1e-4) {
            let expected = 0.5 * f64::from(x) * libm::erfc(-f64::from(x) * std::f64::consts::FRAC_1_SQRT_2);
            let error = (f64::from(x.gelu()) - expected).abs();
            assert!(
                error <= 1.2e-7 * f64::from(x.abs()) + 1e-38,
                "gelu({x}): {} is not {expected}",
                x.gelu()
            );
        }
    }

    /// Without this, both precisions could share one mistake. Values: x times Φ from tables.
    #[test]
    fn gelu_gives_known_answers() {
        let known: [(f64, f64); 5] = [
            (1.0, 0.841_344_746_068_542_9),
            (-1.0, -0.158_655_253_931_457_05),
            (3.0, 2.995_950_305_905_11),
            (-3.0, -0.004_049_694_094_890_283_6),
            (0.0, 0.0),
        ];
        for (x, expected) in known {
            assert!((x.gelu() - expected).abs() <= 1e-15 * x.abs(), "gelu({x}) = {}", x.gelu());
            assert!((f64::from((x as f32).gelu()) - expected).abs() <= 1.2e-7 * x.abs());
        }
        assert!(f32::NAN.gelu().is_nan() && f64::NAN.gelu().is_nan());
        assert_eq!(f32::INFINITY.gelu(), f32::INFINITY);
    }
}
