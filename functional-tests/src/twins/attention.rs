//! Attention and its cache, one element after the other, with the defects that concern them.

use touchstone_runtime::backend::AttentionShape;

use super::{Defect, past};

/// y[b, t, h] = softmax(q · keys / √D) · values. `y, q: [B, T, C]`, `keys, values: [B, H, P, D]`.
pub fn attention(
    y: &mut [f32],
    q: &[f32],
    keys: &[f32],
    values: &[f32],
    cursor: &[u32],
    shape: AttentionShape,
    defect: Defect,
) {
    let AttentionShape { step, heads, head_size, context } = shape;
    let row = |b: usize, t: usize, h: usize| ((b * step.time + t) * heads + h) * head_size;
    let cached = |b: usize, s: usize, h: usize| match defect {
        Defect::WrongHeadStride => (b * heads * context + h + s) * head_size,
        _ => ((b * heads + h) * context + s) * head_size,
    };
    for (b, t, h) in places(shape) {
        let past = past(cursor, b);
        let visible = match defect {
            Defect::SeesOneFutureKey => (past + t + 2).min(past + step.time),
            Defect::MissesOwnKey => (past + t).max(1),
            _ => past + t + 1,
        };
        // Padding may reach past the context.
        let visible = visible.min(context);
        let score = |s: usize| {
            // The other way round: this position's key with the other's query.
            let swapped = defect == Defect::SwappedQueryAndKey && past == 0;
            let (query, key) =
                if swapped { (row(b, s, h), cached(b, t, h)) } else { (row(b, t, h), cached(b, s, h)) };
            let products = (0..head_size).map(|d| f64::from(q[query + d]) * f64::from(keys[key + d]));
            let off = if defect == Defect::ScaleSlightlyOff { 1.0 + 1e-4 } else { 1.0 };
            products.sum::<f64>() * off / (head_size as f64).sqrt()
        };
        let scores: Vec<f64> = (0..visible).map(score).collect();
        let weights = softmax(&scores, defect != Defect::SoftmaxWithoutMaximum);
        let to = match defect {
            Defect::HeadsNotMerged => ((b * heads + h) * step.time + t) * head_size,
            _ => row(b, t, h),
        };
        for d in 0..head_size {
            let mixed = weights.iter().enumerate().map(|(s, w)| w * f64::from(values[cached(b, s, h) + d]));
            y[to + d] = mixed.sum::<f64>() as f32;
        }
    }
}

/// exp(score) over their sum; in float32, as a kernel has it, where the maximum stays in.
fn softmax(scores: &[f64], shifted: bool) -> Vec<f64> {
    let maximum = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let power = |s: &f64| if shifted { (s - maximum).exp() } else { f64::from((*s as f32).exp()) };
    let powers: Vec<f64> = scores.iter().map(power).collect();
    let total: f64 = powers.iter().sum();
    powers.iter().map(|power| power / total).collect()
}

/// cache[b, h, past + t] = x[b, t, h]. `cache: [B, H, P, D]`, `x: [B, T, C]`.
pub fn append(cache: &mut [f32], x: &[f32], cursor: &[u32], shape: AttentionShape, defect: Defect) {
    let AttentionShape { step, heads, head_size, context } = shape;
    for (b, t, h) in places(shape) {
        let past = past(cursor, b);
        let position = match defect {
            Defect::StaleCacheRow if past > 0 && t == 0 => continue,
            Defect::OverwrittenCacheRow if past > 0 => past + t - 1,
            _ => past + t,
        };
        if position >= context {
            continue;
        }
        let from = match defect {
            Defect::HeadsAndTimeSwapped => (b * heads + h) * step.time + t,
            _ => (b * step.time + t) * heads + h,
        };
        let to = ((b * heads + h) * context + position) * head_size;
        cache[to..to + head_size].copy_from_slice(&x[from * head_size..][..head_size]);
    }
}

/// Every (b, t, h).
fn places(shape: AttentionShape) -> impl Iterator<Item = (usize, usize, usize)> {
    let AttentionShape { step, heads, .. } = shape;
    (0..step.rows() * heads).map(move |i| (i / heads / step.time, i / heads % step.time, i % heads))
}
