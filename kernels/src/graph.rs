//! A recorded sequence of launches that is replayed with one call.

use cudarc::driver::{result, sys};

use crate::device::Device;
use crate::driver::check;
use crate::error::Result;
use crate::ledger::{Kind, Line};

/// An instantiated CUDA graph. Its kernels hold the addresses that they were recorded with: the buffers must outlive it.
pub struct Graph {
    template: sys::CUgraph,
    handle: sys::CUgraphExec,
    device: Device,
    _line: Line,
}

// SAFETY: handles of the driver are valid in every thread, and a graph is launched through `&mut self` only.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `body` submits to the device's stream, without running it.
    ///
    /// # Errors
    /// Those of `body`, and the driver's.
    pub fn record<E: From<crate::Error>>(
        device: &Device,
        body: impl FnOnce() -> Result<(), E>,
    ) -> Result<Self, E> {
        device.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is live; capture ends with `Capture`, on every path.
        check("cuStreamBeginCapture", unsafe { result::stream::begin_capture(device.stream(), mode) })?;
        let capture = Capture { device, ended: false };
        body()?;
        Ok(Self::instantiate(device, capture.end()?)?)
    }

    fn instantiate(device: &Device, template: sys::CUgraph) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the template is a graph that the driver just made; on failure it is destroyed here, else in drop.
        unsafe {
            let made = sys::cuGraphInstantiateWithFlags(&mut handle, template, 0).result();
            if let Err(error) = check("cuGraphInstantiate", made) {
                let _ = result::graph::destroy(template);
                return Err(error);
            }
        }
        Ok(Self { template, handle, device: device.clone(), _line: Line::enter(Kind::Graph, 0) })
    }

    /// Runs the recorded sequence, behind everything submitted before.
    ///
    /// # Errors
    /// The driver's.
    pub fn launch(&mut self) -> Result<()> {
        self.device.bind()?;
        // SAFETY: graph and stream are live; the recorded buffers are kept by whoever recorded them (see the type).
        check("cuGraphLaunch", unsafe { result::graph::launch(self.handle, self.device.stream()) })
    }
}

/// A capture in progress. It ends on drop too, also while a panic unwinds: a stream left in capture refuses everything.
struct Capture<'a> {
    device: &'a Device,
    ended: bool,
}

impl Capture<'_> {
    fn end(mut self) -> Result<sys::CUgraph> {
        self.ended = true;
        // SAFETY: capture of this stream began in `record`, and ends once.
        check("cuStreamEndCapture", unsafe { result::stream::end_capture(self.device.stream()) })
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let _ = self.device.bind();
        // SAFETY: as in `end`; what was captured so far is a graph of its own, destroyed once.
        unsafe {
            if let Ok(template) = result::stream::end_capture(self.device.stream())
                && !template.is_null()
            {
                let _ = result::graph::destroy(template);
            }
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.device.synchronize();
        // SAFETY: both were made in `instantiate` and are destroyed once, after the last launch has run.
        unsafe {
            let _ = result::graph::exec_destroy(self.handle);
            let _ = result::graph::destroy(self.template);
        }
    }
}
