//! New keys or values behind the cached ones.

use crate::buffer::Buffer;
use crate::device::{Device, Launch, arguments};
use crate::element::Element;
use crate::entry::Entry;
use crate::error::Result;
use crate::shape::{CacheShape, check_cursor, groups};

/// cache[b, h, past_b + t, d] = x[b, t, h·D + d]; `cache: [B, H, P, D]`, `x: [B, T, C]`, `cursor: [B, 3]`.
///
/// # Errors
/// The driver's.
pub fn append<E: Element>(
    device: &Device,
    cache: &mut Buffer<E>,
    x: &Buffer<E>,
    cursor: &Buffer<u32>,
    shape: CacheShape,
) -> Result<()> {
    assert!(cache.len() >= shape.cache_len(), "the cache holds {} for {shape:?}", cache.len());
    assert!(x.len() >= shape.pass_len(), "x holds {} for {shape:?}", x.len());
    check_cursor(cursor, shape.batch as usize);
    let entry = E::pick(Entry::append_f32, Entry::append_bf16);
    let launch = Launch::new([groups(shape.pass_len(), 256), 1, 1], 256);
    let (cache, x, cursor) = (cache.address(), x.address(), cursor.address());
    // SAFETY: append_*(T *cache, const T *x, const Cursor *, CacheShape); threads past [B, T, C] and positions past P do nothing, and
    // the lengths above cover the rest; the caller owns all buffers.
    unsafe { device.launch(entry, launch, arguments![cache, x, cursor, shape]) }
}
