//! The driver's start and a GPU's context, made while the program does something else: they take longer than everything else at its start.

use std::thread::{self, JoinHandle};

use crate::context::{Context, device_number};
use crate::error::Result;

/// Keeps a GPU's context from the moment that it is there until drop, so that [`crate::Device::open`] finds it made.
pub struct WarmUp(Option<JoinHandle<Result<Context>>>);

impl WarmUp {
    /// Begins for GPU number `ordinal`. Where there is none, nothing happens: opening it will say so.
    #[must_use]
    pub fn begin(ordinal: usize) -> Self {
        Self(thread::Builder::new().spawn(move || Context::retain(device_number(ordinal)?)).ok())
    }
}

impl Drop for WarmUp {
    /// Waits: a process must not end while its driver starts.
    fn drop(&mut self) {
        if let Some(context) = self.0.take() {
            let _ = context.join();
        }
    }
}
