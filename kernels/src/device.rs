//! A GPU, opened: its context, its stream and its kernels.

use std::ffi::c_void;
use std::sync::Arc;
use std::thread;

use cudarc::driver::{result, sys};

use crate::compile::{Unit, architecture, cubin};
use crate::context::{Context, Module, Stream, compute_capability, device_number, info};
use crate::driver::check;
use crate::entry::Entry;
use crate::error::Result;
use crate::{attention, product, rows};

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
        let number = device_number(ordinal)?;
        let compute = compute_capability(number)?;
        let (context, beside) = thread::scope(|scope| {
            let beside = scope.spawn(move || (info(number), cubin(&architecture(compute), &Unit::ops())));
            (Context::retain(number), beside.join().expect("errors are results"))
        });
        let (context, (info, cubin)) = (Arc::new(context?), beside);
        let info = info?;
        let stream = Stream::new(&context)?;
        let module = Module::load(&context, &cubin?)?;
        let functions: Vec<_> =
            Entry::ALL.iter().map(|entry| module.function(entry.name())).collect::<Result<_>>()?;
        allow_shared_memory(&info, &functions)?;
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

    /// An op's kernel.
    pub(crate) fn function(&self, entry: Entry) -> sys::CUfunction {
        self.0.functions[entry as usize]
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
        let function = self.function(entry);
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
        let mut attribute = no_attributes();
        let config = launch.config(self.stream(), self.info().compute.0, &mut attribute);
        let code =
            // SAFETY: the stream belongs to this context; the rest is the caller's promise.
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
    /// The same, in clusters of so many blocks.
    EarlyClusters(u32),
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

    /// The launch attributes that say so.
    fn attributes(&self) -> impl Iterator<Item = sys::CUlaunchAttribute> {
        use sys::CUlaunchAttributeID as Id;
        let early = matches!(self.start, Start::Early | Start::EarlyClusters(_)).then_some((
            Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        ));
        let shape = match self.start {
            Start::Early | Start::After => None,
            Start::EarlyClusters(x) | Start::Clusters(x) => {
                let cluster = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y: 1, z: 1 };
                Some((
                    Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                    sys::CUlaunchAttributeValue { clusterDim: cluster },
                ))
            }
            Start::Cooperative => {
                Some((Id::CU_LAUNCH_ATTRIBUTE_COOPERATIVE, sys::CUlaunchAttributeValue { cooperative: 1 }))
            }
        };
        early.into_iter().chain(shape).map(|(id, value)| sys::CUlaunchAttribute { id, pad: [0; 4], value })
    }

    /// The driver's form of it, on `stream`, for a GPU of compute capability `major`; `attributes` is what it points to.
    pub(crate) fn config(
        &self,
        stream: sys::CUstream,
        major: u32,
        attributes: &mut [sys::CUlaunchAttribute; 2],
    ) -> sys::CUlaunchConfig {
        // Before Hopper, there is neither a cluster nor an early start.
        let known = major >= 9 || matches!(self.start, Start::Cooperative);
        let mut count = 0;
        for (to, wanted) in attributes.iter_mut().zip(self.attributes().filter(|_| known)) {
            *to = wanted;
            count += 1;
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
            attrs: attributes.as_mut_ptr(),
            numAttrs: count,
        }
    }
}

/// Room for launch attributes.
pub(crate) fn no_attributes() -> [sys::CUlaunchAttribute; 2] {
    [sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_IGNORE,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { pad: [0; 64] },
    }; 2]
}

/// Lets the kernels that need it have more than 48 KiB of dynamic shared memory, where the GPU has it for them.
fn allow_shared_memory(info: &Info, functions: &[sys::CUfunction]) -> Result<()> {
    let rows = rows::large_shared(info.compute, info.shared_bytes_max);
    let (product, attention) = (product::large_shared(info.compute), attention::large_shared(info.compute));
    for (entry, bytes) in rows.into_iter().chain(product).chain(attention) {
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
