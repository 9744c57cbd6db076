//! Whether the cases bite: every defect must be refused, by the cases of the right verb and at the right taps.

use std::path::Path;
use std::sync::Arc;

use touchstone_golden::{Case, CaseDtype};

use super::{Defect, Twin};
use crate::backends::Target;
use crate::check::{Row, check};
use crate::ops::{self, Mode};

/// How a defect was found.
#[derive(Clone, Debug)]
pub struct Bite {
    /// The defect.
    pub defect: Defect,
    /// Cases of its own verb that refuse it, and how many there are.
    pub refused: Vec<String>,
    /// How many there are.
    pub cases: usize,
    /// Module and model cases that refuse it where golden values are injected.
    pub located: Vec<String>,
}

/// The verbs: their cases concern nothing but themselves.
const VERBS: [&str; 8] = ["add", "append", "attention", "embedding", "gelu", "layernorm", "linear", "sample"];

/// The cases that twins are run on: float32, and no models but the small ones, whose weights they hold: others would take long and show less.
#[must_use]
pub fn suitable(case: &Case) -> bool {
    let large = case.has_config("model") || case.has_config("weights_seed");
    case.dtype == CaseDtype::F32 && !large
}

/// Runs the twin without a defect. It must pass: otherwise the twins are refused for something else than their defect.
///
/// # Errors
/// Every output that does not pass.
pub fn control(cases: &[Arc<Case>], models: &Path) -> Result<(), String> {
    let rows = run(None, cases, models)?;
    let refused: Vec<String> =
        rows.iter().filter(|row| !row.comparison.verdict.passed()).map(describe).collect();
    if refused.is_empty() { Ok(()) } else { Err(refused.join("\n")) }
}

/// Runs the twin with this defect.
///
/// # Errors
/// No case refuses the defect, or one that has nothing to do with it does.
pub fn bite(defect: Defect, cases: &[Arc<Case>], models: &Path) -> Result<Bite, String> {
    let blame = defect.blame();
    let rows = run(Some(defect), cases, models)?;
    let is_own = |row: &&Row| row.case.split('/').next() == Some(blame.op);
    let cases = {
        let mut names: Vec<&str> = rows.iter().filter(is_own).map(|row| row.case.as_str()).collect();
        names.dedup();
        names.len()
    };
    let (mut refused, mut located, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows.iter().filter(|row| !row.comparison.verdict.passed()) {
        let op = row.case.split('/').next().unwrap_or_default();
        if op == blame.op {
            refused.push(row.case.clone());
        } else if VERBS.contains(&op) {
            wrong.push(describe(row));
        } else if row.mode == Mode::Injected.name() {
            let list = if blame.taps.contains(&tap(op, &row.output)) { &mut located } else { &mut wrong };
            list.push(format!("{} {}", row.case, row.output));
        }
    }
    refused.dedup();
    if refused.is_empty() {
        return Err(format!("none of the {cases} cases of {} refuses it", blame.op));
    }
    if !blame.taps.is_empty() && located.is_empty() {
        return Err(format!("no injected check of a module refuses it at {:?}", blame.taps));
    }
    if !wrong.is_empty() {
        return Err(format!("blamed on others than {blame:?}:\n{}", wrong.join("\n")));
    }
    Ok(Bite { defect, refused, cases, located })
}

/// Every suitable case in every mode on the twin.
fn run(defect: Option<Defect>, cases: &[Arc<Case>], models: &Path) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    for case in cases.iter().filter(|case| suitable(case)) {
        for mode in ops::modes(case).map_err(|error| error.to_string())? {
            let result = check(&mut Twin::new(defect), case, models, Target::HostF32, mode);
            rows.extend(result.map_err(|error| format!("{}/{}: {error}", case.op, case.name))?);
        }
    }
    Ok(rows)
}

/// The last part of a tap's path. A module's `y` is its last tap.
fn tap<'a>(op: &str, output: &'a str) -> &'a str {
    match (op, output) {
        ("self_attention", "y") => "out",
        ("mlp", "y") => "down",
        ("block", "y") => "add2",
        _ => output.rsplit('.').next().unwrap_or(output),
    }
}

fn describe(row: &Row) -> String {
    format!("{} {} {}: {:?}", row.case, row.mode, row.output, row.comparison.verdict)
}
