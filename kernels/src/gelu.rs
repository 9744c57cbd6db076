//! y = x · Φ(x).

use crate::buffer::Buffer;
use crate::device::{Device, Launch, arguments};
use crate::element::Element;
use crate::entry::Entry;
use crate::error::Result;
use crate::shape::groups;

/// y = x · Φ(x), the erf form, for the first `len` elements.
///
/// # Errors
/// The driver's.
pub fn gelu<E: Element>(device: &Device, y: &mut Buffer<E>, x: &Buffer<E>, len: usize) -> Result<()> {
    assert!(len <= y.len() && len <= x.len(), "{len} elements of y {} and x {}", y.len(), x.len());
    let entry = E::pick(Entry::gelu_f32, Entry::gelu_bf16);
    let launch = Launch::new([groups(len, 256), 1, 1], 256);
    let (y, x, count) = (y.address(), x.address(), len as u32);
    // SAFETY: gelu_*(T *y, const T *x, u32 len); threads past `len` do nothing and both buffers hold `len`; the caller owns both.
    unsafe { device.launch(entry, launch, arguments![y, x, count]) }
}
