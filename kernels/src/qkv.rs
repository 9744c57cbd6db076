//! The q, k and v projections and the append to the cache, in one launch, for many rows.

use cudarc::driver::sys::CUdeviceptr;

use crate::buffer::Buffer;
use crate::device::{Device, arguments};
use crate::element::Element;
use crate::entry::Entry;
use crate::error::Result;
use crate::product::{self, QKV, QKV_NARROW};
use crate::rows::{FEW_ROWS_MAX, Rows};
use crate::shape::{CacheShape, check_cursor};

/// As the device code takes them.
#[repr(C)]
#[derive(Clone, Copy)]
struct Projections {
    weight: [CUdeviceptr; 3],
    place: [CUdeviceptr; 3],
}
const _: () = assert!(size_of::<Projections>() == 48);

/// q = x · Wqᵀ, and x · Wkᵀ and x · Wvᵀ into the cache, through tensor cores; `q, x: [B, T, C]`, `keys, values: [B, H, P, D]`, `weights`: q, k, v
/// `[C, C]`, `cursor: [B, 3]`. [`crate::tensor_cores`] holds for C and C, and D is a multiple of eight.
///
/// # Errors
/// The driver's.
pub fn qkv<E: Element>(
    device: &Device,
    q: &mut Buffer<E>,
    keys: &mut Buffer<E>,
    values: &mut Buffer<E>,
    x: &Buffer<E>,
    weights: [&Buffer<E>; 3],
    cursor: &Buffer<u32>,
    shape: CacheShape,
) -> Result<()> {
    let (channels, cache, pass) = (shape.channels() as usize, shape.cache_len(), shape.pass_len());
    assert!(product::tensor_cores::<E>(device, channels, channels), "{shape:?} is not for tensor cores");
    assert!(shape.head_size.is_multiple_of(8), "heads of {} are not whole 16 bytes", shape.head_size);
    assert!(
        keys.len() >= cache && values.len() >= cache,
        "keys {}, values {} for {shape:?}",
        keys.len(),
        values.len()
    );
    assert!(q.len() >= pass && x.len() >= pass, "q {}, x {} for {shape:?}", q.len(), x.len());
    assert!(weights.iter().all(|w| w.len() >= channels * channels), "projections of {channels}");
    check_cursor(cursor, shape.batch as usize);
    let (rows, place) =
        ((shape.batch * shape.time) as usize, [q.address(), keys.address(), values.address()]);
    if product::wide(device, rows, channels) {
        let kernel = QKV.or_narrow(device, QKV_NARROW, rows, channels, 3);
        let launch = kernel.launch(rows, channels, 3);
        let x = kernel.input(x, rows, channels)?;
        let [q, k, v] = weights.map(|w| kernel.weight(w, channels, channels));
        let (q, k, v, cursor) = (q?, k?, v?, cursor.address());
        // SAFETY: qkv_wgmma[_narrow]_bf16(TensorMap x, TensorMap q, k, v, QkvPlaces, const Cursor *, CacheShape); the maps end where the matrices
        // do, stores are inside [B, T, C] and the cache, positions past P dropped, lengths as above; the caller owns all buffers.
        return unsafe { device.launch(kernel.entry, launch, arguments![x, q, k, v, place, cursor, shape]) };
    }
    let few = Rows::Stored
        .launch::<E>(device, rows as u32, channels, 3 * channels)
        .filter(|_| rows <= FEW_ROWS_MAX);
    let (entry, launch) = match few {
        Some(launch) => (Entry::qkv_rows_bf16, launch),
        None => (Entry::qkv_mma_bf16, product::mma_launch(rows, channels, 3)),
    };
    let projections = Projections { weight: weights.map(Buffer::address), place };
    let (x, cursor) = (x.address(), cursor.address());
    // SAFETY: qkv_{rows,mma}_bf16(Projections, const bf16 *x, const Cursor *, CacheShape); nothing outside [B, T, C], the weights and the cache is
    // read or written, rows and heads are whole 16 bytes, lengths as above; the caller owns all buffers.
    unsafe { device.launch(entry, launch, arguments![projections, x, cursor, shape]) }
}
