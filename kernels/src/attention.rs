//! Causal attention over the cache.

use cudarc::driver::sys::CUdeviceptr;

use crate::buffer::Buffer;
use crate::device::{Device, Launch, arguments};
use crate::element::Element;
use crate::entry::Entry;
use crate::error::Result;
use crate::product::{self, tensor_cores};
use crate::shape::{CacheShape, check_cursor, groups};

/// The widest head that the kernel takes.
pub const HEAD_SIZE_MAX: usize = 256;

/// Queries a block of the kernels that use tensor cores, and from how many on they are worth it: below, the plain kernel spreads the
/// keys over more of the device.
const TENSOR_QUERIES: usize = 64;
const TENSOR_QUERIES_MIN: u32 = 16;
/// The heads that Hopper's warpgroup products take.
const WARPGROUP_HEAD: u32 = 64;
/// The widest head that tensor cores take.
const TENSOR_HEAD_MAX: u32 = 128;

/// Dynamic shared memory of the kernel for heads of up to 64 · `panels`: five tiles from a multiple of 1024 on.
const fn tensor_shared_bytes(panels: u32) -> u32 {
    1024 + 5 * 64 * 128 * panels
}
/// Warpgroups a block of the kernel of warpgroup products, of which two serve the same queries, and its dynamic shared memory: for each
/// warpgroup seven tiles and six barriers.
const WARPGROUPS: u32 = 4;
const WARPGROUP_SHARED_BYTES: u32 = 1024 + WARPGROUPS * (7 * 64 * 128 + 6 * 8);

/// The kernels that want more than 48 KiB of it on a GPU of this compute capability, and how much.
pub(crate) fn large_shared(compute: (u32, u32)) -> Vec<(Entry, u32)> {
    let wide = (Entry::attention_mma_wide_bf16, tensor_shared_bytes(2));
    let warpgroups = (Entry::attention_wgmma_bf16, WARPGROUP_SHARED_BYTES);
    let takes = [(compute >= (8, 0)).then_some(wide), product::has_warpgroups(compute).then_some(warpgroups)];
    takes.into_iter().flatten().collect()
}

/// The most warps a block, as in the device code; half of them where there are blocks enough for all multiprocessors.
const WARPS_MAX: u32 = 8;

/// y = softmax(q · keysᵀ / √D) · values over the positions up to each query's own; `y, q: [B, T, C]`, `keys, values: [B, H, P, D]`,
/// `cursor: [B, 3]`.
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
    check_cursor(cursor, shape.batch as usize);
    let aligned = tensor_cores::<E>(device, shape.channels() as usize, shape.head_size as usize);
    let tensor = aligned && shape.head_size <= TENSOR_HEAD_MAX && shape.time >= TENSOR_QUERIES_MIN;
    let (entry, launch) = if tensor {
        let (entry, panels) = if shape.head_size <= 64 {
            (Entry::attention_mma_bf16, 1)
        } else {
            (Entry::attention_mma_wide_bf16, 2)
        };
        let grid = [groups(shape.time as usize, TENSOR_QUERIES), shape.heads, shape.batch];
        (entry, Launch { shared_bytes: tensor_shared_bytes(panels), ..Launch::new(grid, 128) })
    } else {
        let grid = [shape.time, shape.heads, shape.batch];
        let many = grid.iter().product::<u32>() > device.info().multiprocessors;
        let warps = if many { WARPS_MAX / 2 } else { WARPS_MAX };
        (E::pick(Entry::attention_f32, Entry::attention_bf16), Launch::new(grid, warps * 32))
    };
    let cursor = cursor.address();
    if tensor && shape.head_size == WARPGROUP_HEAD && product::has_warpgroups(device.info().compute) {
        return attention_wgmma(device, y, q, keys, values, cursor, shape);
    }
    let (y, q, keys, values) = (y.address(), q.address(), keys.address(), values.address());
    // SAFETY: attention_*(T *y, const T *q, const T *keys, const T *values, const Cursor *, CacheShape); one block a query, or 64 of
    // them, inside [B, T, H], rows of whole 16 bytes where tensor cores read them, keys read below min(past + t + 1, P), lengths as above; the caller owns all buffers.
    unsafe { device.launch(entry, launch, arguments![y, q, keys, values, cursor, shape]) }
}

/// The same through Hopper's warpgroup products; the caller has checked the lengths.
fn attention_wgmma<E: Element>(
    device: &Device,
    y: &mut Buffer<E>,
    q: &Buffer<E>,
    keys: &Buffer<E>,
    values: &Buffer<E>,
    cursor: CUdeviceptr,
    shape: CacheShape,
) -> Result<()> {
    let (rows, heads) = ((shape.batch * shape.time) as usize, (shape.batch * shape.heads) as usize);
    let cached = heads * shape.context as usize;
    let q = product::map(q, rows, shape.channels() as usize, TENSOR_QUERIES)?;
    let keys = product::map(keys, cached, shape.head_size as usize, TENSOR_QUERIES)?;
    let values = product::map(values, cached, shape.head_size as usize, TENSOR_QUERIES)?;
    let errands = groups(shape.time as usize, TENSOR_QUERIES) * shape.heads * shape.batch;
    let grid = [errands.min(device.info().multiprocessors), 1, 1];
    let launch = Launch { shared_bytes: WARPGROUP_SHARED_BYTES, ..Launch::new(grid, WARPGROUPS * 128) };
    let y = y.address();
    let arguments = arguments![q, keys, values, y, cursor, shape];
    // SAFETY: attention_wgmma_bf16(TensorMap q, keys, values, bf16 *y, const Cursor *, CacheShape); the maps end where the buffers do, stores
    // are inside [B, T, H]; the caller owns all buffers and has checked their lengths.
    unsafe { device.launch(Entry::attention_wgmma_bf16, launch, arguments) }
}
