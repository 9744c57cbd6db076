//! Where a program runs a model: the choice of a device, and what a device tells about itself.

use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::ValueEnum;
pub use touchstone_kernels::Handoff;
use touchstone_kernels::WarmUp;

use crate::config::StoredDtype;
use crate::threads::{pieces, share};
use crate::{Backend, Cuda, Error, Host, Result, generate};

/// `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU, or else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this ordinal.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|ordinal| ordinal.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| "expected auto, cpu, cuda or cuda:N".to_owned()),
        }
    }
}

impl DeviceChoice {
    /// Begins to wake the GPU that may be chosen, which takes some tenths of a second; hold the result until the device is open.
    #[must_use]
    pub fn warm_up(self) -> Option<WarmUp> {
        match self {
            Self::Auto => Some(WarmUp::begin(0)),
            Self::Cpu => None,
            Self::Cuda(ordinal) => Some(WarmUp::begin(ordinal)),
        }
    }
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DtypeChoice {
    /// As stored.
    Auto,
    /// float32.
    F32,
    /// bfloat16.
    Bf16,
}

/// A backend as a program needs it.
pub trait Device: Backend {
    /// `cpu` or `cuda`.
    const KIND: &'static str;
    /// Decode steps to keep under way.
    const LOOKAHEAD: usize;

    /// Bytes of a matrix's element, for a checkpoint of this dtype.
    fn weight_bytes(&self, stored: StoredDtype) -> usize;

    /// The most bytes that the device held at once so far, where the backend counts them.
    fn peak_bytes(&self) -> Option<u64>;

    /// Bytes a second that the device can read, judged for a working set of this many bytes.
    fn bandwidth(&self, working_set_bytes: usize) -> Option<f64>;

    /// Where the cycles of a decoder went that was made to read the clock ([`crate::taps::Taps::set_clocked`]), if it can. Errors: the device
    /// failed.
    fn handoffs(decoder: &Self::Decoder) -> Result<Vec<Handoff>>;
}

impl Device for Host<f32> {
    const KIND: &'static str = "cpu";
    /// The host computes while it is called: waiting steps would only hold back the text.
    const LOOKAHEAD: usize = 1;

    /// The host keeps bfloat16 matrices as they are and widens what it reads.
    fn weight_bytes(&self, stored: StoredDtype) -> usize {
        match stored {
            StoredDtype::Float32 => 4,
            StoredDtype::Bfloat16 => 2,
        }
    }

    fn peak_bytes(&self) -> Option<u64> {
        None
    }

    fn bandwidth(&self, working_set_bytes: usize) -> Option<f64> {
        Some(measure_read_bandwidth(working_set_bytes))
    }

    fn handoffs(decoder: &Self::Decoder) -> Result<Vec<Handoff>> {
        match *decoder {}
    }
}

impl<E: touchstone_kernels::Element> Device for Cuda<E>
where
    Self: Backend<Decoder = touchstone_kernels::Decoder<E>>,
{
    const KIND: &'static str = "cuda";
    const LOOKAHEAD: usize = generate::LOOKAHEAD;

    fn weight_bytes(&self, _stored: StoredDtype) -> usize {
        self.precision().working_bytes
    }

    fn peak_bytes(&self) -> Option<u64> {
        Some(touchstone_kernels::ledger::device_bytes_peak() as u64)
    }

    fn bandwidth(&self, _working_set_bytes: usize) -> Option<f64> {
        let bytes_per_s = self.device().info().memory_bandwidth;
        (bytes_per_s > 0).then_some(bytes_per_s as f64)
    }

    fn handoffs(decoder: &Self::Decoder) -> Result<Vec<Handoff>> {
        Ok(decoder.handoffs()?)
    }
}

/// What runs once a device is chosen.
pub trait Job {
    /// Its result.
    type Output;

