//! Wrong on purpose: the host backend with exactly one defect each, to prove that the golden cases can say no.

mod attention;
mod backend;
mod scalar;
mod teeth;

pub use backend::Twin;
pub use teeth::{Bite, bite, control, suitable};

use touchstone_runtime::backend::CURSOR_LEN;

/// A mistake that has been made somewhere, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// GELU by its tanh approximation.
    TanhGelu,
    /// GELU by its sigmoid approximation.
    SigmoidGelu,
    /// A square weight read as `[I, O]`.
    TransposedWeight,
    /// A product without its bias.
    MissingBias,
    /// A product without its last column.
    LastInputDropped,
    /// Inputs of a product rounded to bf16 where float32 is due.
    Bf16Inputs,
    /// eps added to the standard deviation.
    EpsOutsideRoot,
    /// A constant of 1e-5 in place of the config's eps.
    ConstantEps,
    /// The variance divided by C − 1.
    UnbiasedVariance,
    /// The variance as E(x²) − E(x)² in float32.
    OnePassVariance,
    /// Position past + t + 1.
    PositionOffByOne,
    /// Positions that begin at 0 in every pass.
    PositionWithoutPast,
    /// q and k change places.
    SwappedQueryAndKey,
    /// The mask lets one future key through.
    SeesOneFutureKey,
    /// The mask hides the newest key.
    MissesOwnKey,
    /// exp without the maximum taken off.
    SoftmaxWithoutMaximum,
    /// Scores 1e-4 too large.
    ScaleSlightlyOff,
    /// The result written as `[B, H, T, D]`.
    HeadsNotMerged,
    /// Heads one row apart in the cache, not P rows.
    WrongHeadStride,
    /// With a past, the first new position is not written.
    StaleCacheRow,
    /// With a past, new positions begin one row too early.
    OverwrittenCacheRow,
    /// New rows read as `[B, H, T, D]`.
    HeadsAndTimeSwapped,
    /// One more token survives top-k.
    TopKOffByOne,
    /// Top-p keeps everything.
    TopPIgnored,
    /// Random numbers that are the same at every step.
    PhiloxWithoutStep,
    /// Random numbers without the seed's high word.
    PhiloxWithoutHighSeed,
    /// Every row picked by the first row's rule.
    RuleOfTheFirstRow,
    /// Every row drawn as the first row's pick.
    StepOfTheFirstRow,
}

/// The number of positions that this sequence has cached.
fn past(cursor: &[u32], sequence: usize) -> usize {
    cursor[sequence * CURSOR_LEN] as usize
}

/// What a defect breaks, so that the blame can be checked.
#[derive(Clone, Copy, Debug)]
pub struct Blame {
    /// The verb whose own cases must refuse it; no other verb's may.
    pub op: &'static str,
    /// The taps at which modules must refuse it, and at no other, when golden values are injected, by the last part of their paths.
    pub taps: &'static [&'static str],
}

impl Defect {
    /// All of them.
    pub const ALL: [Self; 28] = [
        Self::TanhGelu,
        Self::SigmoidGelu,
        Self::TransposedWeight,
        Self::MissingBias,
        Self::LastInputDropped,
        Self::Bf16Inputs,
        Self::EpsOutsideRoot,
        Self::ConstantEps,
        Self::UnbiasedVariance,
        Self::OnePassVariance,
        Self::PositionOffByOne,
        Self::PositionWithoutPast,
        Self::SwappedQueryAndKey,
        Self::SeesOneFutureKey,
        Self::MissesOwnKey,
        Self::SoftmaxWithoutMaximum,
        Self::ScaleSlightlyOff,
        Self::HeadsNotMerged,
        Self::WrongHeadStride,
        Self::StaleCacheRow,
        Self::OverwrittenCacheRow,
        Self::HeadsAndTimeSwapped,
        Self::TopKOffByOne,
        Self::TopPIgnored,
        Self::PhiloxWithoutStep,
        Self::PhiloxWithoutHighSeed,
        Self::RuleOfTheFirstRow,
        Self::StepOfTheFirstRow,
    ];

    /// Who is to blame for it.
    #[must_use]
    pub fn blame(self) -> Blame {
        let (op, taps): (_, &[_]) = match self {
            Self::TanhGelu | Self::SigmoidGelu => ("gelu", &["gelu"]),
            Self::TransposedWeight | Self::MissingBias | Self::LastInputDropped | Self::Bf16Inputs => {
                ("linear", &["q", "k", "v", "out", "up", "down"])
            }
            Self::EpsOutsideRoot | Self::ConstantEps | Self::UnbiasedVariance => {
                ("layernorm", &["ln1", "ln2", "final_norm"])
            }
            // These two show where numbers are extreme, which they are in the verbs' own cases alone.
            Self::OnePassVariance => ("layernorm", &[]),
            Self::SoftmaxWithoutMaximum => ("attention", &[]),
            Self::PositionOffByOne | Self::PositionWithoutPast => ("embedding", &["embedding"]),
            Self::SwappedQueryAndKey
            | Self::SeesOneFutureKey
            | Self::MissesOwnKey
            | Self::ScaleSlightlyOff
            | Self::HeadsNotMerged
            | Self::WrongHeadStride => ("attention", &["core"]),
            Self::StaleCacheRow | Self::OverwrittenCacheRow | Self::HeadsAndTimeSwapped => {
                ("append", &["core"])
            }
            Self::TopKOffByOne
            | Self::TopPIgnored
            | Self::PhiloxWithoutStep
            | Self::PhiloxWithoutHighSeed
            | Self::RuleOfTheFirstRow
            | Self::StepOfTheFirstRow => ("sample", &[]),
        };
        Blame { op, taps }
    }
}
