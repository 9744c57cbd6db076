//! Every golden case on every backend of this machine: `cargo test --test functional [-- FILTER]`.
//!
//! `TOUCHSTONE_ROOT`: where `golden/cases` and `models` are; default: found upwards from the current folder.
//! `TOUCHSTONE_REQUIRE_CUDA=1`: a missing GPU is a failure; default: its checks are reported as ignored.
//! `TOUCHSTONE_REPORT=FILE`: writes every figure as JSON.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use touchstone_functional_tests::{
    Backends, CASES, Check, Error, MODELS, Row, checks, find_cases, find_root, json, ops, table, twins,
};
use touchstone_golden::{Case, Verdict};

/// Fewer cases than this are not all of them.
const CASES_MIN: usize = 171;

/// A case's folder, and what reading it gave.
type LoadedCase = (PathBuf, Result<Arc<Case>, touchstone_golden::Error>);

/// What all trials share.
struct Session {
    backends: Backends,
    rows: Mutex<Vec<Row>>,
    bites: Mutex<Vec<twins::Bite>>,
    require_cuda: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("functional: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, Error> {
    let root = find_root()?;
    let folders = find_cases(&root.join(CASES))?;
    let cases: Vec<_> =
        folders.iter().map(|folder| (folder.clone(), Case::load(folder).map(Arc::new))).collect();
    let session = Arc::new(Session {
        backends: Backends::new(&root.join(MODELS), 0),
        rows: Mutex::default(),
        bites: Mutex::default(),
        require_cuda: std::env::var("TOUCHSTONE_REQUIRE_CUDA").is_ok_and(|value| value == "1"),
    });
    let mut trials = completeness_trials(&root, &folders, &cases);
    trials.extend(teeth_trials(&session, &root, &cases));
    trials.extend(cases.into_iter().flat_map(|(folder, case)| case_trials(&session, &folder, case)));
    let conclusion = libtest_mimic::run(arguments, trials);
    if arguments.list {
        return Ok(ExitCode::SUCCESS);
    }
    // Trials that were filtered out are gone by now, and with them all other owners.
    let Some(Session { backends, rows, bites, .. }) = Arc::into_inner(session) else {
        unreachable!("every trial has ended")
    };
    drop(backends);
    let rows = rows.into_inner().unwrap_or_else(PoisonError::into_inner);
    let written = report(&rows);
    report_bites(&bites.into_inner().unwrap_or_else(PoisonError::into_inner));
    let checked = conclusion.num_passed + conclusion.num_failed + conclusion.num_ignored;
    if checked == 0 {
        eprintln!("functional: no check matches, so nothing was checked");
    }
    Ok(if checked == 0 || conclusion.has_failed() || !written {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Prints the table and writes the JSON file where one is asked for; says whether that worked.
fn report(rows: &[Row]) -> bool {
    if !rows.is_empty() {
        let failed = rows.iter().filter(|row| !row.comparison.verdict.passed()).count();
        let gated = rows.iter().filter(|row| row.rule == "gate").map(|row| row.comparison.ratio);
        println!("{}\n", table(rows));
        println!(
            "{} outputs compared, {failed} failed, worst error ratio {:.3}",
            rows.len(),
            gated.fold(0.0, f64::max)
        );
    }
    let Some(path) = std::env::var_os("TOUCHSTONE_REPORT").map(PathBuf::from) else { return true };
    match std::fs::write(&path, json(rows).to_string()) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("functional: {}: cannot be written: {error}", path.display());
            false
        }
    }
}

/// Says for each defect who found it.
fn report_bites(bites: &[twins::Bite]) {
    for bite in bites {
        let located = bite.located.first().map(|at| format!("; injected, at {at}")).unwrap_or_default();
        let (refused, cases, first) = (bite.refused.len(), bite.cases, &bite.refused[0]);
        println!("planted {:?}: refused by {refused} of {cases}, first {first}{located}", bite.defect);
    }
}

/// The planted defects, and the twin without one.
fn teeth_trials(session: &Arc<Session>, root: &Path, cases: &[LoadedCase]) -> Vec<Trial> {
    let cases: Vec<Arc<Case>> =
        cases.iter().filter_map(|(_, case)| case.as_ref().ok().map(Arc::clone)).collect();
    let shared = Arc::new((cases, root.join(MODELS)));
    let control = {
        let shared = Arc::clone(&shared);
        Trial::test("teeth/control", move || Ok(twins::control(&shared.0, &shared.1)?))
    };
    let bites = twins::Defect::ALL.into_iter().map(|defect| {
        let (session, shared) = (Arc::clone(session), Arc::clone(&shared));
        Trial::test(format!("teeth/{defect:?}"), move || {
            let bite = twins::bite(defect, &shared.0, &shared.1)?;
            session.bites.lock().unwrap_or_else(PoisonError::into_inner).push(bite);
            Ok(())
        })
    });
    std::iter::once(control).chain(bites).collect()
}

/// Every check of a case as a trial; a case that cannot be read is a trial that fails.
fn case_trials(
    session: &Arc<Session>,
    folder: &Path,
    case: Result<Arc<Case>, touchstone_golden::Error>,
) -> Vec<Trial> {
    match case.map_err(Error::from).and_then(|case| checks(&case)) {
        Ok(checks) => checks
            .into_iter()
            .map(|check| {
                let session = Arc::clone(session);
                Trial::ignorable_test(check.name(), move || verdict(&session, &check))
            })
            .collect(),
        Err(error) => {
            vec![Trial::test(format!("{} load", folder.display()), move || Err(error.to_string().into()))]
        }
    }
}

fn verdict(session: &Session, check: &Check) -> Result<Completion, Failed> {
    let rows = match session.backends.check(check) {
        Ok(rows) => rows,
        Err(error) => {
            return match error.absence() {
                Some(why) if !session.require_cuda => {
                    Ok(Completion::ignored_with(format!("no CUDA device: {why}: not checked")))
                }
                _ => Err(error.to_string().into()),
            };
        }
    };
    let failures: Vec<String> = rows.iter().filter_map(failure).collect();
    let compared = rows.len();
    session.rows.lock().unwrap_or_else(PoisonError::into_inner).extend(rows);
    match failures.first() {
        None => Ok(Completion::Completed),
        Some(first) if failures.len() == 1 => Err(format!("of {compared} outputs one fails: {first}").into()),
        Some(first) => {
            let others = failures[1..].join("\n  ");
            Err(format!("of {compared} outputs {} fail, first {first}\n  {others}", failures.len()).into())
        }
    }
}

/// What is wrong with an output, and where.
fn failure(row: &Row) -> Option<String> {
    match &row.comparison.verdict {
        Verdict::Pass => None,
        Verdict::Fail(reason) => {
            let worst = row.comparison.worst.map(|worst| format!("; {worst}")).unwrap_or_default();
            Some(format!("{}: {reason}{worst}", row.output))
        }
    }
}

/// Trials that the set of cases is whole: a suite that silently shrinks would stay green.
fn completeness_trials(root: &Path, folders: &[PathBuf], cases: &[LoadedCase]) -> Vec<Trial> {
    let found = folders.len();
    let base = root.join(CASES);
    let ops: BTreeSet<String> = std::fs::read_dir(&base)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect();
    let populated: BTreeSet<String> =
        cases.iter().filter_map(|(_, case)| Some(case.as_ref().ok()?.op.clone())).collect();
    let misplaced: Vec<String> = cases
        .iter()
        .filter_map(|(folder, case)| Some((folder, case.as_ref().ok()?)))
        .filter(|(folder, case)| **folder != base.join(&case.op).join(&case.name))
        .map(|(folder, case)| format!("{} says {}/{}", folder.display(), case.op, case.name))
        .collect();
    let registered: BTreeSet<String> = ops::OPS.iter().map(|op| (*op).to_owned()).collect();
    vec![
        Trial::test("complete/ops", move || {
            same(&ops, &registered).and_then(|()| same(&populated, &registered))
        }),
        Trial::test("complete/cases", move || {
            if found >= CASES_MIN {
                Ok(())
            } else {
                Err(format!("{found} cases, expected {CASES_MIN} or more").into())
            }
        }),
        Trial::test("complete/names", move || {
            if misplaced.is_empty() { Ok(()) } else { Err(misplaced.join("\n").into()) }
        }),
    ]
}

fn same(found: &BTreeSet<String>, registered: &BTreeSet<String>) -> Result<(), Failed> {
    if found == registered {
        return Ok(());
    }
    Err(format!("ops with cases: {found:?}\nops with a runner: {registered:?}").into())
}
