//! One measured figure, and how it is summed up.

use std::time::Duration;

use serde::Serialize;
use touchstone_runtime::device::bandwidth_share;

use super::args::Measure;

/// Ourselves, among systems.
pub const OURS: &str = "touchstone";

/// A line of the report. Times are in microseconds, for the unit that `unit` names.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub measure: Measure,
    /// At which size.
    pub at: String,
    /// Who ran: [`OURS`], or a peer and its mode.
    pub system: String,
    /// What a time is for: `us a token`.
    pub unit: &'static str,
    /// Median over the repeats.
    pub median: f64,
    /// 90th percentile over the repeats.
    pub p90: f64,
    /// Timed runs.
    pub repeats: usize,
    /// At the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_s: Option<f64>,
    /// At the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gflop_per_s: Option<f64>,
    /// Bytes that must be read, at the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_s: Option<f64>,
    /// The least time in which the device can read them, as a share of the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth_share: Option<f64>,
    /// The speed, as a share of that of a large matrix product in the same run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matrix_share: Option<f64>,
    /// Tokens of the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<usize>,
    /// Of a handoff: how often it comes in a step, and the first thread's cycles up to it and waiting for it, each time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cycles: Option<Cycles>,
    /// A peer's median over ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times_ours: Option<f64>,
    /// The last stretch's median over the first's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times_first: Option<f64>,
}

/// What a handoff takes of a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cycles {
    /// How often it comes in a step.
    pub times: f64,
    /// Cycles since the handoff before, each time.
    pub work: f64,
    /// Cycles of waiting, each time.
    pub wait: f64,
}

impl Row {
    /// Of our own times, each divided by `units`.
    pub fn new(
        measure: Measure,
        at: impl Into<String>,
        unit: &'static str,
        times: &[Duration],
        units: usize,
    ) -> Self {
        let us: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e6 / units as f64).collect();
        Self {
            measure,
            at: at.into(),
            system: OURS.to_owned(),
            unit,
            median: median(&us),
            p90: p90(&us),
            repeats: us.len(),
            tokens_per_s: None,
            gflop_per_s: None,
            bytes_per_s: None,
            bandwidth_share: None,
            matrix_share: None,
            prompt: None,
            cycles: None,
            times_ours: None,
            times_first: None,
        }
    }

    /// With the speed of `tokens` tokens a unit.
    pub fn tokens(self, tokens: usize) -> Self {
        Self { tokens_per_s: Some(tokens as f64 * 1e6 / self.median), ..self }
    }

    /// With the speed of `flops` operations a unit.
    pub fn flops(self, flops: f64) -> Self {
        Self { gflop_per_s: Some(flops / self.median / 1e3), ..self }
    }

    /// With the speed of reading `bytes` a unit, on a device that can read `limit_bytes_per_s`.
    pub fn bytes(self, bytes: usize, limit_bytes_per_s: Option<f64>) -> Self {
        let share = limit_bytes_per_s.map(|limit| bandwidth_share(bytes, limit, self.median));
        Self { bytes_per_s: Some(bytes as f64 * 1e6 / self.median), bandwidth_share: share, ..self }
    }
}

/// The value in the middle, or the mean of the two there.
///
/// # Panics
/// Where there are none.
pub fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) }
}

/// The value nearest to nine tenths of the way up, as `benches/peers/decode.py` takes it.
///
/// # Panics
/// Where there are none.
pub fn p90(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    sorted[(0.9 * (sorted.len() - 1) as f64 + 0.5) as usize]
}

fn sorted(values: &[f64]) -> Vec<f64> {
    assert!(!values.is_empty(), "a figure needs at least one time");
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Measure, Row, median, p90};

    /// Without this, one slow run could pass for the usual one, or a tail could be hidden.
    #[test]
    fn median_and_p90_are_those_of_the_sorted_values() {
        assert_eq!((median(&[5.0]), p90(&[5.0])), (5.0, 5.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[9.0, 1.0, 2.0, 4.0]), 3.0);
        let ten: Vec<f64> = (1..=10).rev().map(f64::from).collect();
        assert_eq!((median(&ten), p90(&ten)), (5.5, 9.0));
        let many: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!((median(&many), p90(&many)), (50.0, 90.0));
    }

    /// Without this, a speed could be off by a power of ten.
    #[test]
    fn speeds_are_of_the_median() {
        let row = Row::new(Measure::Decode, "", "us a token", &[Duration::from_millis(1)], 10);
        let row = row.tokens(2).flops(5e5).bytes(1_000_000, Some(20e9));
        assert_eq!((row.median, row.tokens_per_s), (100.0, Some(20_000.0)));
        assert_eq!((row.gflop_per_s, row.bytes_per_s), (Some(5.0), Some(10e9)));
        assert!((row.bandwidth_share.unwrap() - 0.5).abs() < 1e-12);
    }
}
