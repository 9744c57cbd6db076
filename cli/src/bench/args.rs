//! The command line of `bench`, and what of it can be refused before anything runs.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;
use touchstone_runtime::device::{DeviceChoice, DtypeChoice};
use touchstone_runtime::threads::COUNT_MAX;

use super::Stop;

/// Of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Folder of a model; may be repeated [default: models/shakespeare-char, unless there is a --config]
    #[arg(long, value_name = "DIR")]
    pub model: Vec<PathBuf>,
    /// A config.json to run with random weights; may be repeated
    #[arg(long, value_name = "FILE")]
    pub config: Vec<PathBuf>,
    /// Where to run: auto (the first GPU, or else the CPU), cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", env = "TOUCHSTONE_DEVICE")]
    pub device: DeviceChoice,
    /// Working precisions; auto is the one the weights are stored in. The CPU computes in f32
    #[arg(long, value_delimiter = ',', default_value = "auto", env = "TOUCHSTONE_DTYPE")]
    pub dtype: Vec<DtypeChoice>,
    /// Threads that share the CPU's work, ours and the peers' [default: one a processor]
    #[arg(long, value_name = "N", env = "TOUCHSTONE_THREADS", value_parser = clap::value_parser!(u16).range(1..=COUNT_MAX.into()))]
    pub threads: Option<u16>,
    /// What to measure
    #[arg(long, value_delimiter = ',', default_value = "decode,prefill")]
    pub measure: Vec<Measure>,
    /// Tokens of a timed generation, after a prompt of one [default: 200, or what the context holds]
    #[arg(long, value_name = "N")]
    pub new_tokens: Option<NonZeroUsize>,
    /// Timed runs of each measurement
    #[arg(long, value_name = "N", default_value = "10")]
    pub repeats: NonZeroUsize,
    /// Sequences at once, of --measure batch and handoffs
    #[arg(long, value_name = "B", value_delimiter = ',', default_value = "1,8,64")]
    pub batches: Vec<NonZeroUsize>,
    /// Time others beside decode, prefill and cold-start, by the programs in benches/peers of this repository
    #[arg(long)]
    pub peers: bool,
    /// Python with PyTorch, of --peers
    #[arg(long, value_name = "PATH", default_value = "python3", env = "TOUCHSTONE_PYTHON")]
    pub python: PathBuf,
    /// CUDA's compiler, which builds the peer of cold-start
    #[arg(long, value_name = "PATH", default_value = "nvcc", env = "TOUCHSTONE_NVCC")]
    pub nvcc: PathBuf,
    /// Modes of decode's peers, as decode.py calls them [default: eager; on a GPU eager,compiled]
    #[arg(long, value_name = "MODES", requires = "peers")]
    pub peer_modes: Option<String>,
    /// Print everything as one JSON object
    #[arg(long)]
    pub json: bool,
    /// Draw µs a token against the bytes that a token must read
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// A kind of measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// Generation from the cache, one sequence.
    Decode,
    /// The same, by stretches of the context.
    Context,
    /// Generation of several sequences at once.
    Batch,
    /// The pass over a prompt.
    Prefill,
    /// The prompt program, from its start to its first byte.
    ColdStart,
    /// Single verbs.
    Verbs,
    /// Where the time of a decoder goes, handoff by handoff, at each of --batches.
    Handoffs,
}

impl Measure {
    /// As on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

impl BenchArgs {
    /// Whether this was asked for.
    pub fn wants(&self, measure: Measure) -> bool {
        self.measure.contains(&measure)
    }

    /// Refuses options that cannot work together.
    ///
    /// # Errors
    /// The pair, as a usage error.
    pub fn check(&self) -> Result<(), Stop> {
        let refuse = |problem: &str| Err(Stop::unusable(problem));
        let decodes = self.wants(Measure::Decode);
        let has_peers = decodes || self.wants(Measure::Prefill) || self.wants(Measure::ColdStart);
        if self.peers && !has_peers {
            return refuse(
                "--peers stands beside --measure decode, prefill and cold-start, none of which was asked for",
            );
        }
        if self.svg.is_some() && !decodes {
            return refuse("--svg draws --measure decode, which was not asked for");
        }
        if self.peers && matches!(self.device, DeviceChoice::Cuda(1..)) {
            return refuse(
                "--peers runs on the first GPU, and --device asks for another: use CUDA_VISIBLE_DEVICES",
            );
        }
        if self.wants(Measure::ColdStart) && !self.config.is_empty() {
            return refuse(
                "--measure cold-start starts prompt, which needs a model's folder: --config has none",
            );
        }
        Ok(())
    }
}
