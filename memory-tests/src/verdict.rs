//! What a child says about its scenario, and the rule that turns two readings into it.

use serde::{Deserialize, Serialize};

use crate::witness::{Reading, Witness, ledger_change};

/// The end of a scenario.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every witness is back at its baseline.
    Clean,
    /// Memory is missing, and these saw it.
    Leak(Vec<Witness>),
    /// The witnesses contradict each other, so nothing can be said. Never counted as clean.
    Inconclusive(String),
    /// The scenario itself failed, or a promise that it checks was broken.
    Failed(String),
}

/// What each witness saw between baseline and end. Device figures are as of the process: positive is memory not given back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Change of the ledger in words, empty for none.
    pub ledger: String,
    /// Fall of `cuMemGetInfo`'s free bytes; none where it was not asked.
    pub driver_bytes: Option<i64>,
    /// Growth of NVML's figure for the process; none where NVML does not say.
    pub nvml_bytes: Option<i64>,
    /// Growth of the host's live bytes.
    pub host_bytes: i64,
    /// Growth of the host's live blocks.
    pub host_blocks: i64,
}

/// What a child prints, as one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The scenario's name.
    pub scenario: String,
    /// How often it ran after the baseline.
    pub iterations: u32,
    /// The end.
    pub outcome: Outcome,
    /// The figures behind it.
    pub figures: Figures,
}

/// Compares the end with the baseline.
#[must_use]
pub fn judge(before: &Reading, after: &Reading) -> (Outcome, Figures) {
    let grown = |before: usize, after: usize| after as i64 - before as i64;
    let both = |before: Option<u64>, after: Option<u64>| Some(after? as i64 - before? as i64);
    let figures = Figures {
        ledger: ledger_change(&before.ledger, &after.ledger),
        driver_bytes: both(after.device_free_bytes, before.device_free_bytes),
        nvml_bytes: both(before.nvml_bytes, after.nvml_bytes),
        host_bytes: grown(before.host.bytes, after.host.bytes),
        host_blocks: grown(before.host.blocks, after.host.blocks),
    };
    let driver = figures.driver_bytes.unwrap_or(0);
    let seen = [
        (Witness::Ledger, before.ledger != after.ledger),
        // Where NVML does not say whose it is, missing memory counts as ours: a neighbour is the rarer cause.
        (Witness::Driver, driver > 0 && figures.nvml_bytes.is_none_or(|own| own > 0)),
        (Witness::Nvml, figures.nvml_bytes.is_some_and(|own| own > 0)),
        (Witness::Host, before.host != after.host),
    ];
    let seen: Vec<Witness> = seen.into_iter().filter_map(|(witness, saw)| saw.then_some(witness)).collect();
    // NVML alone is believed only where the driver could not be asked.
    let sure = |witness: &Witness| *witness != Witness::Nvml || figures.driver_bytes.is_none();
    let outcome = if seen.iter().any(sure) {
        Outcome::Leak(seen)
    } else {
        contradiction(&figures).map_or(Outcome::Clean, Outcome::Inconclusive)
    };
    (outcome, figures)
}

/// What the two driver-level witnesses disagree on, where the exact ones saw nothing.
fn contradiction(figures: &Figures) -> Option<String> {
    let told = match (figures.driver_bytes.unwrap_or(0), figures.nvml_bytes) {
        (0, None | Some(0)) => return None,
        (driver, Some(0)) => {
            format!("cuMemGetInfo lost {driver} bytes, the process none: another process moved")
        }
        (driver, Some(own)) => {
            format!("cuMemGetInfo lost {driver} bytes, NVML counts {own} more for the process")
        }
        (driver, None) => format!("cuMemGetInfo gained {} bytes, and NVML does not say whose", -driver),
    };
    Some(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocator::Live;

    fn base() -> Reading {
        Reading {
            ledger: Default::default(),
            host: Live { bytes: 10, blocks: 1 },
            device_free_bytes: Some(1 << 30),
            nvml_bytes: Some(500),
        }
    }

    fn outcome(end: Reading) -> Outcome {
        judge(&base(), &end).0
    }

    /// Without this, a clean run could be called anything but clean.
    #[test]
    fn no_change_is_clean() {
        assert_eq!(outcome(base()), Outcome::Clean);
    }

    /// Without this, one byte on the host, or a block swapped for another of its size and one more, could pass.
    #[test]
    fn one_byte_or_one_block_on_the_host_is_a_leak() {
        for host in
            [Live { bytes: 11, blocks: 1 }, Live { bytes: 10, blocks: 2 }, Live { bytes: 9, blocks: 1 }]
        {
            assert_eq!(outcome(Reading { host, ..base() }), Outcome::Leak(vec![Witness::Host]));
        }
    }

    /// Without this, memory taken past the ledger could pass where the ledger is clean.
    #[test]
    fn driver_memory_that_the_ledger_does_not_know_is_a_leak() {
        let free = Some((1 << 30) - (2 << 20));
        let both = Reading { device_free_bytes: free, nvml_bytes: Some(500 + (2 << 20)), ..base() };
        assert_eq!(outcome(both), Outcome::Leak(vec![Witness::Driver, Witness::Nvml]));
    }

    /// Without this, the driver's figure could be thrown away where NVML is missing, and NVML's where no context is open.
    #[test]
    fn one_driver_level_witness_is_enough_where_the_other_is_missing() {
        let without_nvml = Reading { nvml_bytes: None, ..base() };
        let less = Reading { device_free_bytes: Some(1 << 29), ..without_nvml };
        assert_eq!(judge(&without_nvml, &less).0, Outcome::Leak(vec![Witness::Driver]));
        let without_driver = Reading { device_free_bytes: None, ..base() };
        let more = Reading { nvml_bytes: Some(501), ..without_driver };
        assert_eq!(judge(&without_driver, &more).0, Outcome::Leak(vec![Witness::Nvml]));
    }

    /// Without this, another process's allocation would be called our leak, or its release would hide one.
    #[test]
    fn witnesses_that_contradict_each_other_are_neither_clean_nor_a_leak() {
        let ends = [
            Reading { device_free_bytes: Some(1 << 29), ..base() },
            Reading { device_free_bytes: Some(1 << 31), ..base() },
            Reading { nvml_bytes: Some(501), ..base() },
            Reading { nvml_bytes: Some(499), ..base() },
        ];
        for end in ends {
            assert!(matches!(outcome(end), Outcome::Inconclusive(_)), "{:?}", outcome(end));
        }
    }
}
