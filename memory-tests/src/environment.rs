//! What this machine has of what the suite can use.

use serde::{Deserialize, Serialize};
use touchstone_kernels::{Device, Error};

use crate::witness::nvml_speaks;

/// A GPU that scenarios run on, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gpu {
    /// Its name.
    Present(String),
    /// No driver or no GPU: a normal machine.
    Absent(String),
    /// There is one, and it cannot be opened: its scenarios run, and fail.
    Broken(String),
}

/// What a child found; a child, because the parent must hold no context of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// GPU 0.
    pub gpu: Gpu,
    /// Why NVML does not speak about a process that holds a context; none where it does.
    pub nvml_silent: Option<String>,
}

impl Environment {
    /// Looks.
    #[must_use]
    pub fn find() -> Self {
        let device = match Device::open(0) {
            Ok(device) => device,
            Err(error) => {
                let nvml_silent = Some("no context is open".to_owned());
                let gpu = match error {
                    Error::NoDevice(why) => Gpu::Absent(why),
                    other => Gpu::Broken(other.to_string()),
                };
                return Self { gpu, nvml_silent };
            }
        };
        Self { gpu: Gpu::Present(device.info().name.clone()), nvml_silent: nvml_speaks().err() }
    }

    /// Why GPU scenarios cannot be run; none where they can.
    #[must_use]
    pub fn no_gpu(&self) -> Option<&str> {
        match &self.gpu {
            Gpu::Absent(why) => Some(why),
            Gpu::Present(_) | Gpu::Broken(_) => None,
        }
    }
}

/// Whether the environment variable `name` is set to 1: then what it names must be there.
#[must_use]
pub fn required(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| value == "1")
}
