//! Host scenarios under Valgrind, a second opinion that knows nothing of the counting allocator.
//!
//! One child runs them all, because Valgrind takes longer to start than they take to run. No GPU library is loaded there, and no
//! suppression is used.

use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::child::{SCENARIO, run_under_valgrind};
use crate::process::finish;
use crate::scenario::{Expect, Place, Scenario};
use crate::scenarios::plants::forget_one_byte;

/// Valgrind's exit code where it found a leak or a wrong access.
const FOUND: i32 = 99;

/// What a child does under Valgrind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// All clean scenarios of the host.
    HostScenarios,
    /// The same, and one byte is forgotten.
    OneByteForgotten,
}

/// What that child says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Report {
    ran: Vec<String>,
    failed: Vec<String>,
}

impl Suite {
    /// The child's name for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::HostScenarios => "valgrind/no-leak-in-host-scenarios",
            Self::OneByteForgotten => "valgrind/finds-one-byte",
        }
    }

    /// The suite of that name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        [Self::HostScenarios, Self::OneByteForgotten].into_iter().find(|suite| suite.name() == name)
    }

    /// The child's side: runs the scenarios; the line that it prints says which.
    #[must_use]
    pub fn run(self, scenarios: &[Scenario]) -> String {
        let mut report = Report { ran: Vec::new(), failed: Vec::new() };
        for scenario in scenarios.iter().filter(|scenario| self.includes(scenario)) {
            if let Err(error) = run_under_valgrind(scenario) {
                report.failed.push(format!("{}: {error:#}", scenario.name()));
            }
            report.ran.push(scenario.name());
        }
        if self == Self::OneByteForgotten {
            forget_one_byte();
        }
        serde_json::to_string(&report).expect("a report is plain data")
    }

    fn includes(self, scenario: &Scenario) -> bool {
        // One scenario is enough beside the byte: the other suite runs the rest.
        let wanted = self == Self::HostScenarios || scenario.subject == "add";
        wanted && scenario.place == Place::HostF32 && scenario.expect == Expect::Clean
    }

    /// The parent's side: runs this executable under Valgrind. Its exit code decides.
    ///
    /// # Errors
    /// In words, where Valgrind found what it must not, or did not find what it must.
    pub fn check(self, scenarios: &[Scenario]) -> Result<(), String> {
        const LIMIT: Duration = Duration::from_secs(300);
        let executable = std::env::current_exe().map_err(|error| error.to_string())?;
        let kinds = "definite,indirect,possible";
        let mut valgrind = Command::new("valgrind");
        valgrind
            .args(["--quiet", "--leak-check=full", "--num-callers=40"])
            .arg(format!("--show-leak-kinds={kinds}"))
            .arg(format!("--errors-for-leak-kinds={kinds}"))
            .arg(format!("--error-exitcode={FOUND}"))
            .arg(executable)
            .env(SCENARIO, self.name())
            .env("RUST_BACKTRACE", "0");
        let finished = finish(&mut valgrind, LIMIT)?;
        let expected: Vec<String> =
            scenarios.iter().filter(|scenario| self.includes(scenario)).map(Scenario::name).collect();
        let report: Option<Report> =
            finished.stdout.lines().last().and_then(|line| serde_json::from_str(line).ok());
        let complaint = finished.complaint();
        match report {
            None => return Err(format!("no report, {}: {complaint}", finished.status)),
            Some(report) if report.ran != expected || expected.is_empty() => {
                return Err(format!("ran {:?}, expected {expected:?}", report.ran));
            }
            Some(report) if !report.failed.is_empty() => return Err(report.failed.join("; ")),
            Some(_) => {}
        }
        match (self, finished.status.code()) {
            (Self::HostScenarios, Some(0)) => Ok(()),
            (Self::OneByteForgotten, Some(FOUND)) if finished.stderr.contains("1 bytes in 1 blocks") => {
                Ok(())
            }
            (Self::OneByteForgotten, Some(0)) => Err("the forgotten byte was not found".into()),
            (_, _) => {
                // The first complaints say where; one leak in a scenario brings many. Between them stands what the scenarios said.
                const LINES: usize = 60;
                let complaints = finished.stderr.lines().filter(|line| line.starts_with("=="));
                let first: Vec<&str> = complaints.take(LINES).collect();
                Err(format!("{}\n{}", finished.status, first.join("\n")))
            }
        }
    }
}

/// Why Valgrind cannot be used here; none where it can.
#[must_use]
pub fn missing() -> Option<String> {
    match Command::new("valgrind").arg("--version").output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!("valgrind --version ended with {}", output.status)),
        Err(error) => Some(format!("valgrind is not installed ({error})")),
    }
}
