//! Causal attention over the cache.

use crate::buffer::Buffer;
use crate::device::{Device, Launch, arguments};
use crate::element::Element;
use crate::entry::Entry;
use crate::error::Result;
use crate::shape::CacheShape;

/// The widest head that the kernel takes.
pub const HEAD_SIZE_MAX: usize = 256;

/// Warps a block, as in the device code.
const WARPS: u32 = 8;

/// y = softmax(q · keysᵀ / √D) · values over the positions up to each query's own; `y, q: [B, T, C]`, `keys, values: [B, H, P, D]`,
/// `cursor: [2]`.
///
/// # Errors
/// The driver's.
pub fn attention<E: Element>(
    device: &Device,
    y: &mut Buffer<E>,
    q: &Buffer<E>,
    keys: &Buffer<E>,
    values: &Buffer<E>,
    cursor: &Buffer<u32>,
    shape: CacheShape,
) -> Result<()> {
    let (cache, pass) = (shape.cache_len(), shape.pass_len());
    assert!(
        keys.len() >= cache && values.len() >= cache,
        "keys {}, values {} for {shape:?}",
        keys.len(),
        values.len()
    );
    assert!(y.len() >= pass && q.len() >= pass, "y {}, q {} for {shape:?}", y.len(), q.len());
    assert!(
        shape.head_size as usize <= HEAD_SIZE_MAX,
        "heads of {} are wider than {HEAD_SIZE_MAX}",
        shape.head_size
    );
    assert!(cursor.len() >= 2, "the cursor is past and step");
    let entry = E::pick(Entry::attention_f32, Entry::attention_bf16);
    let launch = Launch::new([shape.time, shape.heads, shape.batch], WARPS * 32);
    let (y, q, keys, values) = (y.address(), q.address(), keys.address(), values.address());
    let cursor = cursor.address();
    // SAFETY: attention_*(T *y, const T *q, const T *keys, const T *values, const Cursor *, CacheShape); one block a query inside
    // [B, T, H], keys read below min(past + t + 1, P), lengths as above; the caller owns all buffers.
    unsafe { device.launch(entry, launch, arguments![y, q, keys, values, cursor, shape]) }
}
