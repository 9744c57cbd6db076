//! ln1, the q, k and v projections and the append to the cache, in one launch.

use cudarc::driver::sys::CUdeviceptr;

use crate::buffer::Buffer;
use crate::device::{Device, Launch, arguments};
use crate::element::Element;
use crate::entry::Entry;
use crate::error::Result;
use crate::shape::{CacheShape, ROW_MAX, check_cursor, groups};

/// Parameters of [`norm_qkv`]: the norm's `[C]`, the projections' `[C, C]`.
pub struct NormQkvWeights<'a, E: Element> {
    /// The norm's scale.
    pub norm_weight: &'a Buffer<E>,
    /// The norm's shift.
    pub norm_bias: &'a Buffer<E>,
    /// Query projection.
    pub q: &'a Buffer<E>,
    /// Key projection.
    pub k: &'a Buffer<E>,
    /// Value projection.
    pub v: &'a Buffer<E>,
    /// Added to the variance inside the root.
    pub eps: f32,
}

/// As the device code takes them.
#[repr(C)]
#[derive(Clone, Copy)]
struct Addresses {
    norm_weight: CUdeviceptr,
    norm_bias: CUdeviceptr,
    q: CUdeviceptr,
    k: CUdeviceptr,
    v: CUdeviceptr,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct NormQkvShape {
    cache: CacheShape,
    eps: f32,
}
const _: () = assert!(size_of::<NormQkvShape>() == 24 && size_of::<Addresses>() == 40);

/// q = n · Wqᵀ, and n · Wkᵀ and n · Wvᵀ into the cache, n = layernorm(x); `q: [B, T, C]`, `keys, values: [B, H, P, D]`, `x: [B, T, C]`,
/// `cursor: [B, 3]`. C is a multiple of four and at most [`ROW_MAX`]. For few rows.
///
/// # Errors
/// The driver's.
pub fn norm_qkv<E: Element>(
    device: &Device,
    q: &mut Buffer<E>,
    keys: &mut Buffer<E>,
    values: &mut Buffer<E>,
    x: &Buffer<f32>,
    weights: &NormQkvWeights<'_, E>,
    cursor: &Buffer<u32>,
    shape: CacheShape,
) -> Result<()> {
    let (channels, cache, pass) = (shape.channels() as usize, shape.cache_len(), shape.pass_len());
    assert!(channels.is_multiple_of(4) && channels <= ROW_MAX, "rows of {channels} do not fit a warp");
    assert!(
        keys.len() >= cache && values.len() >= cache,
        "keys {}, values {} for {shape:?}",
        keys.len(),
        values.len()
    );
    assert!(q.len() >= pass && x.len() >= pass, "q {}, x {} for {shape:?}", q.len(), x.len());
    let w = weights;
    assert!(w.norm_weight.len() >= channels && w.norm_bias.len() >= channels, "norm for rows of {channels}");
    assert!([w.q, w.k, w.v].iter().all(|m| m.len() >= channels * channels), "projections of {channels}");
    check_cursor(cursor, shape.batch as usize);
    let entry = E::pick(Entry::norm_qkv_f32, Entry::norm_qkv_bf16);
    let launch = Launch::new([groups(3 * channels, 8), shape.batch * shape.time, 1], 256);
    let addresses = Addresses {
        norm_weight: w.norm_weight.address(),
        norm_bias: w.norm_bias.address(),
        q: w.q.address(),
        k: w.k.address(),
        v: w.v.address(),
    };
    let shape = NormQkvShape { cache: shape, eps: w.eps };
    let (q, keys, values, x, cursor) =
        (q.address(), keys.address(), values.address(), x.address(), cursor.address());
    // SAFETY: norm_qkv_*(T *q, T *keys, T *values, const float *x, NormQkvWeights<T>, const Cursor *, NormQkvShape); one warp an output
    // inside [R, 3 C], positions past P dropped, rows aligned and lengths checked as above; the caller owns all buffers.
    unsafe { device.launch(entry, launch, arguments![q, keys, values, x, addresses, cursor, shape]) }
}
