//! Causal attention over the cache.

use pulp::{Arch, Simd, WithSimd};

use super::Float;
use super::dot::{BLOCK, accumulate, padded};
use super::memory::{cursors, front, front_mut};
use crate::backend::AttentionShape;
use crate::threads::{pieces, share};

/// Positions whose scores are held at once.
const SPAN: usize = 64;
/// Positions whose scores are computed at once.
const TILE: usize = 8;

/// y[b, t, h] = Σ_s softmax_s(q[b, t, h] · keys[b, h, s] / √D) · values[b, h, s] over s ≤ past_b + t.
///
/// `y, q: [B, T, C]`, `keys, values: [B, H, P, D]`, `cursor: [B, 3]`. One pass over the keys, with a running maximum (Milakov and Gimelshein,
/// "Online normalizer calculation for softmax", 2018). Scores add up and stay in float64: the exponential turns their absolute error into
/// a relative one, which is most of attention's error.
pub(super) fn attention<T: Float>(
    arch: Arch,
    y: &mut [T],
    q: &[T],
    keys: &[T],
    values: &[T],
    cursor: &[u32],
    shape: AttentionShape,
) {
    let AttentionShape { step, heads, head_size, context } = shape;
    let (rows, channels) = (step.rows(), shape.channels());
    let cursors = cursors(cursor, step.batch);
    let y = front_mut("attention: y", y, rows * channels);
    let q = front("attention: q", q, rows * channels);
    let keys = front("attention: keys", keys, shape.cache_len());
    let values = front("attention: values", values, shape.cache_len());
    let scale = 1.0 / (head_size as f64).sqrt();
    let past = |sequence: usize| cursors[sequence][0] as usize;
    let seen = |sequence| (past(sequence) + step.time.div_ceil(2)).min(context) * step.time;
    let read_bytes = 2 * size_of::<T>() * channels * (0..step.batch).map(seen).sum::<usize>();
    share([y], head_size, pieces(read_bytes), &|first, [y]| {
        let queries = y.chunks_exact_mut(head_size).zip(q[first..].chunks_exact(head_size));
        for (index, (y, q)) in (first / head_size..).zip(queries) {
            let (row, head) = (index / heads, index % heads);
            let visible = (past(row / step.time) + row % step.time + 1).min(context) * head_size;
            let start = (row / step.time * heads + head) * context * head_size;
            let (keys, values) = (&keys[start..][..visible], &values[start..][..visible]);
            arch.dispatch(Query { y, q, keys, values, scale });
        }
    });
}

/// One query of one head. `y, q: [D]`, `keys, values: [S, D]`.
struct Query<'a, T> {
    y: &'a mut [T],
    q: &'a [T],
    keys: &'a [T],
    values: &'a [T],
    scale: f64,
}

impl<T: Float> WithSimd for Query<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { y, q, keys, values, scale } = self;
        let span = SPAN * q.len();
        let (mut maximum, mut total) = (f64::NEG_INFINITY, T::ZERO);
        y.fill(T::ZERO);
        for (keys, values) in keys.chunks(span).zip(values.chunks(span)) {
            let len = keys.len() / q.len();
            let (mut scores, mut weights) = ([0.0; SPAN], [T::ZERO; SPAN]);
            let (scores, weights) = (&mut scores[..len], &mut weights[..len]);
            dot_all(simd, scores, q, keys);
            let before = maximum;
            for score in &mut *scores {
                *score *= scale;
                maximum = if *score > maximum { *score } else { maximum };
            }
            for (weight, score) in weights.iter_mut().zip(scores) {
                *weight = T::from_f64(*score - maximum).exp();
            }
            let shrink = T::from_f64(before - maximum).exp();
            total = total * shrink + sum(weights);
            for y in &mut *y {
                *y = *y * shrink;
            }
            add_weighted(simd, y, weights, values);
        }
        for y in y {
            *y = *y / total;
        }
    }
}

