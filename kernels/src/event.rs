//! Points in a stream's time.

use cudarc::driver::{result, sys};

use crate::device::Device;
use crate::driver::check;
use crate::error::Result;
use crate::ledger::{Kind, Line};

/// An event that records the device's clock.
pub struct Event {
    handle: sys::CUevent,
    device: Device,
    _line: Line,
}

impl Event {
    /// An event, not recorded yet.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(device: &Device) -> Result<Self> {
        device.bind()?;
        let handle = check("cuEventCreate", result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT))?;
        Ok(Self { handle, device: device.clone(), _line: Line::enter(Kind::Event, 0) })
    }

    /// Marks this point of the device's stream.
    ///
    /// # Errors
    /// The driver's.
    pub fn record(&self) -> Result<()> {
        self.device.bind()?;
        // SAFETY: event and stream are live and of one context.
        check("cuEventRecord", unsafe { result::event::record(self.handle, self.device.stream()) })
    }

    /// Microseconds from `earlier` to this event; waits for both.
    ///
    /// # Errors
    /// The driver's, also for an event never recorded.
    pub fn microseconds_since(&self, earlier: &Event) -> Result<f64> {
        self.device.synchronize()?;
        let milliseconds =
            // SAFETY: both events are live.
            check("cuEventElapsedTime", unsafe { result::event::elapsed(earlier.handle, self.handle) })?;
        Ok(f64::from(milliseconds) * 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: created in `new`, destroyed once.
        let _ = unsafe { result::event::destroy(self.handle) };
    }
}
