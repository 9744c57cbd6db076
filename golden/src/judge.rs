//! The gate of `golden/README.md`: is ours as good as the reference?

use std::fmt;

use crate::case::{Output, Rule};
use crate::manifest::Dtype;
use crate::statistics::{largest, ratio, rms, rms_by_channel};

/// How much larger than the reference's our rms error may be, over the tensor and (give or take chance) in every channel.
pub const RMS_RATIO_MAX: f64 = 2.0;
/// How much larger than the reference's our largest error may be.
pub const LARGEST_RATIO_MAX: f64 = 5.0;
/// How far from the truth the float64 oracle may be: mean square error over mean square.
pub const ORACLE_NMSE_MAX: f64 = 1e-24;
/// Leads below this are ties: float32 may choose either token.
pub const NEAR_TIE_MARGIN: f64 = 1e-4;

/// What is compared with the reference.
#[derive(Clone, Copy, Debug)]
pub struct Ours<'a> {
    /// The shape that the op has for its inputs.
    pub shape: &'a [usize],
    /// The values, row-major.
    pub values: &'a [f64],
}

/// What ours is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standard {
    /// The gate: hardly worse than the reference.
    Reference,
    /// The float64 backend: nearly equal to the truth.
    Oracle,
}

/// Which of an output's truths applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feed {
    /// Everything before this output was ours, too.
    FreeRunning,
    /// What this output was computed from was replaced by the reference's values.
    Injected,
}

/// The result of a comparison. Figures that a rule does not have are 1 (ratios) or 0 (nmse) where it passes, infinite where it fails.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// E(ours) / E(reference) over the tensor; 1 is as accurate as the reference.
    pub ratio: f64,
    /// The channel with the largest ratio, and that ratio.
    pub worst_channel: Option<(usize, f64)>,
    /// The ratio of the largest errors.
    pub max_ratio: f64,
    /// Where ours is farthest from the truth (from the reference where there is no truth).
    pub worst: Option<Worst>,
    /// Mean square error to the truth over the truth's mean square.
    pub nmse: f64,
    /// Greedy choices that differ and may: row and step.
    pub near_ties: Vec<(usize, usize)>,
    /// Whether ours is good enough.
    pub verdict: Verdict,
}

/// One element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Worst {
    /// Its index in the flat tensor.
    pub element: usize,
    /// Our value.
    pub ours: f64,
    /// The reference's.
    pub reference: f64,
    /// The float64 reference's.
    pub truth: Option<f64>,
}

/// Pass, or why not.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Good enough.
    Pass,
    /// Not good enough.
    Fail(String),
}

impl Verdict {
    /// Whether it is [`Verdict::Pass`].
    #[must_use]
    pub fn passed(&self) -> bool {
        *self == Self::Pass
    }
}

impl fmt::Display for Worst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "element {}: ours {:e}, reference {:e}", self.element, self.ours, self.reference)?;
        self.truth.map_or(Ok(()), |truth| write!(f, ", truth {truth:e}"))
    }
}

/// Compares ours with one output of a case, by the output's rule.
#[must_use]
pub fn judge(ours: Ours<'_>, output: &Output, feed: Feed, standard: Standard) -> Comparison {
    let truth = match feed {
        Feed::FreeRunning => output.truth.as_deref(),
        Feed::Injected => output.injected.as_deref(),
    };
    let reference = &output.reference;
    if ours.shape != reference.shape {
        return fail(format!("has shape {:?}, expected {:?}", ours.shape, reference.shape));
    }
    if ours.values.len() != reference.values.len() {
        return fail(format!("has {} values, expected {}", ours.values.len(), reference.values.len()));
    }
    // First of all: every comparison with NaN is false, so that a later check could let it through.
    if let Some(element) = ours.values.iter().position(|value| !value.is_finite()) {
        let reason = format!("is {} at element {element}", ours.values[element]);
        return Comparison {
            worst: Some(at(element, ours.values, &reference.values, truth)),
            ..fail(reason)
        };
    }
    for (values, name) in [(Some(reference.values.as_slice()), "reference"), (truth, "truth")] {
        if values.is_some_and(|values| !values.iter().all(|value| value.is_finite())) {
            return fail(format!("cannot be judged: the {name} is not finite"));
        }
    }
    match (&output.rule, truth, standard) {
        (Rule::Exact, ..) => exact(ours.values, &reference.values),
        (Rule::Greedy { margins }, ..) => {
            greedy(ours.values, &reference.values, margins, reference.channels())
        }
        (Rule::Gate, None, _) => fail("cannot be judged: the case holds no truth for it".into()),
        (Rule::Gate, Some(truth), _) if truth.len() != ours.values.len() => {
            fail(format!("cannot be judged: the truth has {} values", truth.len()))
        }
        (Rule::Gate, Some(truth), Standard::Reference) => {
            gate(ours.values, &reference.values, truth, reference.channels(), reference.dtype)
        }
        (Rule::Gate, Some(truth), Standard::Oracle) => oracle(ours.values, &reference.values, truth),
    }
}

/// A failure without figures.
fn fail(reason: String) -> Comparison {
    Comparison {
        ratio: f64::INFINITY,
        worst_channel: None,
        max_ratio: f64::INFINITY,
        worst: None,
        nmse: f64::INFINITY,
        near_ties: Vec::new(),
        verdict: Verdict::Fail(reason),
    }
}

/// A pass of a rule that has no figures.
fn pass() -> Comparison {
    Comparison {
        ratio: 1.0,
        worst_channel: None,
        max_ratio: 1.0,
        worst: None,
        nmse: 0.0,
        near_ties: Vec::new(),
        verdict: Verdict::Pass,
    }
}

