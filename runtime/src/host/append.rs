//! New keys or values go to their place in the cache.

use super::Float;
use super::memory::{front, front_mut};
use crate::backend::AttentionShape;

/// cache[b, h, past + t, d] = x[b, t, h·D + d]. `cache: [B, H, P, D]`, `x: [B, T, C]`.
pub(super) fn append<T: Float>(cache: &mut [T], x: &[T], past: usize, shape: AttentionShape) {
    let AttentionShape { step, heads, head_size, context } = shape;
    let cache = front_mut("append: cache", cache, shape.cache_len());
    let x = front("append: x", x, step.rows() * shape.channels());
    for (row, x) in x.chunks_exact(shape.channels()).enumerate() {
        let (sequence, position) = (row / step.time, past + row % step.time);
        if position >= context {
            continue;
        }
        for (head, x) in x.chunks_exact(head_size).enumerate() {
            let start = ((sequence * heads + head) * context + position) * head_size;
            cache[start..start + head_size].copy_from_slice(x);
        }
    }
}
