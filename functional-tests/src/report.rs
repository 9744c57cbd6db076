//! What the checks found, for people and for programs.

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};
use touchstone_golden::Verdict;

use crate::check::Row;

/// One line a check: the output that is worst, sorted by case. Rows of a check must be neighbours.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "case",
        "backend",
        "output",
        "dtype",
        "error ratio",
        "worst channel",
        "max ratio",
        "verdict",
    ]);
    for column in 4..7 {
        table.column_mut(column).expect("eight columns").set_cell_alignment(CellAlignment::Right);
    }
    let mut worst: Vec<&Row> = rows
        .chunk_by(|a, b| key(a) == key(b))
        .map(|check| {
            check.iter().reduce(|a, b| if is_worse(b, a) { b } else { a }).expect("chunks are not empty")
        })
        .collect();
    worst.sort_by_key(|row| key(row));
    for row in worst {
        let [ratio, channel, max_ratio] = figures(row);
        let verdict = match &row.comparison.verdict {
            Verdict::Pass => "pass".to_owned(),
            Verdict::Fail(reason) => format!("FAIL: {reason}"),
        };
        let backend = format!("{} {}", row.target, row.mode);
        table.add_row([
            &row.case,
            backend.trim_end(),
            &row.output,
            row.dtype,
            &ratio,
            &channel,
            &max_ratio,
            &verdict,
        ]);
    }
    table.trim_fmt()
}

/// What makes two rows one check.
fn key(row: &Row) -> (&str, &str, &str) {
    (&row.case, row.target, row.mode)
}

/// A failure is worse than a pass, the first failure the worst: what follows from it is not its fault. Among passes the ratio decides.
fn is_worse(row: &Row, than: &Row) -> bool {
    let figure = |row: &Row| if row.rule == "oracle" { row.comparison.nmse } else { row.comparison.ratio };
    match (row.comparison.verdict.passed(), than.comparison.verdict.passed()) {
        (false, passed) => passed,
        (true, false) => false,
        (true, true) => figure(row) > figure(than),
    }
}

/// Error ratio, worst channel and ratio of the largest errors, as the row's rule has them.
fn figures(row: &Row) -> [String; 3] {
    let comparison = &row.comparison;
    match row.rule {
        "gate" => [
            format!("{:.3}", comparison.ratio),
            comparison
                .worst_channel
                .map(|(index, ratio)| format!("{ratio:.3} at {index}"))
                .unwrap_or_default(),
            format!("{:.3}", comparison.max_ratio),
        ],
        "oracle" => [format!("nmse {:.1e}", comparison.nmse), String::new(), String::new()],
        _ if comparison.near_ties.is_empty() => [row.rule.into(), String::new(), String::new()],
        _ => [format!("near ties {:?}", comparison.near_ties), String::new(), String::new()],
    }
}

/// Every row with all of its figures. Figures that are not finite become null.
#[must_use]
pub fn json(rows: &[Row]) -> Value {
    rows.iter()
        .map(|row| {
            let comparison = &row.comparison;
            let reason = match &comparison.verdict {
                Verdict::Pass => None,
                Verdict::Fail(reason) => Some(reason),
            };
            json!({
                "case": row.case,
                "backend": row.target,
                "mode": row.mode,
                "output": row.output,
                "dtype": row.dtype,
                "rule": row.rule,
                "ratio": comparison.ratio,
                "worst_channel": comparison.worst_channel.map(|(index, ratio)| json!({"index": index, "ratio": ratio})),
                "max_ratio": comparison.max_ratio,
                "worst": comparison.worst.map(|worst| json!({
                    "element": worst.element, "ours": worst.ours, "reference": worst.reference, "truth": worst.truth,
                })),
                "nmse": comparison.nmse,
                "near_ties": comparison.near_ties,
                "passed": comparison.verdict.passed(),
                "reason": reason,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use touchstone_golden::{Comparison, Verdict};

    use super::{json, table};
    use crate::check::Row;

    fn row(output: &str, ratio: f64, verdict: Verdict) -> Row {
        let comparison = Comparison {
            ratio,
            worst_channel: Some((7, ratio)),
            max_ratio: ratio,
            worst: None,
            nmse: 0.0,
            near_ties: Vec::new(),
            verdict,
        };
        let (case, output) = ("block/odd_f32".to_owned(), output.to_owned());
        Row { case, target: "host-f32", mode: "injected", output, dtype: "f32", rule: "gate", comparison }
    }

    /// Without this, the table could show a good output of a check whose other outputs fail, or a consequence in place of its cause.
    #[test]
    fn the_table_shows_the_first_failure_or_else_the_worst_pass() {
        let fail = || Verdict::Fail("too far".into());
        let rows = [
            row("ln1", 1.9, Verdict::Pass),
            row("attention.core", 3.0, fail()),
            row("mlp.up", 9.0, fail()),
            row("y", 1.0, Verdict::Pass),
        ];
        let shown = table(&rows);
        assert!(shown.contains("attention.core") && shown.contains("FAIL: too far"), "{shown}");
        assert!(!shown.contains("mlp.up") && !shown.contains("ln1"), "{shown}");
        let passing = [row("ln1", 0.5, Verdict::Pass), row("ln2", 1.9, Verdict::Pass)];
        assert!(table(&passing).contains("ln2"), "{}", table(&passing));
    }

    /// Without this, a figure that JSON cannot hold would make the whole report unreadable.
    #[test]
    fn figures_that_are_not_finite_become_null() {
        let rows = [row("y", f64::INFINITY, Verdict::Fail("is NaN".into()))];
        let value = json(&rows);
        assert!(value[0]["ratio"].is_null() && value[0]["passed"] == false && value[0]["reason"] == "is NaN");
    }
}
