//! What was measured, for people and for programs.

use comfy_table::{CellAlignment, ColumnConstraint, Table, presets};
use serde::Serialize;
use serde_json::{Map, Value};
use touchstone_runtime::Config;
use touchstone_runtime::sampling::Sampling;

use super::gate::Checked;
use super::measure::SAMPLING;
use super::row::{Cycles, Row};

/// Everything about one model in one precision.
#[derive(Debug, Serialize)]
pub struct Section {
    /// Its folder's name.
    pub model: String,
    /// `trained` or `random`.
    pub weights: &'static str,
    /// `cpu` or `cuda`.
    pub kind: &'static str,
    /// Where it ran, and why there.
    pub device: String,
    /// Working precision.
    pub dtype: &'static str,
    /// The model's parameters.
    pub parameters: usize,
    /// Its dimensions.
    pub config: Config,
    /// Tokens of a generation.
    pub new_tokens: usize,
    /// Bytes that a token of the generation must read.
    pub token_bytes: usize,
    /// What the device can read in a second: measured on a CPU, of the data sheet on a GPU.
    pub bandwidth_bytes_per_s: Option<f64>,
    /// What was compared first.
    pub check: Checked,
    /// The figures.
    pub rows: Vec<Row>,
    /// What the peers ran on, where they did.
    pub peers: Option<Map<String, Value>>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    sampling: Rule,
    models: &'a [Section],
}

/// How timed tokens were picked.
#[derive(Serialize)]
struct Rule {
    temperature: f32,
    top_k: u32,
    seed: u64,
}

/// One object with everything.
pub fn as_json(sections: &[Section]) -> String {
    let Sampling { temperature, top_k, seed, .. } = SAMPLING;
    let report = Report { sampling: Rule { temperature, top_k, seed }, models: sections };
    serde_json::to_string(&report).expect("names and figures become JSON")
}

/// A heading and a table a section.
pub fn as_text(sections: &[Section]) -> String {
    sections
        .iter()
        .map(|section| format!("{}\n{}", heading(section), table(&section.rows)))
        .collect::<Vec<_>>()
        .join("\n\n")
}

fn heading(section: &Section) -> String {
    let Section { model, weights, device, parameters, token_bytes, check, .. } = section;
    let Checked { tokens, distinct, equal, margin } = check;
    let parted = match margin {
        None => String::new(),
        Some(margin) => format!("; after {equal} they part by a margin of {margin:.1e}"),
    };
    let mib = *token_bytes as f64 / f64::from(1 << 20);
    let limit =
        section.bandwidth_bytes_per_s.map_or_else(String::new, |rate| format!(" at {:.0} GB/s", rate / 1e9));
    format!(
        "{model}: {parameters} parameters, {weights} weights; {device}\n\
         checked: {tokens} greedy tokens, {distinct} of them different, are those of the definition{parted}\n\
         limit: {mib:.1} MiB a token{limit}"
    )
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let header = [
        "measure", "at", "system", "median", "p90", "unit", "runs", "tokens/s", "GFLOP/s", "GB/s",
        "of limit", "ratio", "cycles",
    ];
    table.set_header(header);
    for column in [3, 4, 6, 7, 8, 9, 10] {
        table.column_mut(column).expect("thirteen columns").set_cell_alignment(CellAlignment::Right);
    }
    for row in rows {
        let optional = |value: Option<f64>| value.map(significant).unwrap_or_default();
        let ratio = match (row.times_ours, row.times_first) {
            (Some(ratio), _) => format!("{} x ours", significant(ratio)),
            (None, Some(ratio)) => format!("{} x the first", significant(ratio)),
            (None, None) => String::new(),
        };
        table.add_row([
            row.measure.name(),
            row.at.clone(),
            row.system.clone(),
            significant(row.median),
            significant(row.p90),
            row.unit.to_owned(),
            row.repeats.to_string(),
            optional(row.tokens_per_s),
            optional(row.gflop_per_s),
            optional(row.bytes_per_s.map(|rate| rate / 1e9)),
            row.bandwidth_share
                .or(row.matrix_share)
                .map_or_else(String::new, |share| format!("{:.1} %", share * 100.0)),
            ratio,
            row.cycles.map_or_else(String::new, |Cycles { times, work, wait }| {
                format!("{times:.1} a step, each {work:.0} of work and {wait:.0} of waiting")
            }),
        ]);
    }
    // Columns that no row fills would only widen the table.
    for column in 0..header.len() {
        if !filled(&table, column) {
            let hidden = ColumnConstraint::Hidden;
            table.column_mut(column).expect("thirteen columns").set_constraint(hidden);
        }
    }
    table.trim_fmt()
}

fn filled(table: &Table, column: usize) -> bool {
    table.row_iter().any(|row| row.cell_iter().nth(column).is_some_and(|cell| !cell.content().is_empty()))
}

/// At least three significant digits, never as a power of ten.
fn significant(value: f64) -> String {
    let digits = if value > 0.0 { (2.0 - value.log10().floor()).max(0.0) as usize } else { 0 };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::significant;

    /// Without this, a small figure could be shown as 0, or a large one cut short.
    #[test]
    fn three_digits_are_significant() {
        let shown = [12345.6, 123.4, 12.34, 1.234, 0.1234, 0.0].map(significant);
        assert_eq!(shown, ["12346", "123", "12.3", "1.23", "0.123", "0"]);
    }
}
