//! The table at the end of a run, and its rows as JSON for the documentation.

use std::io::Write;

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::environment::Environment;
use crate::scenario::{Expect, Scenario};
use crate::verdict::Figures;

/// A scenario that ran.
#[derive(Debug, Serialize)]
pub struct Row {
    scenario: String,
    backend: &'static str,
    iterations: u32,
    figures: Option<Figures>,
    verdict: &'static str,
}

impl Row {
    /// The row of `scenario`; `met` says whether its expectation was.
    #[must_use]
    pub fn new(scenario: &Scenario, figures: Option<Figures>, met: bool) -> Self {
        let verdict = match (met, &scenario.expect) {
            (false, _) => "FAILED",
            (true, Expect::Clean) => "clean",
            (true, _) => "planted, found",
        };
        Self {
            scenario: format!("{}/{}", scenario.subject, scenario.manner),
            backend: scenario.place.name(),
            iterations: scenario.iterations,
            figures,
            verdict,
        }
    }
}

/// A run of the suite.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What the machine had.
    pub environment: Environment,
    /// What ran.
    pub rows: Vec<Row>,
}

/// Prints the table, and writes the report where `TOUCHSTONE_REPORT` says.
///
/// # Errors
/// Where the file cannot be written.
pub fn publish(report: &Report) -> std::io::Result<()> {
    writeln!(std::io::stdout(), "{}", table(report))?;
    if let Some(path) = std::env::var_os("TOUCHSTONE_REPORT") {
        std::fs::write(path, serde_json::to_string_pretty(report)?)?;
    }
    Ok(())
}

fn table(report: &Report) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    table.set_header(["scenario", "backend", "ledger", "cuMemGetInfo", "NVML", "host", "verdict"]);
    let mut rows: Vec<&Row> = report.rows.iter().collect();
    rows.sort_by_key(|row| (row.backend, &row.scenario));
    for row in rows {
        let [ledger, driver, nvml, host] = row.figures.as_ref().map_or([const { String::new() }; 4], cells);
        table.add_row([&row.scenario, row.backend, &ledger, &driver, &nvml, &host, row.verdict]);
    }
    let mut text = if report.rows.is_empty() { String::new() } else { table.to_string() };
    if let Some(why) = report.environment.no_gpu() {
        text += &format!("\nnot checked: every scenario on a GPU ({why})");
    } else if let Some(why) = &report.environment.nvml_silent {
        text += &format!(
            "\nnot checked: NVML ({why}); cuMemGetInfo, which sees other processes too, stands alone"
        );
    }
    text
}

/// What each witness saw: `=` for no change, `-` for not asked.
fn cells(figures: &Figures) -> [String; 4] {
    let bytes = |change: Option<i64>| match change {
        None => "-".to_owned(),
        Some(0) => "=".to_owned(),
        Some(change) => format!("{change:+}"),
    };
    let host = match (figures.host_bytes, figures.host_blocks) {
        (0, 0) => "=".to_owned(),
        (bytes, blocks) => format!("{bytes:+} in {blocks:+}"),
    };
    let ledger = if figures.ledger.is_empty() { "=".to_owned() } else { figures.ledger.clone() };
    [ledger, bytes(figures.driver_bytes), bytes(figures.nvml_bytes), host]
}
