//! What kernels of large clusters ask the driver for.

use cudarc::driver::sys;

use super::cluster_layout::SHARED_BYTES;
use crate::device::{Device, Launch, no_attributes};
use crate::driver::check;
use crate::error::Result;

/// More shared memory and more blocks a cluster than what every GPU of the architecture has must be asked for. The function's module is live.
pub(super) fn allow_large_clusters(function: sys::CUfunction) -> Result<()> {
    use sys::CUfunction_attribute as Attribute;
    for (attribute, value) in [
        (Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, SHARED_BYTES as i32),
        (Attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1),
    ] {
        // SAFETY: the caller's promise.
        let code = unsafe { sys::cuFuncSetAttribute(function, attribute, value) };
        check("cuFuncSetAttribute", code.result())?;
    }
    Ok(())
}

/// Clusters of a launch that the GPU, or the part of it that we see, holds at once. The function's module is live.
pub(super) fn clusters_at_once(device: &Device, function: sys::CUfunction, launch: &Launch) -> Result<usize> {
    let (mut count, mut attribute) = (0, no_attributes());
    let config = launch.config(device.stream(), device.info().compute.0, &mut attribute);
    // SAFETY: the caller's promise; `count` and `config` live through the call.
    let code = unsafe { sys::cuOccupancyMaxActiveClusters(&mut count, function, &config) };
    check("cuOccupancyMaxActiveClusters", code.result())?;
    Ok(count as usize)
}