/// scores[s] = q · keys[s]. `scores: [S]`, `q: [D]`, `keys: [S, D]`.
#[inline(always)]
fn dot_all<S: Simd, T: Float>(simd: S, scores: &mut [f64], q: &[T], keys: &[T]) {
    let (tiles, rest) = scores.as_chunks_mut::<TILE>();
    let (tile_keys, rest_keys) = keys.split_at(tiles.len() * TILE * q.len());
    for (scores, keys) in tiles.iter_mut().zip(tile_keys.chunks_exact(TILE * q.len())) {
        *scores = dot_tile(simd, q, keys);
    }
    for (score, key) in rest.iter_mut().zip(rest_keys.chunks_exact(q.len())) {
        [*score] = dot_tile(simd, q, key);
    }
}

/// [`dot_all`], for `N` keys.
#[inline(always)]
fn dot_tile<S: Simd, T: Float, const N: usize>(simd: S, q: &[T], keys: &[T]) -> [f64; N] {
    let mut sums = [[T::zero(simd); N]];
    let (mut blocks, mut tails) = ([&[][..]; N], [&[][..]; N]);
    for n in 0..N {
        (blocks[n], tails[n]) = keys[n * q.len()..][..q.len()].as_chunks::<BLOCK>();
    }
    let (q_blocks, q_tail) = q.as_chunks::<BLOCK>();
    accumulate(simd, &mut sums, [q_blocks], blocks);
    if !q_tail.is_empty() {
        let (q_tail, tails) = ([padded(q_tail)], tails.map(|tail| [padded(tail)]));
        for n in 0..N {
            blocks[n] = &tails[n];
        }
        accumulate(simd, &mut sums, [&q_tail], blocks);
    }
    // A loop: `map` would be a call, outside the vector code.
    let mut scores = [0.0; N];
    for (score, sum) in scores.iter_mut().zip(sums[0]) {
        *score = T::sum_f64(simd, sum);
    }
    scores
}

/// Σ x, in partial sums that are added in pairs.
#[inline(always)]
fn sum<T: Float>(x: &[T]) -> T {
    let (chunks, rest) = x.as_chunks::<16>();
    let mut sums = [T::ZERO; 16];
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += x;
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum += x;
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            let other = sums[i + half];
            sums[i] += other;
        }
    }
    sums[0]
}

/// y += Σ_s weights[s] · values[s]. `y: [D]`, `weights: [S]`, `values: [S, D]`.
#[inline(always)]
fn add_weighted<S: Simd, T: Float>(simd: S, y: &mut [T], weights: &[T], values: &[T]) {
    /// Positions that are summed side by side, so that no addition waits for the one before.
    const SIDES: usize = 4;
    let head_size = y.len();
    let (blocks, tail) = y.as_chunks_mut::<BLOCK>();
    let tail_start = blocks.len() * BLOCK;
    for (index, y) in blocks.iter_mut().enumerate() {
        for i in 0..T::registers::<S>() {
            let mut sums = [T::zero(simd); SIDES];
            let mut add = |side: usize, weight: T, value: &[T]| {
                let value = T::register(simd, &value.as_chunks::<BLOCK>().0[index], i);
                sums[side] = T::mul_add(simd, T::splat(simd, weight), value, sums[side]);
            };
            let (whole, rest) = weights.as_chunks::<SIDES>();
            let (whole_values, rest_values) = values.split_at(whole.len() * SIDES * head_size);
            for (weights, values) in whole.iter().zip(whole_values.chunks_exact(SIDES * head_size)) {
                for side in 0..SIDES {
                    add(side, weights[side], &values[side * head_size..][..head_size]);
                }
            }
            for (side, value) in rest_values.chunks_exact(head_size).enumerate() {
                add(side, rest[side], value);
            }
            let [a, b, c, d] = sums;
            T::add_to(simd, y, i, T::plus(simd, T::plus(simd, a, b), T::plus(simd, c, d)));
        }
    }
    for (&weight, value) in weights.iter().zip(values.chunks_exact(head_size)) {
        for (y, &value) in tail.iter_mut().zip(&value[tail_start..]) {
            *y += weight * value;
        }
    }
}
