//! The driver's start and a GPU's context, made while the program does something else: they take longer than everything else at its start.

use std::env;
use std::thread::{self, JoinHandle};

use crate::context::{Context, device_number};
use crate::error::Result;

/// Keeps a GPU's context from the moment that it is there until drop, so that [`crate::Device::open`] finds it made.
pub struct WarmUp(Option<JoinHandle<Result<Context>>>);

impl WarmUp {
    /// Begins for GPU number `ordinal`. Where there is none, nothing happens: opening it will say so.
    #[must_use]
    pub fn begin(ordinal: usize) -> Self {
        ask_for_one_queue();
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

/// Has the driver make one hardware queue for kernels and one for each copy engine, where the user has not said how many: a device has one stream,
/// and of the 100 ms that a context takes, the eight and more queues that are usual take 40. To be called before the driver starts, by the
/// process's only thread; else, and where that cannot be told, nothing happens.
fn ask_for_one_queue() {
    let alone = std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1);
    for name in ["CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_DEVICE_MAX_COPY_CONNECTIONS"] {
        if alone && env::var_os(name).is_none() {
            // SAFETY: there is no other thread that could read the environment meanwhile.
            unsafe { env::set_var(name, "1") };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without this, the environment could be written while another thread reads it.
    #[test]
    fn beside_other_threads_the_environment_is_left_alone() {
        let queues = || env::var_os("CUDA_DEVICE_MAX_CONNECTIONS");
        let before = queues();
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let other = thread::spawn(move || wait.recv());
        ask_for_one_queue();
        drop(end);
        assert!(other.join().unwrap().is_err());
        assert_eq!(queues(), before);
    }
}
