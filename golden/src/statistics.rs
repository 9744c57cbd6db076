//! Sums that do not leave float64's range, and errors by channel.

/// rms(x): the root of the mean square, scaled first, because squares of denormals and of huge values leave float64's range.
pub fn rms(x: impl Iterator<Item = f64> + Clone) -> f64 {
    let (count, scale) = x.clone().fold((0usize, 0f64), |(n, scale), v| (n + 1, scale.max(v.abs())));
    if count == 0 || scale == 0.0 || !scale.is_finite() {
        return scale;
    }
    (x.map(|v| (v / scale).powi(2)).sum::<f64>() / count as f64).sqrt() * scale
}

/// rms of each of the `channels` columns of x `[..., channels]`.
pub fn rms_by_channel(x: &[f64], channels: usize) -> Vec<f64> {
    (0..channels).map(|channel| rms(x[channel..].iter().copied().step_by(channels))).collect()
}

/// The largest magnitude and its index; 0 at 0 for nothing.
pub fn largest(x: impl Iterator<Item = f64>) -> (usize, f64) {
    x.map(f64::abs).enumerate().fold((0, 0.0), |best, (i, v)| if v > best.1 { (i, v) } else { best })
}

/// ours / reference; 1 where they are equal, because 0 / 0 is as exact as can be.
pub fn ratio(ours: f64, reference: f64) -> f64 {
    if ours == reference { 1.0 } else { ours / reference }
}
