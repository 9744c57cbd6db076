//! Where a decoder's time goes, handoff by handoff: a decoder that is compiled to read the clock runs the same generations.
//!
//! The cycles are those of one thread, which takes part in all that its block does; reading the clock costs some of them, so the whole is told beside
//! its parts.

use touchstone_runtime::Result;
use touchstone_runtime::device::{Device, Handoff};

use super::args::Measure;
use super::measure::{Bench, WARM_UP};
use super::row::{Cycles, Row};

impl<D: Device> Bench<'_, D> {
    /// The whole step, and each handoff's part of it; nothing where the model has no decoder that reads the clock.
    pub fn handoffs(&mut self, batch: usize) -> Result<Vec<Row>> {
        self.device.taps().set_clocked(true);
        let model = self.model(batch, 1);
        self.device.taps().set_clocked(false);
        let mut model = model?;
        let times = self.generate(&mut model, batch)?;
        let handoffs = model.decoder().map(D::handoffs).transpose()?.unwrap_or_default();
        let at = format!("batch {batch}, {}", self.size());
        let whole = Row::new(Measure::Handoffs, at, "us a step", &times, self.new_tokens);
        // The pass over the prompt makes the first token of each.
        let steps = (self.new_tokens - 1) * (WARM_UP + self.repeats);
        Ok(parts(whole, steps, &handoffs))
    }
}

/// The whole and its parts, of a decoder that ran so many steps.
fn parts(whole: Row, steps: usize, handoffs: &[Handoff]) -> Vec<Row> {
    if handoffs.is_empty() {
        return Vec::new();
    }
    let cycles: u64 = handoffs.iter().map(|handoff| handoff.work + handoff.wait).sum();
    let part = |handoff: &Handoff| {
        let Handoff { name, times, work, wait } = handoff;
        let share = (work + wait) as f64 / cycles as f64;
        let each = |cycles: u64| cycles as f64 / *times as f64;
        Row {
            at: format!("{}: {name}", whole.at),
            median: whole.median * share,
            p90: whole.p90 * share,
            cycles: Some(Cycles {
                times: *times as f64 / steps as f64,
                work: each(*work),
                wait: each(*wait),
            }),
            ..whole.clone()
        }
    };
    let parts: Vec<Row> = handoffs.iter().map(part).collect();
    [whole].into_iter().chain(parts).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use touchstone_runtime::device::Handoff;

    use super::super::args::Measure;
    use super::super::row::{Cycles, Row};
    use super::parts;

    /// Without this, a handoff that comes often could be taken for one that takes long.
    #[test]
    fn parts_add_up_to_the_whole() {
        let handoff = |name: &str, times, work, wait| Handoff { name: name.to_owned(), times, work, wait };
        let handoffs = [handoff("hidden", 60, 1200, 1800), handoff("logits", 10, 500, 500)];
        let whole = Row::new(Measure::Handoffs, "batch 1", "us a step", &[Duration::from_micros(80)], 10);
        let rows = parts(whole, 10, &handoffs);
        let medians: Vec<f64> = rows.iter().map(|row| row.median).collect();
        assert_eq!(medians, [8.0, 6.0, 2.0]);
        assert_eq!(rows[1].cycles, Some(Cycles { times: 6.0, work: 20.0, wait: 30.0 }));
        assert!(parts(rows[0].clone(), 10, &[]).is_empty());
    }
}
