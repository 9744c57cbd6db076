//! LayerNorm.

use super::memory::{cursors, front, front_mut};
use super::{Float, Host};
use crate::backend::Rows;
use crate::modules::Norm;

/// Partial sums, enough to fill the registers that a sum is spread over.
const SUMS: usize = 16;

/// y = (x − mean) / sqrt(var + eps) · weight + bias over each of `rows`.
///
/// `y: [rows.count(), C]`, `x: [R, C]`. Computed in float64, mean and variance in two passes.
pub(super) fn layernorm<T: Float>(
    arch: pulp::Arch,
    y: &mut [T],
    x: &[T],
    norm: &Norm<Host<T>>,
    rows: Rows<'_, Vec<u32>>,
    channels: usize,
) {
    let y = front_mut("layernorm: y", y, rows.count() * channels);
    let (count, cursors) = match rows {
        Rows::All(count) => (count, None),
        Rows::Last { step, cursor } => (step.rows(), Some((step.time, cursors(cursor, step.batch)))),
    };
    let x = front("layernorm: x", x, count * channels);
    let (weight, bias) = (norm.weight.vector(channels), norm.bias.vector(channels));
    arch.dispatch(|| {
        for (row, y) in y.chunks_exact_mut(channels).enumerate() {
            let from = cursors.map_or(row, |(time, cursors)| row * time + cursors[row][2] as usize - 1);
            normalise(y, &x[from * channels..][..channels], weight, bias, norm.eps);
        }
    });
}

/// One row. `y, x, weight, bias: [C]`.
#[inline(always)]
fn normalise<T: Float>(y: &mut [T], x: &[T], weight: &[T], bias: &[T], eps: f64) {
    let channels = x.len() as f64;
    let mean = sum(x, |x| x) / channels;
    let variance = sum(x, |x| (x - mean) * (x - mean)) / channels;
    let scale = 1.0 / (variance + eps).sqrt();
    for (((y, x), weight), bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
        *y = T::from_f64((x.to_f64() - mean) * scale * weight.to_f64() + bias.to_f64());
    }
}

/// Σ f(x).
#[inline(always)]
fn sum<T: Float>(x: &[T], f: impl Fn(f64) -> f64) -> f64 {
    let mut sums = [0.0; SUMS];
    let (chunks, rest) = x.as_chunks::<SUMS>();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += f(x.to_f64());
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|x| f(x.to_f64())).sum::<f64>()
}
