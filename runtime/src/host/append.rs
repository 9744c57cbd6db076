//! New keys or values go to their place in the cache.

use super::Float;
use super::memory::{cursors, front, front_mut};
use crate::backend::AttentionShape;

/// cache[b, h, past_b + t, d] = x[b, t, h·D + d]. `cache: [B, H, P, D]`, `x: [B, T, C]`, `cursor: [B, 3]`.
pub(super) fn append<T: Float>(cache: &mut [T], x: &[T], cursor: &[u32], shape: AttentionShape) {
    let AttentionShape { step, heads, head_size, context } = shape;
    let cursors = cursors(cursor, step.batch);
    let cache = front_mut("append: cache", cache, shape.cache_len());
    let x = front("append: x", x, step.rows() * shape.channels());
    for (row, x) in x.chunks_exact(shape.channels()).enumerate() {
        let sequence = row / step.time;
        let position = cursors[sequence][0] as usize + row % step.time;
        if position >= context {
            continue;
        }
        for (head, x) in x.chunks_exact(head_size).enumerate() {
            let start = ((sequence * heads + head) * context + position) * head_size;
            cache[start..start + head_size].copy_from_slice(x);
        }
    }
}
