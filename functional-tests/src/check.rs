//! One check: a case on a backend in a mode, judged output by output.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use touchstone_golden::{Case, Comparison, Feed, Ours, Output, Rule, Standard, judge};
use touchstone_runtime::{Backend, taps};

use crate::backends::Target;
use crate::error::{Error, Result};
use crate::operands::Operands;
use crate::ops::{self, Mode, Produced};

/// What is to be checked.
#[derive(Clone, Debug)]
pub struct Check {
    /// The case.
    pub case: Arc<Case>,
    /// Where.
    pub target: Target,
    /// How.
    pub mode: Mode,
}

/// One output of a check, judged.
#[derive(Clone, Debug)]
pub struct Row {
    /// Op and case, as in the folder's path.
    pub case: String,
    /// The backend's and its precision's name.
    pub target: &'static str,
    /// The mode's name.
    pub mode: &'static str,
    /// The output: for a tap, its module path.
    pub output: String,
    /// The output's dtype.
    pub dtype: &'static str,
    /// Name of the rule that judged.
    pub rule: &'static str,
    /// Figures and verdict.
    pub comparison: Comparison,
}

impl Check {
    /// `layernorm/odd_f32 host-f32`, and the mode where there is a choice.
    #[must_use]
    pub fn name(&self) -> String {
        let (case, target, mode) = (&self.case, self.target.name(), self.mode.name());
        format!("{}/{} {target} {mode}", case.op, case.name).trim_end().to_owned()
    }
}

/// Every check of a case on the targets that compute in its precision, and on the oracle.
///
/// # Errors
/// An unknown op.
pub fn checks(case: &Arc<Case>) -> Result<Vec<Check>> {
    let modes = ops::modes(case)?;
    let targets = Target::ALL.into_iter().filter(|target| target.takes(case.dtype));
    Ok(targets
        .flat_map(|target| modes.iter().map(move |&mode| Check { case: Arc::clone(case), target, mode }))
        .filter(|check| check.target.is_cuda() || check.mode.differs_on_host())
        .collect())
}

/// Runs a case on a backend and judges every output that the mode can see, in the order of computation.
///
/// # Errors
/// What keeps a verdict from being given: operands that do not fit the op, a failing device, a panic.
pub fn check<B: Backend>(
    b: &mut B,
    case: &Case,
    models: &Path,
    target: Target,
    mode: Mode,
) -> Result<Vec<Row>> {
    let operands = Operands::new(case, models);
    b.taps().set_path(mode.path());
    let run = catch_unwind(AssertUnwindSafe(|| ops::run(b, &operands, mode)));
    b.taps().listen(None);
    b.taps().set_path(taps::Path::Fastest);
    let produced = run.unwrap_or_else(|payload| Err(Error::Panicked(message(payload.as_ref()))))?;
    operands.all_taken()?;
    let rows: Vec<Row> =
        case.outputs().iter().filter_map(|output| row(case, target, mode, output, &produced)).collect();
    if rows.is_empty() {
        // Nothing compared must not look like nothing wrong.
        return Err(case.invalid("tensors", format!("hold no output to compare in mode {mode:?}")).into());
    }
    Ok(rows)
}

/// Judges one output; `None` where the mode cannot see it.
fn row(case: &Case, target: Target, mode: Mode, output: &Output, produced: &[Produced]) -> Option<Row> {
    let (feed, visible) = match mode {
        Mode::Verb | Mode::Strided | Mode::Wide | Mode::Plain => (Feed::FreeRunning, true),
        Mode::Fused | Mode::Ragged | Mode::Decode | Mode::Grid | Mode::Shards | Mode::Steps | Mode::Batch => {
            (Feed::FreeRunning, matches!(output.name.as_str(), "y" | "logits" | "generated" | "tokens"))
        }
        Mode::Injected => (Feed::Injected, output.injected.is_some()),
    };
    if !visible {
        return None;
    }
    let standard = if target == Target::HostF64 { Standard::Oracle } else { Standard::Reference };
    // An output that was not produced has neither shape nor values, which no rule lets pass.
    let ours = produced
        .iter()
        .find(|p| p.name == output.name)
        .map_or(Ours { shape: &[], values: &[] }, |p| Ours { shape: &p.shape, values: &p.values });
    Some(Row {
        case: format!("{}/{}", case.op, case.name),
        target: target.name(),
        mode: mode.name(),
        output: output.name.clone(),
        dtype: output.reference.dtype.name(),
        rule: match (&output.rule, standard) {
            (Rule::Exact, _) => "exact",
            (Rule::Greedy { .. }, _) => "greedy",
            (Rule::Gate, Standard::Reference) => "gate",
            (Rule::Gate, Standard::Oracle) => "oracle",
        },
        comparison: judge(ours, output, feed, standard),
    })
}

/// What a panic said.
fn message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("without a message").to_owned()
}
