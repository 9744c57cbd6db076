//! What the machine has of what the GPU backend needs.

use cudarc::driver::{result, sys};

use crate::compile::{cache_directory, nvrtc_version};
use crate::context::count;
use crate::driver::check;
use crate::libraries::{DRIVER_REMEDY, driver_present};

/// Something needed, found or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// What was found, in words.
    Present(String),
    /// What is missing, and what to do about it.
    Missing {
        /// What.
        what: String,
        /// The remedy.
        remedy: String,
    },
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuInfo {
    /// Its name.
    pub name: String,
    /// Compute capability.
    pub compute: (u32, u32),
    /// Its memory.
    pub total_bytes: u64,
    /// What of it is free.
    pub free_bytes: u64,
}

/// The machine's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// libcuda and its version.
    pub driver: Finding,
    /// The GPUs, numbered as `cuda:N`.
    pub gpu: Vec<GpuInfo>,
    /// The run-time compiler and its version.
    pub nvrtc: Finding,
    /// The cubin cache.
    pub cache: Finding,
}

/// Looks the machine over. Never fails: what is not there is a finding.
#[must_use]
pub fn probe() -> Probe {
    let (driver, gpu) = if driver_present() {
        (driver_version(), (0..count().unwrap_or(0)).filter_map(gpu_info).collect())
    } else {
        (missing("the NVIDIA driver (libcuda)", DRIVER_REMEDY), Vec::new())
    };
    let nvrtc = match nvrtc_version() {
        Ok((major, minor)) => Finding::Present(format!("NVRTC {major}.{minor}")),
        Err(_) => missing("the run-time compiler (libnvrtc)", crate::libraries::NVRTC_REMEDY),
    };
    Probe { driver, gpu, nvrtc, cache: cache() }
}

fn missing(what: &str, remedy: &str) -> Finding {
    Finding::Missing { what: what.to_owned(), remedy: remedy.to_owned() }
}

fn driver_version() -> Finding {
    let mut version = 0;
    // SAFETY: libcuda is present; the pointer is to a live integer. Needs no cuInit.
    let code = unsafe { sys::cuDriverGetVersion(&mut version) };
    match check("cuDriverGetVersion", code.result()) {
        Ok(()) => Finding::Present(format!("driver for CUDA {}.{}", version / 1000, version % 1000 / 10)),
        Err(error) => missing(&error.to_string(), DRIVER_REMEDY),
    }
}

fn gpu_info(ordinal: usize) -> Option<GpuInfo> {
    let device = result::device::get(i32::try_from(ordinal).ok()?).ok()?;
    // SAFETY: the device was named by the driver; the context is released in the same block, after the one call that needs it.
    let (memory, compute) = unsafe {
        let context = result::primary_ctx::retain(device).ok()?;
        let memory = result::ctx::set_current(context).and_then(|()| result::mem_get_info());
        let attribute = |a| result::device::get_attribute(device, a).map(|v| u32::try_from(v).unwrap_or(0));
        let compute = [
            attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        ];
        let _ = result::primary_ctx::release(device);
        (memory.ok()?, compute)
    };
    let [Ok(major), Ok(minor)] = compute else { return None };
    Some(GpuInfo {
        name: result::device::get_name(device).ok()?,
        compute: (major, minor),
        total_bytes: memory.1 as u64,
        free_bytes: memory.0 as u64,
    })
}

fn cache() -> Finding {
    let remedy = "set TOUCHSTONE_CACHE to a folder that can be written; without one every start compiles the kernels anew";
    let Some(directory) = cache_directory() else { return missing("a place for compiled kernels", remedy) };
    let probe = directory.join(format!(".probe-{}", std::process::id()));
    let written = std::fs::create_dir_all(&directory).and_then(|()| std::fs::write(&probe, b"")).is_ok();
    let _ = std::fs::remove_file(&probe);
    if written {
        Finding::Present(directory.display().to_string())
    } else {
        missing(&format!("write access to {}", directory.display()), remedy)
    }
}
