//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use touchstone_functional_tests::Target;
use touchstone_runtime::device::DeviceChoice;

use crate::bench::BenchArgs;
use crate::exit::Outcome;

/// Checks a GPT runtime against recorded numbers of its reference.
#[derive(Debug, Parser)]
#[command(name = "touchstone", version, after_help = Outcome::HELP, max_term_width = 110)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run golden cases and judge every output by its error ratio to the reference
    #[command(after_help = Outcome::HELP)]
    Check(CheckArgs),
    /// Say what this machine has, and for each thing that is missing, the remedy
    #[command(after_help = Outcome::HELP)]
    Doctor(DoctorArgs),
    /// Measure how fast a model runs, after checking that its tokens are right; beside PyTorch with --peers
    #[command(after_help = Outcome::HELP)]
    Bench(BenchArgs),
}

/// Of `check`.
#[derive(Debug, ClapArgs)]
pub struct CheckArgs {
    /// Folders of golden cases, searched for case.json
    #[arg(required = true, value_name = "DIR")]
    pub dirs: Vec<PathBuf>,
    /// Where to run: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu", env = "TOUCHSTONE_DEVICE")]
    pub device: Device,
    /// Only in this precision: f64 is the CPU's oracle, bf16 runs on a GPU [default: all that the device has]
    #[arg(long)]
    pub dtype: Option<Dtype>,
    /// Folder of the models that cases name [default: models, in $TOUCHSTONE_ROOT or from the current folder upwards]
    #[arg(long, value_name = "DIR")]
    pub models: Option<PathBuf>,
    /// Print every figure of every output as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Of `doctor`.
#[derive(Debug, ClapArgs)]
pub struct DoctorArgs {
    /// Exit with 3 where no GPU can be used
    #[arg(long)]
    pub require_cuda: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The CPU.
    Cpu,
    /// The GPU of this ordinal.
    Cuda(usize),
}

/// `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
    /// bfloat16.
    Bf16,
}

impl FromStr for Device {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(DeviceChoice::Cpu) => Ok(Self::Cpu),
            Ok(DeviceChoice::Cuda(ordinal)) => Ok(Self::Cuda(ordinal)),
            // What was checked must not depend on what the machine has.
            Ok(DeviceChoice::Auto) | Err(_) => Err("expected cpu, cuda or cuda:N"),
        }
    }
}

impl CheckArgs {
    /// Whether a check on this target was asked for.
    pub fn wants(&self, target: Target) -> bool {
        let dtype = match target {
            Target::HostF32 | Target::CudaF32 => Dtype::F32,
            Target::HostF64 => Dtype::F64,
            Target::CudaBf16 => Dtype::Bf16,
        };
        target.is_cuda() == (self.device != Device::Cpu) && self.dtype.is_none_or(|wanted| wanted == dtype)
    }

    /// The GPU's number; the first where none was asked for.
    pub fn ordinal(&self) -> usize {
        match self.device {
            Device::Cpu => 0,
            Device::Cuda(ordinal) => ordinal,
        }
    }
}
