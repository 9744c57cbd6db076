//! One runner an op: builds the buffers from a case's operands, runs the verbs, and gives back what came out.

mod parts;

use touchstone_golden::Case;
use touchstone_runtime::Backend;
use touchstone_runtime::taps::Path;

use crate::error::{Error, Result};
use crate::operands::Operands;

/// How a case is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// The one verb of the op.
    Verb,
    /// LayerNorm of one row of each sequence, another for each: as the head reads the last positions.
    Strided,
    /// The product by the verb that keeps logits wide.
    Wide,
    /// A module or generation, free-running as fast as the backend can; only its result can be seen.
    Fused,
    /// A model, free-running, its sequences at different places and padded to one length.
    Ragged,
    /// A model fed token by token, each by a decode step, as fast as the backend can decode.
    Decode,
    /// Generation, or a model fed token by token, by what larger models are decoded by: spread over all of the device.
    Grid,
    /// The same, in shards over clusters of blocks.
    Shards,
    /// The same, step by step through the backend's fused verbs.
    Steps,
    /// A model fed token by token in many copies at once, as fast as the backend can decode a batch.
    Batch,
    /// A module, free-running through the plain verbs, every tap compared.
    Plain,
    /// A module through the plain verbs, every tap compared and then replaced by the golden values.
    Injected,
}

impl Mode {
    /// The name in reports; empty for the usual one.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Verb => "",
            Self::Strided => "strided",
            Self::Wide => "wide",
            Self::Fused => "fused",
            Self::Ragged => "ragged",
            Self::Decode => "decode",
            Self::Grid => "grid",
            Self::Shards => "shards",
            Self::Steps => "steps",
            Self::Batch => "batch",
            Self::Plain => "plain",
            Self::Injected => "injected",
        }
    }

    /// Whether it is a way of its own on a host, which has nothing that decodes but its fused verbs, a row like the other.
    #[must_use]
    pub fn differs_on_host(self) -> bool {
        !matches!(self, Self::Grid | Self::Shards | Self::Steps | Self::Batch)
    }

    /// The path of the backend that it takes.
    #[must_use]
    pub fn path(self) -> Path {
        match self {
            Self::Verb
            | Self::Strided
            | Self::Wide
            | Self::Fused
            | Self::Ragged
            | Self::Decode
            | Self::Batch => Path::Fastest,
            Self::Grid => Path::Grid,
            Self::Shards => Path::Shards,
            Self::Steps => Path::Steps,
            Self::Plain | Self::Injected => Path::Plain,
        }
    }
}

/// One output as ours: named as in the case, with the shape that the op has for its inputs.
#[derive(Clone, Debug)]
pub struct Produced {
    /// The output's name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values.
    pub values: Vec<f64>,
}

impl Produced {
    /// The only output of most ops.
    fn y(shape: &[usize], values: Vec<f64>) -> Vec<Self> {
        vec![Self { name: "y".into(), shape: shape.to_vec(), values }]
    }
}

/// Registers the ops: each is a file of this folder with `modes` and `run`.
macro_rules! ops {
    ($($op:ident)*) => {
        $(mod $op;)*

        /// Every op that has a runner.
        pub const OPS: &[&str] = &[$(stringify!($op)),*];

        /// The modes in which a case is checked. Errors: an unknown op.
        pub fn modes(case: &Case) -> Result<Vec<Mode>> {
            match case.op.as_str() {
                $(stringify!($op) => Ok($op::modes(case)),)*
                op => Err(Error::UnknownOp { path: case.path.clone(), op: op.into() }),
            }
        }

        /// Runs a case. Errors: an unknown op, operands that do not fit it, or the backend's own.
        pub fn run<B: Backend>(b: &mut B, operands: &Operands<'_>, mode: Mode) -> Result<Vec<Produced>> {
            match operands.case.op.as_str() {
                $(stringify!($op) => $op::run(b, operands, mode),)*
                op => Err(Error::UnknownOp { path: operands.case.path.clone(), op: op.into() }),
            }
        }
    };
}

ops! {
    add append attention block embedding gelu generate gpt layernorm linear mlp sample self_attention
}

/// The modes of a module or model: injected where the case has what that needs.
fn module_modes(case: &Case, fused: bool) -> Vec<Mode> {
    let injected = case.outputs().iter().any(|output| output.injected.is_some());
    let modes = [(Mode::Fused, fused), (Mode::Plain, true), (Mode::Injected, injected)];
    modes.into_iter().filter(|(_, wanted)| *wanted).map(|(mode, _)| mode).collect()
}

/// D = C / H. Errors: H does not divide C.
fn head_size(case: &Case, channels: usize, heads: usize) -> Result<usize> {
    if heads == 0 || !channels.is_multiple_of(heads) {
        return Err(case
            .invalid("config.heads", format!("is {heads}, which does not divide {channels} channels"))
            .into());
    }
    Ok(channels / heads)
}
