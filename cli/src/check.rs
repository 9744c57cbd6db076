//! `touchstone check`: golden cases of any folder.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use touchstone_functional_tests::{
    Backends, Check, Error, MODELS, Row, checks, find_cases, find_root, json as rows_as_json, table,
};
use touchstone_golden::Case;

use crate::args::CheckArgs;
use crate::exit::{Outcome, complain, print};

/// What was found so far.
struct Findings {
    rows: Vec<Row>,
    /// What has no verdict, and why.
    unchecked: Vec<String>,
    outcome: Outcome,
}

/// Runs the command.
pub fn run(args: &CheckArgs) -> Outcome {
    let mut found = Findings { rows: Vec::new(), unchecked: Vec::new(), outcome: Outcome::Passed };
    let models =
        args.models.clone().or_else(|| Some(find_root().ok()?.join(MODELS))).unwrap_or_else(|| MODELS.into());
    let backends = Backends::new(&models, args.ordinal());
    for dir in &args.dirs {
        match find_cases(dir) {
            Ok(folders) if folders.is_empty() => {
                found.give_up(format!("{}: holds no case.json, nothing was checked", dir.display()));
            }
            Ok(folders) => {
                for folder in folders {
                    check_case(args, &backends, &folder, &mut found);
                    if found.outcome == Outcome::NoDevice {
                        return Outcome::NoDevice;
                    }
                }
            }
            Err(error) => found.give_up(error.to_string()),
        }
    }
    drop(backends);
    found.report(args.json)
}

/// Every check of one case.
fn check_case(args: &CheckArgs, backends: &Backends, folder: &Path, found: &mut Findings) {
    let listed = Case::load(folder).map_err(Error::from).and_then(|case| checks(&Arc::new(case)));
    let wanted: Vec<Check> = match listed {
        Ok(all) => all.into_iter().filter(|check| args.wants(check.target)).collect(),
        Err(error) => return found.give_up(error.to_string()),
    };
    if wanted.is_empty() {
        let problem = "is not checked: no precision asked for takes it on this device";
        return found.give_up(format!("{}: {problem}", case_file(folder)));
    }
    for check in wanted {
        eprintln!("{}", check.name());
        match backends.check(&check) {
            Ok(rows) => found.add(rows),
            Err(error) => {
                if let Some(why) = error.absence() {
                    complain(format_args!("no CUDA device: {why}"));
                    found.outcome = Outcome::NoDevice;
                    return;
                }
                let outcome = if error.is_unusable_input() { Outcome::Unusable } else { Outcome::Failed };
                found.without_verdict(format!("{}: {error}", check.name()), outcome);
            }
        }
    }
}

fn case_file(folder: &Path) -> String {
    folder.join("case.json").display().to_string()
}

impl Findings {
    fn add(&mut self, rows: Vec<Row>) {
        if rows.iter().any(|row| !row.comparison.verdict.passed()) {
            self.outcome = self.outcome.and(Outcome::Failed);
        }
        self.rows.extend(rows);
    }

    fn give_up(&mut self, problem: String) {
        self.without_verdict(problem, Outcome::Unusable);
    }

    fn without_verdict(&mut self, problem: String, outcome: Outcome) {
        complain(&problem);
        self.unchecked.push(problem);
        self.outcome = self.outcome.and(outcome);
    }

    /// Prints the table or the JSON object.
    fn report(self, as_json: bool) -> Outcome {
        let Self { rows, unchecked, outcome } = self;
        let failed = rows.iter().filter(|row| !row.comparison.verdict.passed()).count();
        let text = if as_json {
            let summary = json!({"compared": rows.len(), "failed": failed, "unchecked": unchecked.len()});
            json!({"rows": rows_as_json(&rows), "unchecked": unchecked, "summary": summary}).to_string()
        } else {
            let unchecked: String =
                unchecked.iter().map(|problem| format!("not checked: {problem}\n")).collect();
            let (table, compared) = (table(&rows), rows.len());
            format!("{table}\n{unchecked}{compared} outputs compared, {failed} failed")
        };
        outcome.and(print(&text))
    }
}
