//! A GPU, opened: its context, its stream and its kernels.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::{result, sys};

use crate::compile::{Unit, architecture, cubin};
use crate::driver::check;
use crate::entry::Entry;
use crate::error::{Error, Result};
use crate::ledger::{Kind, Line};
use crate::libraries::{DRIVER_REMEDY, driver_present};
use crate::{attention, product};

/// What the driver says about a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its name, such as `NVIDIA H200`.
    pub name: String,
    /// Compute capability, major and minor.
    pub compute: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Theoretical bandwidth of its memory in bytes a second; 0 where the driver does not say.
    pub memory_bandwidth: u64,
    /// The most shared memory that a block may use.
    pub shared_bytes_max: usize,
    /// Size of its memory.
    pub total_bytes: usize,
}

/// A GPU with its primary context, one stream, and every kernel loaded. Cloning shares them; the last owner releases them.
#[derive(Clone)]
pub struct Device(Arc<Open>);

struct Open {
    info: Info,
    functions: Vec<sys::CUfunction>,
    // Released in this order: the stream and the module before the context that they live in.
    stream: Stream,
    _module: Module,
    context: Arc<Context>,
}

// SAFETY: the driver's handles may be used from any thread once the context is current there, which `bind` sees to before every
// call; the driver serialises concurrent calls itself.
unsafe impl Send for Open {}
// SAFETY: as above; nothing in it is written after construction.
unsafe impl Sync for Open {}

impl Device {
    /// Opens GPU number `ordinal`: makes its context current, compiles the kernels for it or takes them from the cache, and loads them.
    ///
    /// # Errors
    /// [`Error::NoDevice`] without a driver or a GPU of that number; those of the compiler and of the driver.
    pub fn open(ordinal: usize) -> Result<Self> {
        let context = Arc::new(Context::open(ordinal)?);
        let info = context.info()?;
        let stream = Stream::new(&context)?;
        let module = Module::load(&context, &cubin(&architecture(info.compute), &Unit::ops())?)?;
        let functions: Vec<_> =
            Entry::ALL.iter().map(|entry| module.function(entry.name())).collect::<Result<_>>()?;
        allow_shared_memory(info.compute, &functions)?;
        Ok(Self(Arc::new(Open { info, functions, stream, _module: module, context })))
    }

    /// What the driver says about the GPU.
    #[must_use]
    pub fn info(&self) -> &Info {
        &self.0.info
    }

    /// Waits until everything submitted so far has run.
    ///
    /// # Errors
    /// Whatever a kernel did wrong since the last wait.
    pub fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream is live as long as `self`.
        check("cuStreamSynchronize", unsafe { result::stream::synchronize(self.stream()) })
    }

    /// Free and total bytes of device memory, as the driver sees them.
    ///
    /// # Errors
    /// The driver's.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.bind()?;
        check("cuMemGetInfo", result::mem_get_info())
    }

    /// The context, for handles of their own.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.0.context
    }

    pub(crate) fn bind(&self) -> Result<()> {
        self.0.context.bind()
    }

    pub(crate) fn stream(&self) -> sys::CUstream {
        self.0.stream.handle
    }

    /// Submits an op's kernel.
    ///
    /// # Safety
    /// `args` point to values of the types that the entry point's signature lists, in its order; the device memory among them is live
    /// until the kernel has run, large enough for the shape that it is given, and written by nobody else meanwhile.
    pub(crate) unsafe fn launch(&self, entry: Entry, launch: Launch, args: &mut [*mut c_void]) -> Result<()> {
        let function = self.0.functions[entry as usize];
        // SAFETY: the caller's promise; the function belongs to the module held here.
        unsafe { self.launch_function(entry.name(), function, launch, args) }
    }

    /// Submits a kernel of another module of this device, which `name` is for errors.
    ///
    /// # Safety
    /// As for [`Device::launch`]; the function's module is live until the kernel has run.
    pub(crate) unsafe fn launch_function(
        &self,
        name: &'static str,
        function: sys::CUfunction,
        launch: Launch,
        args: &mut [*mut c_void],
    ) -> Result<()> {
        self.bind()?;
        let mut attribute = no_attribute();
        let config = launch.config(self.stream(), self.info().compute.0, &mut attribute);
        // SAFETY: the stream belongs to this context; the rest is the caller's promise.
        let code =
            unsafe { sys::cuLaunchKernelEx(&config, function, args.as_mut_ptr(), std::ptr::null_mut()) };
        check(name, code.result())
    }
}

/// Grid, block and dynamic shared memory of a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch {
    /// Blocks in x, y and z.
    pub(crate) grid: [u32; 3],
    /// Threads a block.
    pub(crate) threads: u32,
    /// Dynamic shared memory a block.
    pub(crate) shared_bytes: u32,
    /// When it may start, and how its blocks stand together.
    pub(crate) start: Start,
}

