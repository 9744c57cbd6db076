//! What the driver holds for a GPU, each with an owner: its primary context, streams and modules.

use std::ffi::CString;
use std::sync::Arc;

use cudarc::driver::{result, sys};

use crate::device::Info;
use crate::driver::check;
use crate::error::{Error, Result};
use crate::ledger::{Kind, Line};
use crate::libraries::{DRIVER_REMEDY, driver_present};

/// A GPU's primary context, retained until drop.
pub struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
    _line: Line,
}

impl Context {
    /// The primary context of a device of [`device_number`].
    pub(crate) fn retain(device: sys::CUdevice) -> Result<Self> {
        // SAFETY: the device was just named by the driver; the context is released in drop.
        let handle = check("cuDevicePrimaryCtxRetain", unsafe { result::primary_ctx::retain(device) })?;
        Ok(Self { device, handle, _line: Line::enter(Kind::Context, 0) })
    }

    /// Makes the context current in this thread, which every driver call relies on.
    pub(crate) fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained until drop.
        check("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.handle) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `open`; everything that lives in it holds an `Arc` of it, so it goes last.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

// SAFETY: handles of the driver are valid in every thread.
unsafe impl Send for Context {}
// SAFETY: as above; the fields never change.
unsafe impl Sync for Context {}

/// The number of GPUs. Without a driver, or where it cannot start, that is [`Error::NoDevice`].
pub(crate) fn count() -> Result<usize> {
    if !driver_present() {
        return Err(Error::NoDevice(format!("libcuda was not found: {DRIVER_REMEDY}")));
    }
    let no_device = |error: Error| Error::NoDevice(format!("{error}: {DRIVER_REMEDY}"));
    check("cuInit", result::init()).map_err(no_device)?;
    let count = check("cuDeviceGetCount", result::device::get_count()).map_err(no_device)?;
    match usize::try_from(count) {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(Error::NoDevice(format!("the driver sees no GPU: {DRIVER_REMEDY}"))),
    }
}

/// The driver's device number `ordinal`. Where there is none, that is [`Error::NoDevice`].
pub(crate) fn device_number(ordinal: usize) -> Result<sys::CUdevice> {
    let count = count()?;
    if ordinal >= count {
        return Err(Error::NoDevice(format!(
            "there is no GPU {ordinal}: the driver sees {count}, numbered from 0"
        )));
    }
    check("cuDeviceGet", result::device::get(i32::try_from(ordinal).expect("a small number")))
}

fn attribute_of(device: sys::CUdevice, attribute: sys::CUdevice_attribute) -> Result<u32> {
    // SAFETY: the device was named by the driver.
    let value = unsafe { result::device::get_attribute(device, attribute) };
    check("cuDeviceGetAttribute", value).map(|value| u32::try_from(value).unwrap_or(0))
}

/// Major and minor.
pub(crate) fn compute_capability(device: sys::CUdevice) -> Result<(u32, u32)> {
    use sys::CUdevice_attribute as Attribute;
    let major = attribute_of(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    Ok((major, attribute_of(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?))
}

/// What the driver says about a device of [`device_number`], which needs no context.
pub(crate) fn info(device: sys::CUdevice) -> Result<Info> {
    use sys::CUdevice_attribute as Attribute;
    let attribute = |attribute| attribute_of(device, attribute);
    let clock_khz = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
    let bus_bits = attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?;
    Ok(Info {
        name: check("cuDeviceGetName", result::device::get_name(device))?,
        compute: compute_capability(device)?,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        // Two transfers a clock.
        memory_bandwidth: 2 * u64::from(clock_khz) * 1000 * u64::from(bus_bits / 8),
        shared_bytes_max: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
            as usize,
        // SAFETY: the device was named by the driver.
        total_bytes: check("cuDeviceTotalMem", unsafe { result::device::total_mem(device) })?,
    })
}

/// A stream.
pub struct Stream {
    pub(crate) handle: sys::CUstream,
    context: Arc<Context>,
    _line: Line,
}

impl Stream {
    /// A stream of its own, which does not wait for the default stream.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(context: &Arc<Context>) -> Result<Self> {
        context.bind()?;
        let handle =
            check("cuStreamCreate", result::stream::create(result::stream::StreamKind::NonBlocking))?;
        Ok(Self { handle, context: context.clone(), _line: Line::enter(Kind::Stream, 0) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: created in `new`, destroyed once. Waiting first makes sure that no kernel still uses memory freed after this.
        unsafe {
            let _ = result::stream::synchronize(self.handle);
            let _ = result::stream::destroy(self.handle);
        }
    }
}

/// A loaded image of kernels.
pub struct Module {
    handle: sys::CUmodule,
    context: Arc<Context>,
    _line: Line,
}

impl Module {
    /// Loads a cubin.
    ///
    /// # Errors
    /// The driver's, where it does not accept the image.
    pub fn load(context: &Arc<Context>, cubin: &[u8]) -> Result<Self> {
        context.bind()?;
        // SAFETY: the image is a cubin (an ELF file that says its own size), live during the call, which copies it.
        let handle = check("cuModuleLoadData", unsafe { result::module::load_data(cubin.as_ptr().cast()) })?;
        Ok(Self { handle, context: context.clone(), _line: Line::enter(Kind::Module, cubin.len()) })
    }

    /// A function of it, which is used only while the module is held beside it.
    pub(crate) fn function(&self, name: &str) -> Result<sys::CUfunction> {
        let name = CString::new(name).expect("names hold no zero byte");
        // SAFETY: the module is live.
        check("cuModuleGetFunction", unsafe { result::module::get_function(self.handle, name) })
    }

    /// The bytes of one of its variables, after everything submitted before; none where it has no such.
    pub(crate) fn variable(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.context.bind()?;
        let name = CString::new(name).expect("names hold no zero byte");
        let (mut address, mut bytes) = (0, 0);
        // SAFETY: the module is live, and both pointers are to live values.
        let code = unsafe { sys::cuModuleGetGlobal_v2(&mut address, &mut bytes, self.handle, name.as_ptr()) };
        if code == sys::cudaError_enum::CUDA_ERROR_NOT_FOUND {
            return Ok(None);
        }
        check("cuModuleGetGlobal", code.result())?;
        let mut values = vec![0; bytes];
        // SAFETY: no precondition.
        check("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() }.result())?;
        // SAFETY: the variable has as many bytes, in a module that is live; the call returns when they are copied.
        check("cuMemcpyDtoH", unsafe { result::memcpy_dtoh_sync(&mut values, address) })?;
        Ok(Some(values))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: loaded in `load`, unloaded once; its functions are used by nobody any more.
        let _ = unsafe { result::module::unload(self.handle) };
    }
}