    /// Runs on this device; `choice` says which it is, and why.
    fn run<D: Device>(self, device: D, choice: &str) -> Self::Output;
}

/// Opens the device asked for and runs the job on it, in the precision asked for or the one that the weights are stored in.
///
/// # Errors
/// [`Error::NoDevice`] where a GPU was asked for and there is none, [`Error::Kernel`] where there is one and it cannot be used,
/// [`Error::Argument`] where the CPU is asked for bf16.
pub fn dispatch<J: Job>(
    job: J,
    device: DeviceChoice,
    dtype: DtypeChoice,
    stored: StoredDtype,
) -> Result<J::Output> {
    let as_stored = dtype == DtypeChoice::Auto && stored == StoredDtype::Bfloat16;
    let bf16 = as_stored || dtype == DtypeChoice::Bf16;
    let why = match device {
        DeviceChoice::Cuda(ordinal) => return Ok(Gpu::open(ordinal, bf16)?.run(job, ordinal, "as asked")),
        DeviceChoice::Auto => match Gpu::open(0, bf16) {
            Ok(gpu) => return Ok(gpu.run(job, 0, "the first GPU")),
            Err(Error::NoDevice(why)) => format!("no GPU: {why}"),
            Err(error) => return Err(error),
        },
        DeviceChoice::Cpu => "as asked".to_owned(),
    };
    if dtype == DtypeChoice::Bf16 {
        let problem = format!("is bf16, expected f32 or auto on the CPU ({why})");
        return Err(Error::Argument { name: "dtype", problem });
    }
    Ok(job.run(Host::<f32>::new(), &format!("cpu, f32 ({why})")))
}

/// The least time in which a device that reads `bytes_per_s` can read `bytes`, as a share of the `us` microseconds taken.
#[must_use]
pub fn bandwidth_share(bytes: usize, bytes_per_s: f64, us: f64) -> f64 {
    bytes as f64 / bytes_per_s / (us * 1e-6)
}

/// An open GPU of either precision.
enum Gpu {
    F32(Cuda<f32>),
    Bf16(Cuda<half::bf16>),
}

impl Gpu {
    fn open(ordinal: usize, bf16: bool) -> Result<Self> {
        Ok(if bf16 { Self::Bf16(Cuda::open(ordinal)?) } else { Self::F32(Cuda::open(ordinal)?) })
    }

    fn run<J: Job>(self, job: J, ordinal: usize, why: &str) -> J::Output {
        let choice = |name: &str, dtype| format!("cuda:{ordinal}, {name}, {dtype} ({why})");
        match self {
            Self::F32(gpu) => {
                let choice = choice(&gpu.device().info().name, "f32");
                job.run(gpu, &choice)
            }
            Self::Bf16(gpu) => {
                let choice = choice(&gpu.device().info().name, "bf16");
                job.run(gpu, &choice)
            }
        }
    }
}

/// Reads a buffer of `bytes` over and over, shared among threads as a model's weights are: the best pass counts. A buffer of the
/// model's own size, because a small model lives in the CPU's caches; up to [`BUFFER_BYTES_MAX`].
fn measure_read_bandwidth(bytes: usize) -> f64 {
    let arch = pulp::Arch::new();
    let mut buffer = vec![1u64; (bytes.min(BUFFER_BYTES_MAX) / size_of::<u64>()).max(1)];
    let bytes = size_of_val(&buffer[..]);
    let best = best_of(|| {
        share([&mut buffer], 64, pieces(bytes), &|_, [chunk]| {
            std::hint::black_box(arch.dispatch(|| sum(chunk)));
        });
    });
    bytes as f64 / best.as_secs_f64()
}

/// Σ x, read as eight streams side by side, as a product's tile of weights is: one stream does not keep the memory busy.
#[inline(always)]
fn sum(x: &[u64]) -> u64 {
    const STREAMS: usize = 8;
    let (lines, _) = x.as_chunks::<8>();
    let each = lines.len() / STREAMS;
    let mut sums = [[0u64; 8]; STREAMS];
    for i in 0..each {
        for (stream, sums) in sums.iter_mut().enumerate() {
            for (sum, x) in sums.iter_mut().zip(lines[stream * each + i]) {
                *sum = sum.wrapping_add(x);
            }
        }
    }
    sums.as_flattened().iter().sum()
}

/// More than any CPU caches: a larger buffer is not read at another speed.
const BUFFER_BYTES_MAX: usize = 1 << 30;

/// The shortest pass within a twentieth of a second, and of three at least, since the first meets cold pages.
fn best_of(mut pass: impl FnMut()) -> Duration {
    let began = Instant::now();
    let mut times = Vec::new();
    while times.len() < 3 || began.elapsed() < Duration::from_millis(50) {
        let began = Instant::now();
        pass();
        times.push(began.elapsed());
    }
    times.into_iter().min().unwrap_or_default()
}
