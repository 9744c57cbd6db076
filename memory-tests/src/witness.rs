//! What can be asked about memory, and one reading of it all.

use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::UsedGpuMemory;
use serde::{Deserialize, Serialize};
use touchstone_kernels::Device;
use touchstone_kernels::ledger::{self, Kind, Snapshot};

use crate::allocator::{self, Live};

/// Who saw a leak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Witness {
    /// The kernels' ledger of handles.
    Ledger,
    /// `cuMemGetInfo`: the device's free memory, which other processes move too.
    Driver,
    /// NVML's figure for this process.
    Nvml,
    /// The counting allocator.
    Host,
}

/// What all witnesses said at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Handles of the driver.
    pub ledger: Snapshot,
    /// Host memory.
    pub host: Live,
    /// The device's free bytes; none without an open device.
    pub device_free_bytes: Option<u64>,
    /// The process's bytes on all devices; none where NVML does not say.
    pub nvml_bytes: Option<u64>,
}

/// The witnesses of this process.
pub struct Witnesses {
    device: Option<Device>,
    nvml: Option<Nvml>,
}

impl Witnesses {
    /// Those of the host alone; no GPU library is touched.
    #[must_use]
    pub fn host() -> Self {
        Self { device: None, nvml: None }
    }

    /// All of them. Without `device` the driver is not asked: `cuMemGetInfo` needs a context, and there is none then.
    #[must_use]
    pub fn all(device: Option<Device>) -> Self {
        Self { device, nvml: Nvml::init().ok() }
    }

    /// Reads everything.
    ///
    /// # Errors
    /// The driver's.
    pub fn read(&self) -> anyhow::Result<Reading> {
        let (ledger, host) = exact();
        let device_free_bytes = match &self.device {
            Some(device) => Some(device.memory()?.0 as u64),
            None => None,
        };
        let nvml_bytes = self.nvml.as_ref().and_then(|nvml| own_bytes(nvml, self.device.is_some()).ok());
        Ok(Reading { ledger, host, device_free_bytes, nvml_bytes })
    }
}

/// Reads the exact witnesses, which costs nothing.
#[must_use]
pub fn exact() -> (Snapshot, Live) {
    (ledger::snapshot(), allocator::live())
}

/// Bytes that NVML counts for this process, over all devices: the driver numbers them differently, and a scenario uses one only.
///
/// # Errors
/// Why NVML does not say: in a container it may list foreign process ids only. With `listed`, the process is known to hold a context,
/// so that a list without it is such a case; else it means 0 bytes.
fn own_bytes(nvml: &Nvml, listed: bool) -> Result<u64, String> {
    let text = |error: nvml_wrapper::error::NvmlError| error.to_string();
    let pid = std::process::id();
    let mut own = (!listed).then_some(0);
    for index in 0..nvml.device_count().map_err(text)? {
        let device = nvml.device_by_index(index).map_err(text)?;
        for process in device.running_compute_processes().map_err(text)? {
            match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) if process.pid == pid => *own.get_or_insert(0) += bytes,
                _ => {}
            }
        }
    }
    own.ok_or_else(|| format!("process {pid} holds a context and is not on NVML's list"))
}

/// Whether NVML speaks about this process, which holds a context.
///
/// # Errors
/// Why not.
pub fn nvml_speaks() -> Result<(), String> {
    let nvml = Nvml::init().map_err(|error| error.to_string())?;
    match own_bytes(&nvml, true)? {
        0 => Err("NVML counts 0 bytes for a process that holds a context".into()),
        _ => Ok(()),
    }
}

/// How the ledger changed, kind by kind, as `+1 Stream (0 bytes)`; empty where it did not.
#[must_use]
pub fn ledger_change(before: &Snapshot, after: &Snapshot) -> String {
    const KINDS: [Kind; 7] = [
        Kind::Context,
        Kind::Stream,
        Kind::Event,
        Kind::Module,
        Kind::Graph,
        Kind::DeviceMemory,
        Kind::PinnedMemory,
    ];
    let change = |kind: &Kind| {
        let (before, after) = (before.of(*kind), after.of(*kind));
        let handles = after.handles as i64 - before.handles as i64;
        let bytes = after.bytes as i64 - before.bytes as i64;
        (before != after).then(|| format!("{handles:+} {kind:?} ({bytes:+} bytes)"))
    };
    let changes: Vec<String> = KINDS.iter().filter_map(change).collect();
    match changes.is_empty() && before != after {
        true => format!("from {before} to {after}"),
        false => changes.join(", "),
    }
}
