//! Verbs that read weights, one element after the other, in float64 unless the defect says otherwise.

use touchstone_runtime::backend::{CURSOR_LEN, LinearShape, Rows, Step};

use super::{Defect, past};

/// y = x · weightᵀ + bias. `y: [R, O]`, `x: [R, I]`, `weight: [O, I]`, `bias: [O]` or none.
pub fn linear(
    y: &mut [f32],
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    shape: LinearShape,
    defect: Option<Defect>,
) {
    let LinearShape { rows, inputs, outputs } = shape;
    let summed = if defect == Some(Defect::LastInputDropped) { inputs - 1 } else { inputs };
    let transposed = defect == Some(Defect::TransposedWeight) && inputs == outputs;
    let bias = bias.filter(|_| defect != Some(Defect::MissingBias));
    let input =
        |x: f32| if defect == Some(Defect::Bf16Inputs) { half::bf16::from_f32(x).to_f32() } else { x };
    for row in 0..rows {
        for output in 0..outputs {
            let place = |i: usize| if transposed { i * inputs + output } else { output * inputs + i };
            let product = |i: usize| f64::from(input(x[row * inputs + i])) * f64::from(weight[place(i)]);
            let sum: f64 = (0..summed).map(product).sum();
            y[row * outputs + output] = (sum + bias.map_or(0.0, |bias| f64::from(bias[output]))) as f32;
        }
    }
}

/// LayerNorm. `y: [rows.count(), C]`, `x: [R, C]`, `weight, bias: [C]`.
pub fn layernorm(
    y: &mut [f32],
    x: &[f32],
    (weight, bias): (&[f32], &[f32]),
    eps: f64,
    rows: Rows<'_, Vec<u32>>,
    channels: usize,
    defect: Option<Defect>,
) {
    for (row, y) in y.chunks_exact_mut(channels).take(rows.count()).enumerate() {
        let from = match rows {
            Rows::All(_) => row,
            Rows::Last { step, cursor } => row * step.time + cursor[row * CURSOR_LEN + 2] as usize - 1,
        };
        let x = &x[from * channels..][..channels];
        let n = channels as f64;
        let mean = x.iter().copied().map(f64::from).sum::<f64>() / n;
        let squares: f64 = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum();
        let variance = match defect {
            Some(Defect::UnbiasedVariance) => squares / (n - 1.0),
            Some(Defect::OnePassVariance) => {
                let (sum, squares) =
                    x.iter().fold((0f32, 0f32), |(sum, squares), x| (sum + x, squares + x * x));
                f64::from(squares / n as f32 - (sum / n as f32).powi(2)).max(0.0)
            }
            _ => squares / n,
        };
        let scale = match defect {
            Some(Defect::EpsOutsideRoot) => variance.sqrt() + eps,
            Some(Defect::ConstantEps) => (variance + 1e-5).sqrt(),
            _ => (variance + eps).sqrt(),
        };
        for (channel, y) in y.iter_mut().enumerate() {
            let normed = (f64::from(x[channel]) - mean) / scale;
            *y = (normed * f64::from(weight[channel]) + f64::from(bias[channel])) as f32;
        }
    }
}

/// y = token[tokens] + position[past + t]. `y: [B, T, C]`, `tokens: [B, T]`, `token: [V, C]`, `position: [P, C]` or none.
pub fn embedding(
    y: &mut [f32],
    tokens: &[u32],
    token: &[f32],
    position: Option<&[f32]>,
    cursor: &[u32],
    step: Step,
    channels: usize,
    defect: Option<Defect>,
) {
    for (row, y) in y.chunks_exact_mut(channels).take(step.rows()).enumerate() {
        let past = past(cursor, row / step.time);
        let place = match defect {
            Some(Defect::PositionOffByOne) => past + row % step.time + 1,
            Some(Defect::PositionWithoutPast) => row % step.time,
            _ => past + row % step.time,
        };
        let token = &token[tokens[row] as usize * channels..][..channels];
        match position {
            None => y.copy_from_slice(token),
            Some(position) => {
                let place = place.min(position.len() / channels - 1);
                let position = &position[place * channels..][..channels];
                y.iter_mut().zip(token.iter().zip(position)).for_each(|(y, (t, p))| *y = t + p);
            }
        }
    }
}

/// y = x · Φ(x), by an approximation.
pub fn gelu(y: &mut [f32], x: &[f32], defect: Defect) {
    for (y, x) in y.iter_mut().zip(x.iter().copied().map(f64::from)) {
        *y = if defect == Defect::SigmoidGelu {
            x / (1.0 + (-1.702 * x).exp())
        } else {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        } as f32;
    }
}
