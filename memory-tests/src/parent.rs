//! The parent's side: one test a scenario, each in a child.

use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::child::{LOOK_AROUND, SCENARIO};
use crate::environment::{Environment, required};
use crate::process::finish;
use crate::report::{Report, Row};
use crate::scenario::{Expect, Scenario};
use crate::valgrind::{self, Suite};
use crate::verdict::Verdict;
use crate::{report, scenarios};

/// How long a child may take.
const LIMIT: Duration = Duration::from_secs(120);
/// How long a child may take that is planted to hang.
const LIMIT_HANGING: Duration = Duration::from_secs(2);

/// One GPU scenario at a time: two would be each other's noisy neighbour.
static GPU: Mutex<()> = Mutex::new(());

type Rows = Arc<Mutex<Vec<Row>>>;

/// Runs the suite as the command line asks.
#[must_use]
pub fn main(scenarios: Vec<Scenario>) -> ExitCode {
    let arguments = Arguments::from_args();
    let environment = match look_around() {
        Ok(environment) => environment,
        Err(error) => {
            eprintln!("cannot find out what this machine has: {error}");
            return ExitCode::FAILURE;
        }
    };
    let scenarios = Arc::new(scenarios);
    let rows = Rows::default();
    let trials = trials(&scenarios, &environment, &rows);
    let conclusion = libtest_mimic::run(&arguments, trials);
    if arguments.list {
        return conclusion.exit_code();
    }
    let rows = std::mem::take(&mut *rows.lock().unwrap_or_else(PoisonError::into_inner));
    let written = report::publish(&Report { environment, rows });
    if let Err(error) = &written {
        eprintln!("cannot write the report: {error}");
    }
    let matched = conclusion.num_passed + conclusion.num_failed + conclusion.num_ignored;
    if matched == 0 {
        eprintln!("no memory test matches {:?}", arguments.filter.as_deref().unwrap_or_default());
    }
    if conclusion.has_failed() || matched == 0 || written.is_err() {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Starts this executable again under the name of a scenario.
fn child(name: &str) -> Result<Command, String> {
    let mut command = Command::new(std::env::current_exe().map_err(|error| error.to_string())?);
    command.env(SCENARIO, name).env("RUST_BACKTRACE", "0");
    Ok(command)
}

fn look_around() -> Result<Environment, String> {
    let finished = finish(&mut child(LOOK_AROUND)?, LIMIT)?;
    let line = finished.stdout.lines().last().unwrap_or_default();
    serde_json::from_str(line)
        .map_err(|error| format!("{error} ({}): {}", finished.status, finished.complaint()))
}

fn trials(scenarios: &Arc<Vec<Scenario>>, environment: &Environment, rows: &Rows) -> Vec<Trial> {
    let cuda_required = required("TOUCHSTONE_REQUIRE_CUDA");
    let no_gpu = environment.no_gpu().map(str::to_owned);
    let nvml_speaks = environment.nvml_silent.is_none();
    let mut trials = vec![
        complete("every-kernel-has-a-scenario", scenarios, scenarios::every_kernel),
        complete("scenarios-have-names-of-their-own", scenarios, scenarios::names_differ),
    ];
    let valgrind_required = required("TOUCHSTONE_REQUIRE_VALGRIND");
    // First, because they take longest and the others run beside them.
    for suite in [Suite::HostScenarios, Suite::OneByteForgotten] {
        let all = scenarios.clone();
        let run = move || suite.check(&all);
        trials.push(optional(suite.name().into(), valgrind::missing(), valgrind_required, run));
    }
    for index in 0..scenarios.len() {
        let missing = no_gpu.clone().filter(|_| scenarios[index].on_gpu());
        let all = scenarios.clone();
        let rows = rows.clone();
        let name = scenarios[index].name();
        trials.push(optional(name, missing, cuda_required, move || check(&all[index], nvml_speaks, &rows)));
    }
    // That it speaks was found out by the look around.
    let silent = environment.nvml_silent.clone();
    trials.push(optional("nvml/speaks-about-this-process".into(), silent, cuda_required, || Ok(())));
    trials
}

/// A test of the table itself.
fn complete(
    name: &str,
    scenarios: &Arc<Vec<Scenario>>,
    check: fn(&[Scenario]) -> Result<(), String>,
) -> Trial {
    let scenarios = scenarios.clone();
    Trial::test(format!("table/{name}"), move || Ok(check(&scenarios)?))
}

/// A test that needs something: where that is `missing` it is not checked, or it fails if it was required.
fn optional(
    name: String,
    missing: Option<String>,
    required: bool,
    run: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> Trial {
    match missing {
        None => Trial::test(name, move || run().map_err(Failed::from)),
        Some(why) if required => {
            Trial::test(name, move || Err(format!("required, and not there: {why}").into()))
        }
        Some(why) => Trial::ignorable_test(name, move || {
            // The remedy stands below the table, once.
            let what = why.split([':', '(']).next().unwrap_or_default().trim();
            Ok(Completion::ignored_with(format!("not checked: {what}")))
        }),
    }
}

/// Runs a scenario in a child and compares its verdict with what was expected.
fn check(scenario: &Scenario, nvml_speaks: bool, rows: &Rows) -> Result<(), String> {
    let alone = scenario.on_gpu().then(|| GPU.lock().unwrap_or_else(PoisonError::into_inner));
    let verdict = run(scenario);
    drop(alone);
    let (result, figures) = match (&scenario.expect, verdict) {
        (Expect::NoVerdict(words), Err(why)) if why.contains(words) => (Ok(()), None),
        (Expect::NoVerdict(words), other) => (Err(format!("expected {words:?}, got {other:?}")), None),
        (_, Err(why)) => (Err(why), None),
        (expect, Ok(verdict)) => {
            let met = expect.check(&verdict.outcome, &verdict.figures.ledger);
            let silent = scenario.on_gpu() && nvml_speaks && verdict.figures.nvml_bytes.is_none();
            let met = if silent { met.and(Err("NVML fell silent".into())) } else { met };
            let met = met.map_err(|difference| format!("{difference}\n{:?}", verdict.figures));
            (met, Some(verdict.figures))
        }
    };
    let row = Row::new(scenario, figures, result.is_ok());
    rows.lock().unwrap_or_else(PoisonError::into_inner).push(row);
    result
}

/// A child's verdict.
///
/// # Errors
/// In words, for every way of not giving one.
fn run(scenario: &Scenario) -> Result<Verdict, String> {
    let hangs = scenario.expect == Expect::NoVerdict("timed out");
    let finished = finish(&mut child(&scenario.name())?, if hangs { LIMIT_HANGING } else { LIMIT })?;
    if !finished.status.success() {
        return Err(format!("ended with {}: {}", finished.status, finished.complaint()));
    }
    let line = finished.stdout.lines().last().unwrap_or_default();
    let verdict: Verdict = serde_json::from_str(line).map_err(|error| format!("no verdict: {error}"))?;
    if verdict.scenario != scenario.name() || verdict.iterations != scenario.iterations {
        return Err(format!("the verdict is on {} runs of {}", verdict.iterations, verdict.scenario));
    }
    Ok(verdict)
}