fn at(element: usize, ours: &[f64], reference: &[f64], truth: Option<&[f64]>) -> Worst {
    let truth = truth.and_then(|truth| truth.get(element).copied());
    Worst { element, ours: ours[element], reference: reference[element], truth }
}

fn gate(ours: &[f64], reference: &[f64], truth: &[f64], channels: usize, dtype: Dtype) -> Comparison {
    let unit = dtype.rounding();
    let errors = |x: &[f64]| -> Vec<f64> { x.iter().zip(truth).map(|(x, t)| x - t).collect() };
    let (our_errors, reference_errors) = (errors(ours), errors(reference));

    let (signal, noise) = (rms(truth.iter().copied()), rms(reference_errors.iter().copied()));
    let our_noise = rms(our_errors.iter().copied());
    let floor = unit * signal;
    let tensor_ratio = ratio(our_noise.max(floor), noise.max(floor));

    let noise_to_signal = if signal > 0.0 { noise / signal } else { 0.0 };
    let columns = rms_by_channel(&our_errors, channels)
        .into_iter()
        .zip(rms_by_channel(&reference_errors, channels))
        .zip(rms_by_channel(truth, channels));
    let channel_ratios = columns.map(|((ours, reference), signal)| {
        let floor = unit * signal;
        ratio(ours.max(floor), reference.max(noise).max(noise_to_signal * signal).max(floor))
    });
    let (channel, channel_ratio) = largest(channel_ratios);
    let channel_ratio_max = channel_ratio_max(truth.len() / channels, channels);

    let floor = unit * largest(truth.iter().copied()).1;
    let (element, our_largest) = largest(our_errors.iter().copied());
    let reference_largest = largest(reference_errors.iter().copied()).1;
    let max_ratio = ratio(our_largest.max(floor), reference_largest.max(floor));

    let verdict = if tensor_ratio > RMS_RATIO_MAX {
        Verdict::Fail(format!("error ratio {tensor_ratio:.3}, allowed {RMS_RATIO_MAX}"))
    } else if channel_ratio > channel_ratio_max {
        Verdict::Fail(format!(
            "error ratio {channel_ratio:.3} in channel {channel}, allowed {channel_ratio_max:.3}"
        ))
    } else if max_ratio > LARGEST_RATIO_MAX {
        Verdict::Fail(format!(
            "largest-error ratio {max_ratio:.3} at element {element}, allowed {LARGEST_RATIO_MAX}"
        ))
    } else {
        Verdict::Pass
    };
    Comparison {
        ratio: tensor_ratio,
        worst_channel: Some((channel, channel_ratio)),
        max_ratio,
        worst: Some(at(element, ours, reference, Some(truth))),
        nmse: ratio_to_signal(our_noise, signal).powi(2),
        near_ties: Vec::new(),
        verdict,
    }
}

/// The limit for the worst of `channels` samples of `rows` errors each.
///
/// The rms of n normal errors exceeds its expectation by the factor 1 + sqrt(2 x / n) with a probability of at most exp(−x) (Laurent and
/// Massart, 2000); for one among C channels x is ln C.
fn channel_ratio_max(rows: usize, channels: usize) -> f64 {
    RMS_RATIO_MAX * (1.0 + (2.0 * (channels as f64).ln() / rows as f64).sqrt())
}

fn oracle(ours: &[f64], reference: &[f64], truth: &[f64]) -> Comparison {
    let errors = ours.iter().zip(truth).map(|(x, t)| x - t);
    let nmse = ratio_to_signal(rms(errors.clone()), rms(truth.iter().copied())).powi(2);
    let (element, _) = largest(errors);
    let verdict = if nmse <= ORACLE_NMSE_MAX {
        Verdict::Pass
    } else {
        Verdict::Fail(format!("NMSE {nmse:.3e} to the truth, allowed {ORACLE_NMSE_MAX:e}"))
    };
    let worst = Some(at(element, ours, reference, Some(truth)));
    Comparison { ratio: f64::NAN, max_ratio: f64::NAN, worst, nmse, verdict, ..pass() }
}

/// noise / signal, 0 where there is no noise.
fn ratio_to_signal(noise: f64, signal: f64) -> f64 {
    if noise == 0.0 { 0.0 } else { noise / signal }
}

fn exact(ours: &[f64], reference: &[f64]) -> Comparison {
    // As bits: 0.0 == -0.0, and pure data movement must not turn one into the other.
    match ours.iter().zip(reference).position(|(a, b)| a.to_bits() != b.to_bits()) {
        None => pass(),
        Some(element) => {
            let worst = at(element, ours, reference, None);
            Comparison {
                worst: Some(worst),
                ..fail(format!("differs at element {element}, expected equal to the bit"))
            }
        }
    }
}

fn greedy(ours: &[f64], reference: &[f64], margins: &[f64], steps: usize) -> Comparison {
    let mut near_ties = Vec::new();
    let rows = ours.chunks(steps).zip(reference.chunks(steps)).zip(margins.chunks(steps));
    for (row, ((ours_row, reference_row), margins)) in rows.enumerate() {
        let Some(step) = ours_row.iter().zip(reference_row).position(|(a, b)| a != b) else { continue };
        // Written so that a margin of NaN is no tie.
        if margins[step] < NEAR_TIE_MARGIN {
            // From here on the two texts are different, and there is nothing to compare.
            near_ties.push((row, step));
            continue;
        }
        let reason =
            format!("row {row} takes another token at step {step}, where the lead was {:.3e}", margins[step]);
        return Comparison { worst: Some(at(row * steps + step, ours, reference, None)), ..fail(reason) };
    }
    Comparison { near_ties, ..pass() }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