/// When a kernel may start.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start {
    /// While its predecessor still runs, from Hopper on: it waits for it itself (`await_previous`).
    Early,
    /// When its predecessor is done.
    After,
    /// When its predecessor is done, in clusters of so many blocks.
    Clusters(u32),
    /// When its predecessor is done, all blocks at once.
    Cooperative,
}

impl Launch {
    /// A grid without dynamic shared memory that may start early.
    pub(crate) fn new(grid: [u32; 3], threads: u32) -> Self {
        Self { grid, threads, shared_bytes: 0, start: Start::Early }
    }

    /// The launch attribute that says so, if one does.
    fn attribute(&self) -> Option<sys::CUlaunchAttribute> {
        let (id, value) = match self.start {
            Start::Early => (
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
            ),
            Start::After => return None,
            Start::Clusters(blocks) => (
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                sys::CUlaunchAttributeValue {
                    clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: blocks, y: 1, z: 1 },
                },
            ),
            Start::Cooperative => (
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
                sys::CUlaunchAttributeValue { cooperative: 1 },
            ),
        };
        Some(sys::CUlaunchAttribute { id, pad: [0; 4], value })
    }

    /// The driver's form of it, on `stream`, for a GPU of compute capability `major`; `attribute` is what it points to.
    pub(crate) fn config(
        &self,
        stream: sys::CUstream,
        major: u32,
        attribute: &mut [sys::CUlaunchAttribute; 1],
    ) -> sys::CUlaunchConfig {
        // Before Hopper, there is neither a cluster nor an early start.
        let known = major >= 9 || matches!(self.start, Start::Cooperative);
        let wanted = self.attribute().filter(|_| known);
        let count = u32::from(wanted.is_some());
        if let Some(wanted) = wanted {
            attribute[0] = wanted;
        }
        sys::CUlaunchConfig {
            gridDimX: self.grid[0],
            gridDimY: self.grid[1],
            gridDimZ: self.grid[2],
            blockDimX: self.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared_bytes,
            hStream: stream,
            attrs: attribute.as_mut_ptr(),
            numAttrs: count,
        }
    }
}

/// Room for a launch attribute.
pub(crate) fn no_attribute() -> [sys::CUlaunchAttribute; 1] {
    [sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_IGNORE,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { pad: [0; 64] },
    }]
}

/// Lets the kernels that need it have more than 48 KiB of dynamic shared memory, where the GPU has it for them.
fn allow_shared_memory(compute: (u32, u32), functions: &[sys::CUfunction]) -> Result<()> {
    for (entry, bytes) in product::large_shared(compute).into_iter().chain(attention::large_shared(compute)) {
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function belongs to the module just loaded.
        let code = unsafe { sys::cuFuncSetAttribute(functions[entry as usize], attribute, bytes as i32) };
        check(entry.name(), code.result())?;
    }
    Ok(())
}

/// Addresses of kernel arguments, in the order of the entry point's signature.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => { &mut [$((&raw const $argument).cast_mut().cast::<std::ffi::c_void>()),*] };
}
pub(crate) use arguments;

/// A GPU's primary context, retained until drop.
pub struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
    _line: Line,
}

impl Context {
    fn open(ordinal: usize) -> Result<Self> {
        let (number, count) = (ordinal, count()?);
        if number >= count {
            return Err(Error::NoDevice(format!(
                "there is no GPU {number}: the driver sees {count}, numbered from 0"
            )));
        }
        let device =
            check("cuDeviceGet", result::device::get(i32::try_from(ordinal).expect("a small number")))?;
        // SAFETY: the device was just named by the driver; the context is released in drop.
        let handle = check("cuDevicePrimaryCtxRetain", unsafe { result::primary_ctx::retain(device) })?;
        Ok(Self { device, handle, _line: Line::enter(Kind::Context, 0) })
    }

    /// Makes the context current in this thread, which every driver call relies on.
    pub(crate) fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained until drop.
        check("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.handle) })
    }

    fn attribute(&self, attribute: sys::CUdevice_attribute) -> Result<u32> {
        // SAFETY: the device was named by the driver.
        let value = unsafe { result::device::get_attribute(self.device, attribute) };
        check("cuDeviceGetAttribute", value).map(|value| u32::try_from(value).unwrap_or(0))
    }

    fn info(&self) -> Result<Info> {
        use sys::CUdevice_attribute as Attribute;
        let major = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let clock_khz = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
        let bus_bits = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?;
        Ok(Info {
            name: check("cuDeviceGetName", result::device::get_name(self.device))?,
            compute: (major, minor),
            multiprocessors: self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            // Two transfers a clock.
            memory_bandwidth: 2 * u64::from(clock_khz) * 1000 * u64::from(bus_bits / 8),
            shared_bytes_max: self
                .attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
                as usize,
            // SAFETY: the device was named by the driver.
            total_bytes: check("cuDeviceTotalMem", unsafe { result::device::total_mem(self.device) })?,
        })
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

/// A stream.
pub struct Stream {
    handle: sys::CUstream,
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
}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: loaded in `load`, unloaded once; its functions are used by nobody any more.
        let _ = unsafe { result::module::unload(self.handle) };
    }
}
