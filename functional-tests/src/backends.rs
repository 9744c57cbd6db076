//! The places where cases are checked, and which of them this machine has.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use half::bf16;
use touchstone_golden::CaseDtype;
use touchstone_runtime::{Backend, Cuda, Error as RuntimeError, Host};

use crate::check::{Check, Row, check};
use crate::error::{Error, Result};

/// A backend in a precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// The host, float32.
    HostF32,
    /// The host, float64: the oracle, held to the truth itself.
    HostF64,
    /// The GPU, float32.
    CudaF32,
    /// The GPU, bfloat16.
    CudaBf16,
}

impl Target {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::HostF32, Self::HostF64, Self::CudaF32, Self::CudaBf16];

    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::HostF32 => "host-f32",
            Self::HostF64 => "host-f64",
            Self::CudaF32 => "cuda-f32",
            Self::CudaBf16 => "cuda-bf16",
        }
    }

    /// Whether cases of this precision are checked here. The oracle takes all: the truth of a bf16 case is float64, too.
    #[must_use]
    pub fn takes(self, dtype: CaseDtype) -> bool {
        match self {
            Self::HostF32 | Self::CudaF32 => dtype == CaseDtype::F32,
            Self::HostF64 => true,
            Self::CudaBf16 => dtype == CaseDtype::Bf16,
        }
    }

    /// Whether it needs a GPU.
    #[must_use]
    pub fn is_cuda(self) -> bool {
        matches!(self, Self::CudaF32 | Self::CudaBf16)
    }
}

/// The backends of this machine. A GPU is opened at its first check, once a precision, and closed when this is dropped.
pub struct Backends {
    models: PathBuf,
    cuda_f32: Device,
    cuda_bf16: Device,
}

impl Backends {
    /// `models`: the folder of the committed models; `ordinal`: the GPU.
    #[must_use]
    pub fn new(models: &Path, ordinal: usize) -> Self {
        // One check at a time on the GPU, so that neither the memory nor a fault of one is the other's.
        let turn = Arc::default();
        Self {
            models: models.into(),
            cuda_f32: Device::new(Target::CudaF32, models, Arc::clone(&turn), move || {
                Cuda::<f32>::open(ordinal)
            }),
            cuda_bf16: Device::new(Target::CudaBf16, models, turn, move || Cuda::<bf16>::open(ordinal)),
        }
    }

    /// Runs a check, see [`crate::check()`].
    ///
    /// # Errors
    /// [`RuntimeError::NoDevice`] where the machine lacks the backend, and those of [`crate::check()`].
    pub fn check(&self, of: &Check) -> Result<Vec<Row>> {
        let Check { case, target, mode } = of;
        match target {
            Target::HostF32 => check(&mut Host::<f32>::new(), case, &self.models, *target, *mode),
            Target::HostF64 => check(&mut Host::<f64>::new(), case, &self.models, *target, *mode),
            Target::CudaF32 => self.cuda_f32.check(of),
            Target::CudaBf16 => self.cuda_bf16.check(of),
        }
    }
}

/// A GPU backend on a thread of its own: backends hold listeners that must not change threads, and one opened backend serves all checks.
struct Device {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// A check, and where its answer goes.
type Job = (Check, mpsc::Sender<Result<Vec<Row>>>);

impl Device {
    fn new<B: Backend>(
        target: Target,
        models: &Path,
        turn: Arc<Mutex<()>>,
        open: impl Fn() -> touchstone_runtime::Result<B> + Send + 'static,
    ) -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let models = models.to_owned();
        let thread = std::thread::spawn(move || {
            let mut opened = None;
            for (Check { case, mode, .. }, answer) in queue {
                let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
                let backend = opened.get_or_insert_with(&open);
                let result = match backend {
                    Ok(b) => check(b, &case, &models, target, mode),
                    Err(error) => Err(unopened(error)),
                };
                // Nobody waits any more where the run was abandoned.
                let _ = answer.send(result);
            }
        });
        Self { jobs: Some(jobs), thread: Some(thread) }
    }

    fn check(&self, of: &Check) -> Result<Vec<Row>> {
        let (answer, result) = mpsc::channel();
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send((of.clone(), answer)).is_ok());
        let lost = || Error::Panicked("the GPU's thread has ended".into());
        if sent { result.recv().unwrap_or_else(|_| Err(lost())) } else { Err(lost()) }
    }
}

impl Drop for Device {
    /// Closes the GPU and waits for that, so that a leak checker sees everything freed.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has already been answered to those who waited.
            let _ = thread.join();
        }
    }
}

/// The error of opening, once more: it is needed for every check, and cannot be cloned.
fn unopened(error: &RuntimeError) -> Error {
    match error {
        RuntimeError::NoDevice(why) => Error::Runtime(RuntimeError::NoDevice(why.clone())),
        other => Error::Unopened(other.to_string()),
    }
}
