//! The GPU backend: verbs as kernels, in float32 or bfloat16 with float32 sums.
//!
//! Fused verbs serve passes of few rows, where a launch costs more than its arithmetic; longer passes take the plain composition.

mod decoder;
mod memory;
mod verbs;

use touchstone_kernels as kernels;
pub use touchstone_kernels::{Finding, GpuInfo, Probe, probe};

use crate::error::{Error, Result};
use crate::taps::Taps;

/// A GPU as a [`crate::Backend`], in working precision `E`: f32 or [`half::bf16`].
pub struct Cuda<E: kernels::Element> {
    device: kernels::Device,
    taps: Taps,
    _precision: std::marker::PhantomData<E>,
}

impl<E: kernels::Element> Cuda<E> {
    /// Opens GPU number `ordinal` and loads the kernels for it.
    ///
    /// # Errors
    /// [`Error::NoDevice`] where there is none, [`Error::Kernel`] where its kernels cannot be compiled or loaded.
    pub fn open(ordinal: usize) -> Result<Self> {
        let device = kernels::Device::open(ordinal).map_err(Error::from)?;
        Ok(Self { device, taps: Taps::default(), _precision: std::marker::PhantomData })
    }

    /// The open device: its name, its memory, its clock.
    #[must_use]
    pub fn device(&self) -> &kernels::Device {
        &self.device
    }
}
